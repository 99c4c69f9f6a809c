// The C interface of the CPU kernels, which `backends/cpu/library.py` mirrors. It knows
// nothing of torch, so it outlives torch's releases.

#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "channel_blocks.h"
#include "instruction_sets.h"
#include "kernels.h"
#include "plan.h"
#include "scratch.h"
#include "threads.h"

#define PELK_EXPORT __attribute__((visibility("default")))

extern "C" {

// Counted up whenever a function or a structure of this file changes its meaning; the
// other number is in library.py.
constexpr int kAbi = 2;

// A tensor (N, C, H, W) as a batch of matrices, strides in elements: of planes, a row per
// channel, or of pixels, a row per pixel.
struct PelkTensor {
  const char* data;
  int64_t batch_stride, row_stride;
};

struct PelkJob {
  int32_t instruction_set, threads, type;
  int32_t kernel_rows, kernel_cols;  // parameters of a kernel: cells, or taps if dense
  int32_t vertical_length, horizontal_length;  // of Fourier transforms; 0 for none
  const int32_t *row_grid, *col_grid;          // taps per cell; null for one each
  int64_t batch, channels, height, width;
  pelk::Parallel parallel;
};

// What the functions that compute return.
enum Status : int { kDone = 0, kOutOfMemory = 1, kWrongLength = 2 };

}  // extern "C"

namespace {

const pelk::Kernels& kernels_of(const PelkJob* job) {
  return *pelk::instruction_sets[job->instruction_set].kernels;
}

constexpr int64_t element_size(int32_t type) { return type == pelk::kFloat32 ? 4 : 2; }

int64_t kernel_size(const PelkJob* job) {
  return int64_t(job->kernel_rows) * job->kernel_cols;
}

pelk::Plane plane_of(const PelkJob* job, const PelkTensor* tensor, int64_t n, int64_t c) {
  const int64_t at = n * tensor->batch_stride + c * tensor->row_stride;
  return {tensor->data + at * element_size(job->type), job->height, job->width,
          pelk::Type(job->type)};
}

PelkTensor contiguous(const PelkJob* job, const char* data) {
  const int64_t plane = job->height * job->width;
  return {data, job->channels * plane, plane};
}

// Channel c of all images.
pelk::Images images_of(const PelkJob* job, const PelkTensor* tensor, int64_t c) {
  const int64_t size = element_size(job->type);
  // Threads take channels in turn.
  const bool more = c + job->threads < job->channels;
  return {plane_of(job, tensor, 0, c), job->batch, tensor->batch_stride * size,
          more ? job->threads * tensor->row_stride * size : 0};
}

// What calls by Fourier transforms have in common.
struct FourierCall {
  pelk::AxisPlan row_plan, col_plan;
  pelk::Axis rows, cols;  // point into the plans
  pelk::Transforms transforms;
  const pelk::FourierKernels& kernels;
  size_t scratch_bytes;

  explicit FourierCall(const PelkJob* job)
      : row_plan(job->row_grid, job->kernel_rows),
        col_plan(job->col_grid, job->kernel_cols),
        rows(row_plan.axis()),
        cols(col_plan.axis()),
        transforms{},
        kernels(job->horizontal_length ? *kernels_of(job).fft
                                       : *kernels_of(job).column_fft) {
    transforms.vertical = pelk::plan_transform(job->vertical_length, job->height, rows);
    if (job->horizontal_length)
      transforms.horizontal =
          pelk::plan_transform(job->horizontal_length, job->width, cols);
    scratch_bytes = kernels.scratch(transforms, rows, cols, job->width);
  }
};

pelk::PixelProblem pixel_problem(const PelkJob* job) {
  return {job->batch,       job->channels,    job->height,  job->width,
          job->kernel_rows, job->kernel_cols, job->channels};
}

// An image of float32 maps.
float* image_of(const PelkTensor* maps, int64_t n) {
  float* data = const_cast<float*>(reinterpret_cast<const float*>(maps->data));
  return data + n * maps->batch_stride;
}

pelk::Pixels pixels_of(const PelkTensor* maps, int64_t n) {
  return {image_of(maps, n), maps->batch_stride, maps->row_stride};
}

}  // namespace

extern "C" {

PELK_EXPORT int pelk_abi() { return kAbi; }

PELK_EXPORT int pelk_job_bytes() { return sizeof(PelkJob); }

// The i-th instruction set, best first: its name, or null past the last.
PELK_EXPORT const char* pelk_instruction_set(int i) {
  return pelk::instruction_sets[i].name;
}

PELK_EXPORT int pelk_instruction_set_supported(int i) {
  return pelk::instruction_sets[i].supported();
}

// Requests huge pages for memory that is about to be written, where the system has them.
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

// to[n][j][i] = from[n][i][j] for `rows` rows and `cols` columns of `from`. Reads the
// job's instruction set, threads, type and batch.
PELK_EXPORT int pelk_transpose(const PelkJob* job, const PelkTensor* from,
                               const PelkTensor* to, int64_t rows, int64_t cols) {
  constexpr int64_t kBlock = 128;  // several cache lines each way
  const auto transpose = *kernels_of(job).transpose;
  const int64_t size = element_size(job->type);
  const int64_t down = (rows + kBlock - 1) / kBlock,
                across = (cols + kBlock - 1) / kBlock;
  return pelk::run(
      job->batch * down * across, job->threads, job->parallel, [&](int64_t item) {
        const int64_t n = item / (down * across);
        const int64_t i = item / across % down * kBlock, j = item % across * kBlock;
        transpose(from->data + (n * from->batch_stride + i * from->row_stride + j) * size,
                  from->row_stride,
                  const_cast<char*>(to->data) +
                      (n * to->batch_stride + j * to->row_stride + i) * size,
                  to->row_stride, rows - i < kBlock ? rows - i : kBlock,
                  cols - j < kBlock ? cols - j : kBlock, pelk::Type(job->type));
      });
}

// y (contiguous) = convolution of x with `weight`, (C, kernel_rows, kernel_cols) floats,
// by direct sums. `bias` may be null.
PELK_EXPORT int pelk_convolve(const PelkJob* job, const PelkTensor* x,
                              const float* weight, const float* bias, char* y) {
  const pelk::DirectKernels& kernels = *kernels_of(job).direct;
  const pelk::KernelSize kernel = {job->kernel_rows, job->kernel_cols};
  const int64_t plane_bytes = job->height * job->width * element_size(job->type);
  const int64_t strips = kernels.strips(job->width);
  const size_t bytes = kernels.convolve_scratch(kernel, job->width);
  return pelk::run(job->batch * job->channels * strips, job->threads, job->parallel,
                   [&](int64_t item) {
                     const int64_t plane = item / strips;
                     const int64_t n = plane / job->channels, c = plane % job->channels;
                     kernels.convolve(kernel, plane_of(job, x, n, c),
                                      weight + c * kernel_size(job),
                                      bias ? bias[c] : 0.0f, y + plane * plane_bytes,
                                      item % strips, pelk::Scratch::get(bytes));
                   });
}

// result (C, kernel_rows, kernel_cols) = gradient of pelk_convolve to its weights.
PELK_EXPORT int pelk_weight_grad(const PelkJob* job, const PelkTensor* x,
                                 const PelkTensor* grad, float* result) {
  const pelk::DirectKernels& kernels = *kernels_of(job).direct;
  const pelk::KernelSize kernel = {job->kernel_rows, job->kernel_cols};
  const int64_t taps = kernel_size(job);
  const size_t sums_bytes = pelk::whole_lines(taps * sizeof(double));
  const size_t bytes =
      sums_bytes + kernels.weight_grad_scratch(kernel, job->height, job->width);
  // A channel is one item: its sum over the batch has one order.
  return pelk::run(job->channels, job->threads, job->parallel, [&](int64_t c) {
    char* memory = pelk::Scratch::get(bytes);
    double* sums = reinterpret_cast<double*>(memory);
    std::memset(sums, 0, sums_bytes);
    for (int64_t n = 0; n < job->batch; ++n)
      kernels.weight_grad(kernel, plane_of(job, x, n, c), plane_of(job, grad, n, c), sums,
                          memory + sums_bytes);
    for (int64_t i = 0; i < taps; ++i) result[c * taps + i] = float(sums[i]);
  });
}

// pelk_convolve by Fourier transforms.
PELK_EXPORT int pelk_fourier_convolve(const PelkJob* job, const PelkTensor* x,
                                      const float* weight, const float* bias,
                                      char* y) try {
  const FourierCall call(job);
  const PelkTensor out = contiguous(job, y);
  // A channel is one item: its kernel is transformed once.
  return pelk::run(job->channels, job->threads, job->parallel, [&](int64_t c) {
    call.kernels.convolve(call.transforms, call.rows, call.cols, images_of(job, x, c),
                          weight + c * kernel_size(job), bias ? bias[c] : 0.0f,
                          images_of(job, &out, c),
                          pelk::Scratch::get(call.scratch_bytes));
  });
} catch (const std::bad_alloc&) {
  return kOutOfMemory;
} catch (const std::invalid_argument&) {
  return kWrongLength;
}

// Both gradients of pelk_fourier_convolve. Either result may be null; then `weight` or
// `x`, which only it needs, is not read.
PELK_EXPORT int pelk_fourier_gradients(const PelkJob* job, const PelkTensor* x,
                                       const PelkTensor* grad, const float* weight,
                                       char* grad_x, float* grad_weight) try {
  const FourierCall call(job);
  const PelkTensor out = contiguous(job, grad_x);
  return pelk::run(job->channels, job->threads, job->parallel, [&](int64_t c) {
    const pelk::Images images = images_of(job, &out, c);
    call.kernels.gradients(call.transforms, call.rows, call.cols, images_of(job, x, c),
                           images_of(job, grad, c),
                           grad_x ? weight + c * kernel_size(job) : nullptr,
                           grad_x ? &images : nullptr,
                           grad_weight ? grad_weight + c * kernel_size(job) : nullptr,
                           pelk::Scratch::get(call.scratch_bytes));
  });
} catch (const std::bad_alloc&) {
  return kOutOfMemory;
} catch (const std::invalid_argument&) {
  return kWrongLength;
}

// pelk_convolve for float32 maps, of planes or else of pixels, by sums over vectors of
// channels; y has the layout of x.
PELK_EXPORT int pelk_convolve_pixels(const PelkJob* job, int32_t planes,
                                     const PelkTensor* x, const float* weight,
                                     const float* bias, const PelkTensor* y) try {
  const pelk::Kernels& kernels = kernels_of(job);
  const pelk::PixelProblem problem = pixel_problem(job);
  const int64_t taps = kernel_size(job);
  std::vector<float> by_tap(taps * job->channels);  // [tap][channel]
  (*kernels.transpose)(weight, taps, by_tap.data(), job->channels, job->channels, taps,
                       pelk::kFloat32);
  weight = by_tap.data();
  const auto convolve = kernels.pixels->convolve;
  if (planes) {
    const pelk::ChannelBlocks blocks(kernels, problem);
    return pelk::run(
        job->batch * blocks.count, job->threads, job->parallel, [&](int64_t item) {
          const int64_t n = item / blocks.count, block = item % blocks.count;
          const int64_t channel = blocks.first_channel(block);
          char* memory = pelk::Scratch::get(3 * blocks.bytes);
          const pelk::Pixels in = blocks.pack(image_of(x, n) + channel * x->row_stride,
                                              x->row_stride, memory);
          const pelk::Pixels out = blocks.in_memory(memory + blocks.bytes);
          convolve(blocks.problem, in, weight + channel, bias ? bias + channel : nullptr,
                   out, 0, job->height);
          blocks.unpack(out, image_of(y, n) + channel * y->row_stride, y->row_stride,
                        blocks.skipped(block), memory + 2 * blocks.bytes);
        });
  }
  // Consecutive rows find most of their input in the cache.
  int64_t rows = job->batch * job->height / (8 * job->threads);
  rows = rows < 1 ? 1 : rows > 8 ? 8 : rows;
  const int64_t parts = (job->height + rows - 1) / rows;
  return pelk::run(job->batch * parts, job->threads, job->parallel, [&](int64_t item) {
    const int64_t n = item / parts, top = item % parts * rows;
    const int64_t bottom = top + rows < job->height ? top + rows : job->height;
    convolve(problem, pixels_of(x, n), weight, bias, pixels_of(y, n), top, bottom);
  });
} catch (const std::bad_alloc&) {
  return kOutOfMemory;
}

// Gradient of pelk_convolve_pixels to its weights; `result` is ordered [tap][channel].
PELK_EXPORT int pelk_weight_grad_pixels(const PelkJob* job, int32_t planes,
                                        const PelkTensor* x, const PelkTensor* grad,
                                        float* result) {
  const pelk::PixelKernels& kernels = *kernels_of(job).pixels;
  const pelk::PixelProblem problem = pixel_problem(job);
  const pelk::ChannelBlocks blocks(kernels_of(job), problem);
  const size_t sums_bytes = pelk::whole_lines(kernels.scratch(problem));
  const size_t bytes = sums_bytes + (planes ? 2 * blocks.bytes : 0);
  // With few blocks the kernel's rows are divided among the threads too.
  int64_t parts = (8 * job->threads + blocks.count - 1) / blocks.count;
  if (parts > job->kernel_rows) parts = job->kernel_rows;
  if (planes && parts > 2) parts = 2;  // each packs the whole block
  return pelk::run(blocks.count * parts, job->threads, job->parallel, [&](int64_t item) {
    const int64_t part = item % parts, block = item / parts;
    const int64_t channel = blocks.first_channel(block);
    const int64_t skip = blocks.skipped(block);
    const int64_t first = job->kernel_rows * part / parts;
    const int64_t last = job->kernel_rows * (part + 1) / parts;
    char* sums = pelk::Scratch::get(bytes);
    if (!planes) {
      kernels.weight_grad(problem, pixels_of(x, 0), pixels_of(grad, 0), channel, skip,
                          first, last, true, true, result, sums);
      return;
    }
    char* memory = sums + sums_bytes;
    for (int64_t n = 0; n < job->batch; ++n) {
      const pelk::Pixels in =
          blocks.pack(image_of(x, n) + channel * x->row_stride, x->row_stride, memory);
      const pelk::Pixels own = blocks.pack(image_of(grad, n) + channel * grad->row_stride,
                                           grad->row_stride, memory + blocks.bytes);
      kernels.weight_grad(blocks.problem, in, own, 0, skip, first, last, n == 0,
                          n + 1 == job->batch, result + channel, sums);
    }
  });
}

}  // extern "C"
