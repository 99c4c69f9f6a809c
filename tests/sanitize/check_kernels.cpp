// Drives the CPU kernels through their C interface: every family, element type, layout
// and instruction set that this processor has, on one thread and on several.
//
// It exists to be built with sanitizers (`make sanitize`), which report what Python's
// tests cannot see. So all memory has its exact size, gaps in it are NaNs, and the
// results are held to sums in float64 and, however many threads compute, to one another's
// bits.
//
//     check_kernels [SEED] [CASES]    CASES problems of random shapes, after the fixed
//     ones

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "api.h"
#include "problems.h"

namespace pelk {
namespace {

std::atomic<int> failures{0};
std::atomic<int64_t> calls{0};

void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  ++failures;
}

// ---------------------------------------------------------------- running

// How a call is run.
struct Way {
  int32_t instruction_set, threads;
  Parallel parallel;
};

// What torch's threads do, with threads of our own.
void team(void (*work)(void*), void* data, unsigned threads, unsigned) {
  std::vector<std::thread> others;
  for (unsigned t = 1; t < threads; ++t) others.emplace_back(work, data);
  work(data);
  for (std::thread& thread : others) thread.join();
}

struct Result {
  Numbers numbers;
  const Numbers* expected;
  float rounding;  // of its element type
};

// Results by what they are.
using Results = std::map<std::string, Result>;

float rounding_of(int32_t type) {
  return type == kFloat32 ? 0.0f : type == kBFloat16 ? 0x1p-8f : 0x1p-11f;
}

void require_done(const std::string& name, int status) {
  ++calls;
  if (status != kDone) fail(name + ": status " + std::to_string(status));
}

Job make_job(const Problem& p, const Way& way, int32_t type, int64_t rows, int64_t cols) {
  return {way.instruction_set,
          way.threads,
          type,
          int32_t(rows),
          int32_t(cols),
          0,
          0,
          nullptr,
          nullptr,
          p.shape.batch,
          p.shape.channels,
          p.shape.height,
          p.shape.width,
          way.parallel};
}

void run_transposes(const Problem& p, const Way& way, int32_t type, int64_t gap,
                    Results* results) {
  const Job job = make_job(p, way, type, 0, 0);
  const int64_t channels = p.shape.channels, pixels = p.shape.pixels();
  for (const Layout from : {kPlanes, kPixelwise}) {
    const Map source(p.shape, type, from, gap, p.x);
    Map target(p.shape, type, from == kPlanes ? kPixelwise : kPlanes, gap);
    const Tensor in = source.view(), out = target.view();
    const bool planes = from == kPlanes;
    const std::string name = planes ? "planes to pixels" : "pixels to planes";
    require_done(name, pelk_transpose(&job, &in, &out, planes ? channels : pixels,
                                      planes ? pixels : channels));
    if (!target.gaps_intact()) fail(name + ": wrote between the rows");
    (*results)[name] = {target.numbers(), &p.x, 0.0f};
  }
}

void run_direct(const Problem& p, const Way& way, int32_t type, int64_t gap,
                Results* results) {
  const Job job = make_job(p, way, type, taps_of(p.rows), taps_of(p.cols));
  const Map x(p.shape, type, kPlanes, gap, p.x),
      grad(p.shape, type, kPlanes, gap, p.grad);
  const Tensor in = x.view(), own = grad.view();
  Map y(p.shape, type, kPlanes, 0);
  require_done("direct",
               pelk_convolve(&job, &in, p.dense.data(), p.bias.data(), y.data()));
  (*results)["direct"] = {y.numbers(), &p.out, rounding_of(type)};
  Numbers grad_weight(p.dense.size(), NAN);
  require_done("direct weight_grad",
               pelk_weight_grad(&job, &in, &own, grad_weight.data()));
  (*results)["direct weight_grad"] = {grad_weight, &p.grad_dense, 0.0f};
}

void run_fourier(const Problem& p, const Way& way, int32_t type, int64_t gap, bool both,
                 Results* results) {
  Job job = make_job(p, way, type, p.rows.size(), p.cols.size());
  job.vertical_length = transform_length(p.shape.height, taps_of(p.rows));
  if (both) job.horizontal_length = transform_length(p.shape.width, taps_of(p.cols));
  job.row_grid = p.rows.data();
  job.col_grid = p.cols.data();
  const std::string name = both ? "fft" : "column_fft";
  const Map x(p.shape, type, kPlanes, gap, p.x),
      grad(p.shape, type, kPlanes, gap, p.grad);
  const Tensor in = x.view(), own = grad.view(), nothing = {nullptr, 0, 0};
  Map y(p.shape, type, kPlanes, 0);
  require_done(
      name, pelk_fourier_convolve(&job, &in, p.weight.data(), p.bias.data(), y.data()));
  (*results)[name] = {y.numbers(), &p.out, rounding_of(type)};
  for (const bool needs_x : {true, false})
    for (const bool needs_weight : {true, false}) {
      Map grad_x(p.shape, type, kPlanes, 0);
      Numbers grad_weight(p.weight.size(), NAN);
      const std::string which = name + (needs_x ? " x" : "") + (needs_weight ? " w" : "");
      require_done(which,
                   pelk_fourier_gradients(&job, needs_weight ? &in : &nothing, &own,
                                          needs_x ? p.weight.data() : nullptr,
                                          needs_x ? grad_x.data() : nullptr,
                                          needs_weight ? grad_weight.data() : nullptr));
      if (needs_x)
        (*results)[which + ", grad_x"] = {grad_x.numbers(), &p.grad_x, rounding_of(type)};
      if (needs_weight)
        (*results)[which + ", grad_w"] = {grad_weight, &p.grad_weight, 0.0f};
    }
}

// Of [tap][channel], in order [channel][tap].
Numbers by_channel(const Numbers& by_tap, int64_t channels) {
  Numbers found(by_tap.size());
  const int64_t taps = int64_t(by_tap.size()) / channels;
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t c = 0; c < channels; ++c)
      found[c * taps + tap] = by_tap[tap * channels + c];
  return found;
}

void run_pixels(const Problem& p, const Way& way, int64_t gap, Results* results) {
  const Job job = make_job(p, way, kFloat32, taps_of(p.rows), taps_of(p.cols));
  for (const Layout layout : {kPlanes, kPixelwise}) {
    const std::string name = layout == kPlanes ? "blocks" : "pixels";
    const Map x(p.shape, kFloat32, layout, gap, p.x);
    const Map grad(p.shape, kFloat32, layout, gap, p.grad);
    Map y(p.shape, kFloat32, layout, gap);
    const Tensor in = x.view(), own = grad.view(), out = y.view();
    require_done(name, pelk_convolve_pixels(&job, layout == kPlanes, &in, p.dense.data(),
                                            p.bias.data(), &out));
    if (!y.gaps_intact()) fail(name + ": wrote between the rows");
    (*results)[name] = {y.numbers(), &p.out, 0.0f};
    Numbers grad_weight(p.dense.size(), NAN);
    require_done(
        name + " weight_grad",
        pelk_weight_grad_pixels(&job, layout == kPlanes, &in, &own, grad_weight.data()));
    (*results)[name + " weight_grad"] = {by_channel(grad_weight, p.shape.channels),
                                         &p.grad_dense, 0.0f};
  }
}

// A vector of channels of any instruction set.
constexpr int64_t kMostLanes = 16;

Results run_all(const Problem& p, const Way& way, int32_t type, int64_t gap) {
  Results results;
  run_transposes(p, way, type, gap, &results);
  run_direct(p, way, type, gap, &results);
  run_fourier(p, way, type, gap, true, &results);
  run_fourier(p, way, type, gap, false, &results);
  if (type == kFloat32 && p.shape.channels >= kMostLanes)
    run_pixels(p, way, gap, &results);
  return results;
}

// ---------------------------------------------------------------- checking

// Largest error in units of the largest sum of magnitudes. Fourier transforms round a few
// units of the largest result, whatever the size of the one at hand.
constexpr float kTolerance = 2e-5f;

void check(const Problem& p, const Results& results, const std::string& where) {
  for (const auto& [name, result] : results) {
    const Numbers& expected = *result.expected;
    for (size_t i = 0; i < expected.size(); ++i) {
      const float allowed =
          kTolerance * (1.0f + p.largest) + result.rounding * std::abs(expected[i]);
      const float error = std::abs(result.numbers[i] - expected[i]);
      if (error <= allowed) continue;  // a NaN is not
      fail(where + ", " + name + ": element " + std::to_string(i) + " is " +
           std::to_string(result.numbers[i]) + ", not " + std::to_string(expected[i]));
      break;
    }
  }
}

void check_bits(const Results& results, const Results& first, const std::string& where) {
  for (const auto& [name, result] : results) {
    const Numbers& expected = first.at(name).numbers;
    if (std::memcmp(result.numbers.data(), expected.data(),
                    expected.size() * sizeof(float)))
      fail(where + ", " + name + ": other bits than on one thread");
  }
}

std::string describe(const Problem& p, int32_t instruction_set, int32_t type) {
  std::string text = pelk_instruction_set(instruction_set);
  for (const int64_t number : {p.shape.batch, p.shape.channels, p.shape.height,
                               p.shape.width, taps_of(p.rows), taps_of(p.cols)})
    text += " " + std::to_string(number);
  return text + ", type " + std::to_string(type);
}

// A problem on every instruction set, in every way and type.
void check_everywhere(const Problem& p, const std::vector<int32_t>& sets) {
  for (const int32_t set : sets)
    for (const int32_t type : {kFloat32, kBFloat16, kFloat16}) {
      const std::string where = describe(p, set, type);
      const Results first = run_all(p, {set, 1, nullptr}, type, 0);
      check(p, first, where);
      for (const Way& way : {Way{set, 2, nullptr}, Way{set, 3, team}, Way{set, 8, team}})
        check_bits(run_all(p, way, type, 3), first, where);
    }
}

// What must not serve is refused, and what there is no memory for.
void check_refusals(int32_t set) {
  const Grid grid = {3, 1, 3};
  const Problem p({1, 1, 8, 8}, grid, grid, 1);
  const Way way = {set, 2, nullptr};
  const Map x(p.shape, kFloat32, kPlanes, 0, p.x);
  const Tensor in = x.view();
  Map y(p.shape, kFloat32, kPlanes, 0);
  Job job = make_job(p, way, kFloat32, 3, 3);
  job.row_grid = job.col_grid = grid.data();
  const auto expect = [&](Status wanted, int status, const char* what) {
    ++calls;
    if (status != wanted) fail(std::string(what) + ": status " + std::to_string(status));
  };
  // Odd, too short, of another factor.
  for (const int32_t length : {15, 10, 14, 22})
    for (const bool vertical : {true, false}) {
      job.vertical_length = vertical ? length : 12;
      job.horizontal_length = vertical ? 12 : length;
      expect(kWrongLength,
             pelk_fourier_convolve(&job, &in, p.weight.data(), nullptr, y.data()),
             "length refused");
      expect(kWrongLength,
             pelk_fourier_gradients(&job, &in, &in, p.weight.data(), y.data(), nullptr),
             "length refused");
    }
  // Nothing of these kernels is read: scratch memory comes first.
  for (const int32_t threads : {1, 2, 5}) {
    Job huge =
        make_job(p, {set, threads, nullptr}, kFloat32, (1 << 20) - 1, (1 << 26) - 1);
    huge.channels = 3;
    expect(kOutOfMemory, pelk_convolve(&huge, &in, nullptr, nullptr, y.data()),
           "out of memory");
    expect(kOutOfMemory, pelk_weight_grad(&huge, &in, &in, nullptr), "out of memory");
  }
  // The threads are as good as new.
  check(p, run_all(p, way, kFloat32, 0), "after refusals");
}

// Callers at the same time, each with several threads, on the same input.
void check_callers(const Problem& p, int32_t set) {
  const Results first = run_all(p, {set, 1, nullptr}, kFloat32, 0);
  std::vector<Results> found(8);
  std::vector<std::thread> callers;
  for (Results& results : found)
    callers.emplace_back([&] { results = run_all(p, {set, 2, nullptr}, kFloat32, 0); });
  for (std::thread& caller : callers) caller.join();
  for (const Results& results : found)
    check_bits(results, first, describe(p, set, kFloat32) + ", eight callers");
}

// A process that was forked from one that has computed.
void check_forked(const Problem& p, int32_t set) {
  const Results first = run_all(p, {set, 2, nullptr}, kFloat32, 0);
  const pid_t child = fork();
  if (child == 0) {
    failures = 0;
    check_bits(run_all(p, {set, 3, nullptr}, kFloat32, 0), first, "forked");
    std::exit(failures != 0);  // leaks of the child are looked for too
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0)
    fail("the forked process ended with status " + std::to_string(status));
}

// A sum of taps that is odd.
Grid draw_grid(Random& random) {
  Grid grid(random.integer(1, 7));
  const bool dense = random.integer(0, 1);
  for (int32_t& taps : grid) taps = dense ? 1 : int32_t(random.integer(1, 6));
  if (taps_of(grid) % 2 == 0) ++grid[random.integer(0, grid.size() - 1)];
  return grid;
}

void check_random(uint64_t seed, const std::vector<int32_t>& sets) {
  Random random(seed);
  const Shape shape = {random.integer(1, 2), random.integer(1, 19), random.integer(1, 24),
                       random.integer(1, 36)};
  const Grid rows = draw_grid(random), cols = draw_grid(random);
  const Problem p(shape, rows, cols, seed);
  const int32_t set = sets[random.integer(0, sets.size() - 1)];
  const int32_t type = int32_t(random.integer(0, 2)), threads = random.integer(1, 4);
  const Way way = {set, threads, random.integer(0, 1) ? team : nullptr};
  check(p, run_all(p, way, type, random.integer(0, 5)),
        describe(p, set, type) + ", seed " + std::to_string(seed));
}

std::vector<Problem> fixed_problems() {
  const Grid shared = {9, 8, 4, 2, 1, 1, 1, 1, 1, 2, 4, 8, 9};
  const auto dense = [](int64_t taps) { return Grid(taps, 1); };
  return {
      {{1, 1, 1, 1}, dense(1), dense(1), 1},
      {{1, 1, 1, 1}, shared, shared, 2},
      {{2, 3, 7, 5}, dense(3), dense(7), 3},
      {{1, 2, 1, 40}, dense(5), dense(5), 4},
      {{1, 2, 33, 1}, dense(5), dense(13), 5},
      {{1, 2, 20, 33}, shared, shared, 6},
      {{1, 2, 18, 35}, dense(51), dense(5), 7},
      {{1, 2, 18, 35}, dense(5), dense(51), 8},
      {{2, 1, 16, 16}, dense(31), dense(31), 9},
      // Vectors of channels: exactly one, one and a bit, several.
      {{2, 16, 9, 7}, dense(5), dense(5), 10},
      {{1, 17, 6, 14}, dense(3), dense(7), 11},
      {{1, 35, 5, 13}, dense(5), dense(3), 12},
      // Several strips of columns, and bands of rows.
      {{1, 1, 5, 300}, dense(3), {4, 1, 4}, 13},
      {{1, 2, 140, 6}, {2, 1, 2}, dense(3), 14},
      // Blocks of a transposition.
      {{1, 130, 3, 45}, dense(3), dense(3), 15},
  };
}

int main(uint64_t seed, uint64_t count) {
  if (pelk_abi() != kAbi || pelk_job_bytes() != sizeof(Job)) {
    std::fprintf(stderr, "the library was built from other sources than this program\n");
    return 1;
  }
  std::vector<int32_t> sets;
  std::string names;
  for (int32_t i = 0; pelk_instruction_set(i); ++i) {
    const bool supported = pelk_instruction_set_supported(i);
    if (supported) sets.push_back(i);
    names += std::string(supported ? " " : " not ") + pelk_instruction_set(i);
  }
  const std::vector<Problem> problems = fixed_problems();
  for (const Problem& p : problems) check_everywhere(p, sets);
  for (const int32_t set : sets) {
    check_refusals(set);
    for (const size_t i : {5, 10}) {
      check_callers(problems[i], set);
      check_forked(problems[i], set);
    }
  }
  for (uint64_t i = 0; i < count; ++i) check_random(seed + i, sets);
  std::vector<char> large(size_t(8) << 20);
  pelk_use_huge_pages(large.data(), large.size());
  std::printf("%lld calls, %zu fixed and %llu random problems, on%s: %d failures\n",
              static_cast<long long>(calls.load()), problems.size(),
              static_cast<unsigned long long>(count), names.c_str(), failures.load());
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace pelk

int main(int count, char** arguments) {
  const auto number = [&](int i, uint64_t otherwise) {
    return count > i ? std::strtoull(arguments[i], nullptr, 10) : otherwise;
  };
  return pelk::main(number(1, 0), number(2, 100));
}
