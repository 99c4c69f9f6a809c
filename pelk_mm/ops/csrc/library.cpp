// The C interface of the CPU kernels: plans, threads and scratch memory. It knows
// nothing of torch, so it outlives torch's releases.

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "kernels.h"

namespace pelk {
namespace {

// An axis with its storage.
struct Plan {
  std::vector<int32_t> start, level;
  std::vector<Level> levels;
  std::vector<int32_t> sizes = {1};  // of each level

  Plan(const int32_t* grid, int32_t cells) : start(1, 0) {
    for (int32_t a = 0; a < cells; ++a) {
      start.push_back(start.back() + grid[a]);
      level.push_back(level_of(grid[a]));
    }
  }

  // The level of sums of `size` taps, made by halving where that is even.
  int32_t level_of(int32_t size) {
    for (size_t q = 0; q < sizes.size(); ++q)
      if (sizes[q] == size) return int32_t(q);
    const int32_t shift = size % 2 ? size - 1 : size / 2;
    const int32_t first = level_of(shift);
    const int32_t second = level_of(size - shift);
    levels.push_back({first, second, size, shift});
    sizes.push_back(size);
    return int32_t(levels.size());
  }

  Axis axis() const {
    return {int32_t(level.size()),  start.back(),  start.back() / 2,
            int32_t(levels.size()), start.data(), level.data(), levels.data()};
  }
};

// Memory that a thread keeps between calls, so that small calls do not fault its pages
// in again; what a large map needed is given back.
class Scratch {
 public:
  static void* get(size_t bytes) {
    thread_local Scratch scratch;
    if (bytes > scratch.bytes_) {
      std::free(scratch.memory_);
      scratch.bytes_ = 0;
      const size_t rounded = (bytes + 63) / 64 * 64;
      scratch.memory_ = std::aligned_alloc(64, rounded);
      if (!scratch.memory_) throw std::bad_alloc();
      scratch.bytes_ = rounded;
    }
    return scratch.memory_;
  }

  ~Scratch() { std::free(memory_); }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

// The signature of GCC's OpenMP runtime: runs a function on a team of threads.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Runs work(i) for i in [0, count) on `threads` threads, this one among them. Which
// thread takes an item has no influence on results. `parallel` borrows torch's own
// threads; null starts new ones, which a forked process can do safely.
template <class Work>
int run(int64_t count, int threads, Parallel parallel, const Work& work) {
  struct Shared {
    const Work* work;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<int> failed{0};

    void drain() {
      try {
        for (int64_t i; (i = next.fetch_add(1)) < count;) (*work)(i);
      } catch (const std::bad_alloc&) {
        failed = 1;
      }
    }
    static void entry(void* self) { static_cast<Shared*>(self)->drain(); }
  } shared;
  shared.work = &work;
  shared.count = count;
  if (threads > count) threads = int(count);
  if (threads <= 1) {
    shared.drain();
  } else if (parallel) {
    parallel(&Shared::entry, &shared, unsigned(threads), 0);
  } else {
    std::vector<std::thread> team;
    try {
      for (int t = 1; t < threads; ++t) team.emplace_back(&Shared::entry, &shared);
    } catch (const std::exception&) {
      // Fewer threads than asked for do the same work.
    }
    shared.drain();
    for (std::thread& thread : team) thread.join();
  }
  return shared.failed;
}

struct Version {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();
};

// Best first.
const Version versions[] = {
#ifdef PELK_X86
    {"avx512", &kAvx512,
     [] {
       __builtin_cpu_init();
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("fma");
     }},
    {"avx2", &kAvx2,
     [] {
       __builtin_cpu_init();
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
#endif
    {"portable", &kPortable, [] { return true; }}};
constexpr int kVersions = sizeof(versions) / sizeof(versions[0]);

constexpr int64_t element_size(int32_t type) { return type == kFloat32 ? 4 : 2; }

}  // namespace
}  // namespace pelk

#define PELK_EXPORT __attribute__((visibility("default")))

extern "C" {

// A tensor (N, C, H, W) whose planes are dense; strides in elements.
struct PelkTensor {
  const char* data;
  int64_t batch_stride, channel_stride;
};

struct PelkJob {
  int32_t version, threads, type;
  int32_t row_cells, col_cells;
  const int32_t *row_grid, *col_grid;
  int64_t batch, channels, height, width;
  pelk::Parallel parallel;
};

// The i-th instruction-set version, best first: its name, or null past the last.
PELK_EXPORT const char* pelk_version_name(int i) {
  return i < pelk::kVersions ? pelk::versions[i].name : nullptr;
}

PELK_EXPORT int pelk_version_supported(int i) { return pelk::versions[i].supported(); }

// y (contiguous) = convolution of x with `weight`, (C, row_cells, col_cells) floats.
// Returns 0, or 1 when memory runs out.
PELK_EXPORT int pelk_convolve(const PelkJob* job, const PelkTensor* x, const float* weight,
                  const float* bias, char* y) try {
  const pelk::Plan row_plan(job->row_grid, job->row_cells);
  const pelk::Plan col_plan(job->col_grid, job->col_cells);
  const pelk::Axis rows = row_plan.axis(), cols = col_plan.axis();
  const pelk::Kernels* kernels = pelk::versions[job->version].kernels;
  const int64_t strips = kernels->strips(job->width);
  const int64_t size = pelk::element_size(job->type);
  const size_t bytes = kernels->convolve_scratch(rows, cols, job->height, job->width);
  return pelk::run(
      job->batch * job->channels * strips, job->threads, job->parallel,
      [&](int64_t item) {
        const int64_t plane = item / strips, n = plane / job->channels,
                      c = plane % job->channels;
        const pelk::Plane in = {
            x->data + (n * x->batch_stride + c * x->channel_stride) * size, job->height,
            job->width, pelk::Type(job->type)};
        kernels->convolve(rows, cols, in, weight + c * rows.cells * cols.cells,
                          bias ? bias[c] : 0.0f,
                          y + plane * job->height * job->width * size, item % strips,
                          pelk::Scratch::get(bytes));
      });
} catch (const std::bad_alloc&) {
  return 1;
}

// result (C, row_cells, col_cells) = gradient to the weights of pelk_convolve.
PELK_EXPORT int pelk_weight_grad(const PelkJob* job, const PelkTensor* x, const PelkTensor* grad,
                     float* result) try {
  const pelk::Plan row_plan(job->row_grid, job->row_cells);
  const pelk::Plan col_plan(job->col_grid, job->col_cells);
  const pelk::Axis rows = row_plan.axis(), cols = col_plan.axis();
  const pelk::Kernels* kernels = pelk::versions[job->version].kernels;
  const int64_t cells = int64_t(rows.cells) * cols.cells;
  const int64_t size = pelk::element_size(job->type);
  const size_t sums_bytes = (cells * sizeof(double) + 63) / 64 * 64;
  const size_t bytes =
      sums_bytes + kernels->weight_grad_scratch(rows, cols, job->height, job->width);
  // A channel is one item: its sum over the batch has one order.
  return pelk::run(job->channels, job->threads, job->parallel, [&](int64_t c) {
    char* memory = static_cast<char*>(pelk::Scratch::get(bytes));
    double* sums = reinterpret_cast<double*>(memory);
    std::memset(sums, 0, sums_bytes);
    const auto plane = [&](const PelkTensor* t, int64_t n) {
      return pelk::Plane{
          t->data + (n * t->batch_stride + c * t->channel_stride) * size, job->height,
          job->width, pelk::Type(job->type)};
    };
    for (int64_t n = 0; n < job->batch; ++n)
      kernels->weight_grad(rows, cols, plane(x, n), plane(grad, n), sums,
                           memory + sums_bytes);
    for (int64_t i = 0; i < cells; ++i) result[c * cells + i] = float(sums[i]);
  });
} catch (const std::bad_alloc&) {
  return 1;
}

}  // extern "C"
