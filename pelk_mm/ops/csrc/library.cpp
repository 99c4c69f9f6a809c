// The C interface of the CPU kernels: plans, threads and scratch memory. It knows
// nothing of torch, so it outlives torch's releases.

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

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

  // The level of sums of `size` taps: twice half of them where that is a power of two,
  // else the largest power of two below and the rest.
  int32_t level_of(int32_t size) {
    for (size_t q = 0; q < sizes.size(); ++q)
      if (sizes[q] == size) return int32_t(q);
    int32_t shift = 1;
    while (2 * shift < size) shift *= 2;
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

// A transform with its storage.
struct TransformPlan {
  int32_t length;
  std::vector<int32_t> radices, position = {0};
  std::vector<float> twiddles;

  explicit TransformPlan(int32_t points) : length(points) {
    factorise();
    const double turn = -2.0 * std::acos(-1.0);
    int32_t run = length;
    for (const int32_t radix : radices) {
      for (int32_t p = 1; p < run / radix; ++p)
        for (int32_t k = 1; k < radix; ++k) {
          twiddles.push_back(float(std::cos(turn * p * k / run)));
          twiddles.push_back(float(std::sin(turn * p * k / run)));
        }
      run /= radix;
    }
    // The last radix runs slowest in the frequency and fastest in the position.
    int32_t stride = length;
    for (const int32_t radix : radices) {
      stride /= radix;
      const size_t known = position.size();
      for (int32_t k = 1; k < radix; ++k)
        for (size_t i = 0; i < known; ++i)
          position.push_back(position[i] + k * stride);
    }
  }

  Transform transform() const {
    return {length, int32_t(radices.size()), radices.data(), twiddles.data(),
            position.data()};
  }

 private:
  // Few passes, and radices that do not spill: by the vector operations of a point.
  void factorise() {
    struct Choice {
      int32_t radix;
      float cost;
    };
    static constexpr Choice choices[] = {{2, 10.f}, {3, 12.f},   {4, 12.f}, {5, 15.f},
                                         {6, 14.f}, {8, 15.5f}, {10, 18.f}};
    std::vector<float> cost(length + 1, HUGE_VALF);
    std::vector<int32_t> last(length + 1, 0);
    cost[1] = 0.f;
    for (int32_t n = 2; n <= length; ++n) {
      if (length % n) continue;
      for (const Choice& choice : choices)
        if (n % choice.radix == 0 && cost[n / choice.radix] + choice.cost < cost[n]) {
          cost[n] = cost[n / choice.radix] + choice.cost;
          last[n] = choice.radix;
        }
    }
    for (int32_t n = length; n > 1; n /= last[n]) {
      if (last[n] == 0) throw std::invalid_argument("length");
      radices.push_back(last[n]);
    }
  }
};

// Plans are kept: their sines take longer than a small convolution.
const TransformPlan& transform_plan(int32_t length) {
  thread_local std::map<int32_t, TransformPlan> plans;
  return plans.try_emplace(length, length).first->second;
}

// The transform of a plane's axis; the input lies the kernel's reach from the origin.
Transform transform_of(int32_t length, int64_t size, const Axis& axis) {
  const int64_t reach = axis.radius < size ? axis.radius : size - 1;
  if (length % 2 || length < size + reach) throw std::invalid_argument("length");
  return transform_plan(length).transform();
}

// Bytes of whole lines of the cache, from which pieces of scratch memory start.
constexpr size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Memory that a thread keeps between calls, so that small calls do not fault its pages
// in again: as much as the largest call needed.
class Scratch {
 public:
  static void* get(size_t bytes) {
    thread_local Scratch scratch;
    if (bytes > scratch.bytes_) {
      std::free(scratch.memory_);
      scratch.bytes_ = 0;
      const size_t rounded = whole_lines(bytes);
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
    {"avx512", &avx512::kernels,
     [] {
       __builtin_cpu_init();
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("fma");
     }},
    {"avx2", &avx2::kernels,
     [] {
       __builtin_cpu_init();
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
#endif
    {"portable", &portable::kernels, [] { return true; }}};
constexpr int kVersions = sizeof(versions) / sizeof(versions[0]);

constexpr int64_t element_size(int32_t type) { return type == kFloat32 ? 4 : 2; }

}  // namespace
}  // namespace pelk

#define PELK_EXPORT __attribute__((visibility("default")))

extern "C" {

// A tensor (N, C, H, W) as a batch of matrices, strides in elements: of planes, a row for
// each channel, or of pixels, a row for each pixel.
struct PelkTensor {
  const char* data;
  int64_t batch_stride, row_stride;
};

struct PelkJob {
  int32_t version, threads, type;
  int32_t row_cells, col_cells;
  int32_t down, along;  // lengths of Fourier transforms; 0 sums directly, both or along
  const int32_t *row_grid, *col_grid;
  int64_t batch, channels, height, width;
  pelk::Parallel parallel;
};

static pelk::Plane plane_of(const PelkJob* job, const PelkTensor* tensor, int64_t n,
                            int64_t c) {
  const int64_t at = n * tensor->batch_stride + c * tensor->row_stride;
  return {tensor->data + at * pelk::element_size(job->type), job->height, job->width,
          pelk::Type(job->type)};
}

// The i-th instruction-set version, best first: its name, or null past the last.
PELK_EXPORT const char* pelk_version_name(int i) {
  return i < pelk::kVersions ? pelk::versions[i].name : nullptr;
}

PELK_EXPORT int pelk_version_supported(int i) { return pelk::versions[i].supported(); }

// Asks for huge pages behind memory that is about to be written, where there are such.
PELK_EXPORT void pelk_use_huge_pages(char* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (uintptr_t(data) + page - 1) / page * page;
  const uintptr_t end = (uintptr_t(data) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

static PelkTensor contiguous(const PelkJob* job, const char* data) {
  const int64_t plane = job->height * job->width;
  return {data, job->channels * plane, plane};
}

// What the calls have in common.
struct Call {
  pelk::Plan row_plan, col_plan;
  pelk::Axis rows, cols;  // point into the plans
  int64_t cells;          // of a channel's kernel
  const pelk::Kernels* kernels;

  explicit Call(const PelkJob* job)
      : row_plan(job->row_grid, job->row_cells),
        col_plan(job->col_grid, job->col_cells),
        rows(row_plan.axis()),
        cols(col_plan.axis()),
        cells(int64_t(job->row_cells) * job->col_cells),
        kernels(pelk::versions[job->version].kernels) {}
  Call(const Call&) = delete;

  pelk::Fourier fourier(const PelkJob* job) const {
    return {pelk::transform_of(job->down, job->height, rows),
            job->along ? pelk::transform_of(job->along, job->width, cols)
                       : pelk::Transform{}};
  }
  const pelk::FourierKernels& fourier_kernels(const PelkJob* job) const {
    return job->along ? *kernels->planes : *kernels->columns;
  }
};

static pelk::Images images_of(const PelkJob* job, const PelkTensor* tensor, int64_t c) {
  const int64_t size = pelk::element_size(job->type);
  // Threads take channels in turn.
  const bool more = c + job->threads < job->channels;
  return {plane_of(job, tensor, 0, c), job->batch, tensor->batch_stride * size,
          more ? job->threads * tensor->row_stride * size : 0};
}

// y (contiguous) = convolution of x with `weight`, (C, row_cells, col_cells) floats.
// Returns 0, 1 when memory runs out, or 2 for lengths that cannot serve.
PELK_EXPORT int pelk_convolve(const PelkJob* job, const PelkTensor* x, const float* weight,
                  const float* bias, char* y) try {
  const Call call(job);
  const int64_t size = pelk::element_size(job->type);
  const int64_t plane_size = job->height * job->width * size;
  if (job->down) {
    const pelk::Fourier fourier = call.fourier(job);
    const pelk::FourierKernels& kernels = call.fourier_kernels(job);
    const size_t bytes = kernels.scratch(fourier, call.rows, call.cols, job->width);
    const PelkTensor out = contiguous(job, y);
    // A channel is one item: its kernel is transformed once.
    return pelk::run(job->channels, job->threads, job->parallel, [&](int64_t c) {
      kernels.convolve(fourier, call.rows, call.cols, images_of(job, x, c),
                       weight + c * call.cells, bias ? bias[c] : 0.0f,
                       images_of(job, &out, c), pelk::Scratch::get(bytes));
    });
  }
  const int64_t strips = call.kernels->strips(job->width);
  const size_t bytes =
      call.kernels->convolve_scratch(call.rows, call.cols, job->height, job->width);
  return pelk::run(
      job->batch * job->channels * strips, job->threads, job->parallel,
      [&](int64_t item) {
        const int64_t plane = item / strips, n = plane / job->channels,
                      c = plane % job->channels;
        call.kernels->convolve(call.rows, call.cols, plane_of(job, x, n, c),
                               weight + c * call.cells, bias ? bias[c] : 0.0f,
                               y + plane * plane_size, item % strips,
                               pelk::Scratch::get(bytes));
      });
} catch (const std::bad_alloc&) {
  return 1;
} catch (const std::invalid_argument&) {
  return 2;
}

// result (C, row_cells, col_cells) = gradient to the weights of pelk_convolve.
PELK_EXPORT int pelk_weight_grad(const PelkJob* job, const PelkTensor* x,
                                 const PelkTensor* grad, float* result) try {
  const Call call(job);
  const size_t sums_bytes = pelk::whole_lines(call.cells * sizeof(double));
  const size_t bytes = sums_bytes + call.kernels->weight_grad_scratch(
                                        call.rows, call.cols, job->height, job->width);
  // A channel is one item: its sum over the batch has one order.
  return pelk::run(job->channels, job->threads, job->parallel, [&](int64_t c) {
    char* memory = static_cast<char*>(pelk::Scratch::get(bytes));
    double* sums = reinterpret_cast<double*>(memory);
    std::memset(sums, 0, sums_bytes);
    for (int64_t n = 0; n < job->batch; ++n)
      call.kernels->weight_grad(call.rows, call.cols, plane_of(job, x, n, c),
                                plane_of(job, grad, n, c), sums, memory + sums_bytes);
    for (int64_t i = 0; i < call.cells; ++i) result[c * call.cells + i] = float(sums[i]);
  });
} catch (const std::bad_alloc&) {
  return 1;
}

// Both gradients of pelk_convolve by Fourier transforms. Either result may be null; then
// `weight` or `x`, which only it needs, is not read.
PELK_EXPORT int pelk_fourier_gradients(const PelkJob* job, const PelkTensor* x,
                                       const PelkTensor* grad, const float* weight,
                                       char* grad_x, float* grad_weight) try {
  const Call call(job);
  const pelk::Fourier fourier = call.fourier(job);
  const pelk::FourierKernels& kernels = call.fourier_kernels(job);
  const size_t bytes = kernels.scratch(fourier, call.rows, call.cols, job->width);
  const PelkTensor out = contiguous(job, grad_x);
  return pelk::run(job->channels, job->threads, job->parallel, [&](int64_t c) {
    const pelk::Images images = images_of(job, &out, c);
    kernels.gradients(
        fourier, call.rows, call.cols, images_of(job, x, c), images_of(job, grad, c),
        grad_x ? weight + c * call.cells : nullptr, grad_x ? &images : nullptr,
        grad_weight ? grad_weight + c * call.cells : nullptr, pelk::Scratch::get(bytes));
  });
} catch (const std::bad_alloc&) {
  return 1;
} catch (const std::invalid_argument&) {
  return 2;
}

// to[n][j][i] = from[n][i][j] for `rows` rows and `cols` columns of `from`. Of the job, the
// version, threads, type and batch count.
PELK_EXPORT int pelk_transpose(const PelkJob* job, const PelkTensor* from,
                               const PelkTensor* to, int64_t rows, int64_t cols) {
  constexpr int64_t kBlock = 128;  // several lines of the cache each way
  const auto transpose = *pelk::versions[job->version].kernels->transpose;
  const int64_t size = pelk::element_size(job->type);
  const int64_t down = (rows + kBlock - 1) / kBlock, along = (cols + kBlock - 1) / kBlock;
  return pelk::run(
      job->batch * down * along, job->threads, job->parallel, [&](int64_t item) {
        const int64_t n = item / (down * along);
        const int64_t i = item / along % down * kBlock, j = item % along * kBlock;
        transpose(
            from->data + (n * from->batch_stride + i * from->row_stride + j) * size,
            from->row_stride,
            const_cast<char*>(to->data) +
                (n * to->batch_stride + j * to->row_stride + i) * size,
            to->row_stride, rows - i < kBlock ? rows - i : kBlock,
            cols - j < kBlock ? cols - j : kBlock, pelk::Type(job->type));
      });
}

// A call on float32 maps in either layout, with kernels of row_cells x col_cells taps, each
// a parameter of its own.
//
// Maps of planes are brought into the other layout a vector of channels at a time. The
// last vector overlaps the one before, whose results those channels take.
struct PixelCall {
  const PelkJob* job;
  const pelk::Kernels* kernels;
  int64_t lanes, vectors, pixels;
  pelk::PixelJob all, block;  // of all channels, of a vector of them in one image

  explicit PixelCall(const PelkJob* call)
      : job(call),
        kernels(pelk::versions[call->version].kernels),
        lanes(kernels->pixels->lanes),
        vectors((call->channels + lanes - 1) / lanes),
        pixels(call->height * call->width),
        all{call->batch,     call->channels,  call->height,  call->width,
            call->row_cells, call->col_cells, call->channels},
        block(all) {
    block.batch = 1;
    block.channels = lanes;
  }

  int64_t channel(int64_t vector) const { return kernels->pixels->channel(all, vector); }
  int64_t skip(int64_t vector) const { return vector * lanes - channel(vector); }
  size_t block_bytes() const { return pelk::whole_lines(pixels * lanes * sizeof(float)); }

  static pelk::Pixels of(const PelkTensor* maps, int64_t n = 0) {
    float* data = const_cast<float*>(reinterpret_cast<const float*>(maps->data));
    return {data + n * maps->batch_stride, maps->batch_stride, maps->row_stride};
  }

  // Reads a vector of channels of an image of planes.
  pelk::Pixels read(const PelkTensor* planes, int64_t n, int64_t channel,
                    char* memory) const {
    const float* from = of(planes, n).data + channel * planes->row_stride;
    (*kernels->transpose)(from, planes->row_stride, memory, lanes, lanes, pixels,
                          pelk::kFloat32);
    return {reinterpret_cast<float*>(memory), 0, lanes};
  }

  // Writes the channels of a vector but for the first `skip` ones.
  void write(const pelk::Pixels& from, const PelkTensor* planes, int64_t n,
             int64_t channel, int64_t skip, char* memory) const {
    float* to = of(planes, n).data + channel * planes->row_stride;
    if (skip == 0) {
      (*kernels->transpose)(from.data, lanes, to, planes->row_stride, pixels, lanes,
                            pelk::kFloat32);
      return;
    }
    float* whole = reinterpret_cast<float*>(memory);
    (*kernels->transpose)(from.data, lanes, whole, pixels, pixels, lanes, pelk::kFloat32);
    for (int64_t c = skip; c < lanes; ++c)
      std::memcpy(to + c * planes->row_stride, whole + c * pixels,
                  pixels * sizeof(float));
  }
};

// pelk_convolve for float32 maps, of planes or else of pixels.
PELK_EXPORT int pelk_convolve_pixels(const PelkJob* job, int32_t planes,
                                     const PelkTensor* x, const float* weight,
                                     const float* bias, const PelkTensor* y) try {
  const PixelCall call(job);
  const int64_t taps = int64_t(job->row_cells) * job->col_cells;
  std::vector<float> turned(taps * job->channels);  // [tap][channel]
  (*call.kernels->transpose)(weight, taps, turned.data(), job->channels, job->channels,
                             taps, pelk::kFloat32);
  weight = turned.data();
  const auto convolve = call.kernels->pixels->convolve;
  if (planes) {
    const size_t bytes = call.block_bytes();
    return pelk::run(
        job->batch * call.vectors, job->threads, job->parallel, [&](int64_t item) {
          const int64_t n = item / call.vectors, vector = item % call.vectors;
          const int64_t channel = call.channel(vector);
          char* memory = static_cast<char*>(pelk::Scratch::get(3 * bytes));
          const pelk::Pixels in = call.read(x, n, channel, memory);
          const pelk::Pixels out = {reinterpret_cast<float*>(memory + bytes), 0,
                                    call.lanes};
          convolve(call.block, in, weight + channel, bias ? bias + channel : nullptr, out,
                   0, job->height);
          call.write(out, y, n, channel, call.skip(vector), memory + 2 * bytes);
        });
  }
  // Rows that follow each other find most of their input in the cache.
  int64_t rows = job->batch * job->height / (8 * job->threads);
  rows = rows < 1 ? 1 : rows > 8 ? 8 : rows;
  const int64_t parts = (job->height + rows - 1) / rows;
  return pelk::run(job->batch * parts, job->threads, job->parallel, [&](int64_t item) {
    const int64_t n = item / parts, top = item % parts * rows;
    const int64_t bottom = top + rows < job->height ? top + rows : job->height;
    convolve(call.all, call.of(x, n), weight, bias, call.of(y, n), top, bottom);
  });
} catch (const std::bad_alloc&) {
  return 1;
}

// pelk_weight_grad for the same; `result` is ordered [tap][channel].
PELK_EXPORT int pelk_weight_grad_pixels(const PelkJob* job, int32_t planes,
                                        const PelkTensor* x, const PelkTensor* grad,
                                        float* result) {
  const PixelCall call(job);
  const pelk::PixelKernels& kernels = *call.kernels->pixels;
  const size_t sums = pelk::whole_lines(kernels.scratch(call.all));
  const size_t image = call.block_bytes();
  // Few vectors of channels leave the kernel's rows to share out.
  int64_t parts = (8 * job->threads + call.vectors - 1) / call.vectors;
  if (parts > job->row_cells) parts = job->row_cells;
  if (planes && parts > 2) parts = 2;  // each reads all of its channels
  return pelk::run(
      call.vectors * parts, job->threads, job->parallel, [&](int64_t item) {
        const int64_t part = item % parts, vector = item / parts;
        const int64_t channel = call.channel(vector), skip = call.skip(vector);
        const int64_t first = job->row_cells * part / parts;
        const int64_t last = job->row_cells * (part + 1) / parts;
        char* memory =
            static_cast<char*>(pelk::Scratch::get(sums + (planes ? 2 * image : 0)));
        if (!planes) {
          kernels.weight_grad(call.all, call.of(x), call.of(grad), channel, skip, first,
                              last, true, true, result, memory);
          return;
        }
        for (int64_t n = 0; n < job->batch; ++n)
          kernels.weight_grad(call.block, call.read(x, n, channel, memory + sums),
                              call.read(grad, n, channel, memory + sums + image), 0, skip,
                              first, last, n == 0, n + 1 == job->batch, result + channel,
                              memory);
      });
}

}  // extern "C"
