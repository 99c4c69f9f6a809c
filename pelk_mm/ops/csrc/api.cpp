// What the C interface does with its arguments before and after the kernels.

#include "api.h"

#include <algorithm>
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

namespace pelk {
namespace {

// The status for the exception being handled.
Status failure() try { throw; } catch (const std::bad_alloc&) {
  return kOutOfMemory;
} catch (const std::invalid_argument&) {
  return kWrongLength;
}

const Kernels& kernels_of(const Job* job) {
  return *instruction_sets[job->instruction_set].kernels;
}

constexpr int64_t element_size(int32_t type) { return type == kFloat32 ? 4 : 2; }

int64_t kernel_size(const Job* job) {
  return int64_t(job->kernel_rows) * job->kernel_cols;
}

// Calls work(item, memory) for each item, with as much scratch memory as asked for.
template <class Work>
int for_each(const Job* job, int64_t items, size_t bytes, const Work& work) {
  return run(items, job->threads, job->parallel,
             [&](int64_t item) { work(item, Scratch::get(bytes)); });
}

Plane plane_of(const Job* job, const Tensor* tensor, int64_t n, int64_t c) {
  const int64_t at = n * tensor->batch_stride + c * tensor->row_stride;
  return {tensor->data + at * element_size(job->type), job->height, job->width,
          Type(job->type)};
}

Tensor contiguous(const Job* job, const char* data) {
  const int64_t plane = job->height * job->width;
  return {data, job->channels * plane, plane};
}

// Channel c of all images.
Images images_of(const Job* job, const Tensor* tensor, int64_t c) {
  const int64_t size = element_size(job->type);
  // Threads take channels in turn.
  const bool more = c + job->threads < job->channels;
  return {plane_of(job, tensor, 0, c), job->batch, tensor->batch_stride * size,
          more ? job->threads * tensor->row_stride * size : 0};
}

// What calls by Fourier transforms have in common.
struct FourierCall {
  AxisPlan rows, cols;
  FourierProblem problem;  // points into the plans
  const FourierKernels& kernels;

  FourierCall(const Job* job, bool gradients)
      : rows(job->row_grid, job->kernel_rows, false),
        cols(job->col_grid, job->kernel_cols, gradients && !job->horizontal_length),
        problem{},
        kernels(job->horizontal_length ? *kernels_of(job).fft
                                       : *kernels_of(job).column_fft) {
    // The input is placed half a kernel, clipped to the input, from the origin.
    problem.vertical =
        plan_transform(job->vertical_length, job->height + rows.clip(job->height));
    if (job->horizontal_length)
      problem.horizontal =
          plan_transform(job->horizontal_length, job->width + cols.clip(job->width));
    problem.rows = rows.axis();
    problem.cols = cols.axis();
    problem.width = job->width;
  }
};

PixelProblem pixel_problem(const Job* job) {
  return {job->batch,       job->channels,    job->height,  job->width,
          job->kernel_rows, job->kernel_cols, job->channels};
}

// An image of float32 maps.
Pixels image_of(const Tensor* maps, int64_t n) {
  float* data = const_cast<float*>(reinterpret_cast<const float*>(maps->data));
  return {data + n * maps->batch_stride, maps->batch_stride, maps->row_stride};
}

}  // namespace

int pelk_abi() { return kAbi; }

int pelk_job_bytes() { return sizeof(Job); }

const char* pelk_instruction_set(int i) { return instruction_sets[i].name; }

int pelk_instruction_set_supported(int i) { return instruction_sets[i].supported(); }

void pelk_use_huge_pages(char* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (uintptr_t(data) + page - 1) / page * page;
  const uintptr_t end = (uintptr_t(data) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

int pelk_transpose(const Job* job, const Tensor* from, const Tensor* to, int64_t rows,
                   int64_t cols) {
  constexpr int64_t kBlock = 128;  // several cache lines each way
  const auto transpose = *kernels_of(job).transpose;
  const int64_t size = element_size(job->type);
  const int64_t down = (rows + kBlock - 1) / kBlock,
                across = (cols + kBlock - 1) / kBlock;
  return for_each(job, job->batch * down * across, 0, [&](int64_t item, char*) {
    const int64_t n = item / (down * across);
    const int64_t i = item / across % down * kBlock, j = item % across * kBlock;
    transpose(from->data + (n * from->batch_stride + i * from->row_stride + j) * size,
              from->row_stride,
              const_cast<char*>(to->data) +
                  (n * to->batch_stride + j * to->row_stride + i) * size,
              to->row_stride, std::min(rows - i, kBlock), std::min(cols - j, kBlock),
              Type(job->type));
  });
}

int pelk_convolve(const Job* job, const Tensor* x, const float* weight, const float* bias,
                  char* y) {
  const DirectKernels& kernels = *kernels_of(job).direct;
  const KernelSize kernel = {job->kernel_rows, job->kernel_cols};
  const Tensor out = contiguous(job, y);
  const int64_t strips = kernels.strips(job->width), planes = job->batch * job->channels;
  return for_each(job, planes * strips, kernels.convolve_scratch(kernel, job->width),
                  [&](int64_t item, char* memory) {
                    const int64_t plane = item / strips;
                    const int64_t n = plane / job->channels, c = plane % job->channels;
                    kernels.convolve(kernel, plane_of(job, x, n, c),
                                     weight + c * kernel_size(job), bias ? bias[c] : 0.0f,
                                     plane_of(job, &out, n, c), item % strips, memory);
                  });
}

int pelk_weight_grad(const Job* job, const Tensor* x, const Tensor* grad, float* result) {
  const DirectKernels& kernels = *kernels_of(job).direct;
  const KernelSize kernel = {job->kernel_rows, job->kernel_cols};
  const size_t bytes = kernels.weight_grad_scratch(kernel, job->height, job->width);
  // A channel is one item: its sum over the batch has one order.
  return for_each(job, job->channels, bytes, [&](int64_t c, char* memory) {
    kernels.weight_grad(kernel, images_of(job, x, c), images_of(job, grad, c),
                        result + c * kernel_size(job), memory);
  });
}

int pelk_fourier_convolve(const Job* job, const Tensor* x, const float* weight,
                          const float* bias, char* y) try {
  const FourierCall call(job, false);
  const Tensor out = contiguous(job, y);
  const size_t bytes = call.kernels.scratch(call.problem);
  // A channel is one item: its kernel is transformed once.
  return for_each(job, job->channels, bytes, [&](int64_t c, char* memory) {
    call.kernels.convolve(call.problem, images_of(job, x, c),
                          weight + c * kernel_size(job), bias ? bias[c] : 0.0f,
                          images_of(job, &out, c), memory);
  });
} catch (...) {
  return failure();
}

int pelk_fourier_gradients(const Job* job, const Tensor* x, const Tensor* grad,
                           const float* weight, char* grad_x, float* grad_weight) try {
  const FourierCall call(job, true);
  const Tensor out = contiguous(job, grad_x);
  const size_t bytes = call.kernels.scratch(call.problem);
  return for_each(job, job->channels, bytes, [&](int64_t c, char* memory) {
    // Nothing is computed of addresses that may be null.
    const Images in = grad_weight ? images_of(job, x, c) : Images{};
    const Images images = grad_x ? images_of(job, &out, c) : Images{};
    call.kernels.gradients(
        call.problem, in, images_of(job, grad, c),
        grad_x ? weight + c * kernel_size(job) : nullptr, grad_x ? &images : nullptr,
        grad_weight ? grad_weight + c * kernel_size(job) : nullptr, memory);
  });
} catch (...) {
  return failure();
}

int pelk_convolve_pixels(const Job* job, int32_t planes, const Tensor* x,
                         const float* weight, const float* bias, const Tensor* y) try {
  const Kernels& kernels = kernels_of(job);
  const PixelProblem problem = pixel_problem(job);
  const int64_t taps = kernel_size(job);
  std::vector<float> by_tap(taps * job->channels);  // [tap][channel]
  (*kernels.transpose)(weight, taps, by_tap.data(), job->channels, job->channels, taps,
                       kFloat32);
  weight = by_tap.data();
  const auto convolve = kernels.pixels->convolve;
  if (planes) {
    const ChannelBlocks blocks(kernels, problem);
    return for_each(job, job->batch * blocks.count, 3 * blocks.bytes,
                    [&](int64_t item, char* memory) {
                      const int64_t n = item / blocks.count, block = item % blocks.count;
                      const int64_t channel = blocks.first_channel(block);
                      const Pixels in = blocks.pack(image_of(x, n), block, memory);
                      const Pixels out = blocks.in_memory(memory + blocks.bytes);
                      convolve(blocks.problem, in, weight + channel,
                               bias ? bias + channel : nullptr, out, 0, job->height);
                      blocks.unpack(out, image_of(y, n), block,
                                    memory + 2 * blocks.bytes);
                    });
  }
  // Consecutive rows find most of their input in the cache.
  const int64_t rows =
      std::clamp<int64_t>(job->batch * job->height / (8 * job->threads), 1, 8);
  const int64_t parts = (job->height + rows - 1) / rows;
  return for_each(job, job->batch * parts, 0, [&](int64_t item, char*) {
    const int64_t n = item / parts, top = item % parts * rows;
    convolve(problem, image_of(x, n), weight, bias, image_of(y, n), top,
             std::min(top + rows, job->height));
  });
} catch (...) {
  return failure();
}

int pelk_weight_grad_pixels(const Job* job, int32_t planes, const Tensor* x,
                            const Tensor* grad, float* result) {
  const PixelKernels& kernels = *kernels_of(job).pixels;
  const PixelProblem problem = pixel_problem(job);
  const ChannelBlocks blocks(kernels_of(job), problem);
  const size_t sums_bytes = whole_lines(kernels.scratch(problem));
  const size_t bytes = sums_bytes + (planes ? 2 * blocks.bytes : 0);
  // With few blocks the kernel's rows are divided among the threads too; of planes, each
  // part packs the whole block.
  const int64_t parts =
      std::min<int64_t>((8 * job->threads + blocks.count - 1) / blocks.count,
                        planes ? std::min(job->kernel_rows, 2) : job->kernel_rows);
  return for_each(job, blocks.count * parts, bytes, [&](int64_t item, char* sums) {
    const int64_t part = item % parts, block = item / parts;
    const int64_t channel = blocks.first_channel(block);
    const int64_t skip = blocks.skipped(block);
    const int64_t first = job->kernel_rows * part / parts;
    const int64_t last = job->kernel_rows * (part + 1) / parts;
    if (!planes) {
      kernels.weight_grad(problem, image_of(x, 0), image_of(grad, 0), channel, skip,
                          first, last, true, true, result, sums);
      return;
    }
    char* memory = sums + sums_bytes;
    for (int64_t n = 0; n < job->batch; ++n) {
      const Pixels in = blocks.pack(image_of(x, n), block, memory);
      const Pixels own = blocks.pack(image_of(grad, n), block, memory + blocks.bytes);
      kernels.weight_grad(blocks.problem, in, own, 0, skip, first, last, n == 0,
                          n + 1 == job->batch, result + channel, sums);
    }
  });
}

}  // namespace pelk
