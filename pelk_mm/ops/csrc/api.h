// The C interface of the CPU kernels, which `backends/cpu/library.py` mirrors. It knows
// nothing of torch, so it outlives torch's releases.
#pragma once

#include <cstddef>
#include <cstdint>

#include "threads.h"

#define PELK_EXPORT extern "C" __attribute__((visibility("default")))

namespace pelk {

// Counted up whenever a function or a structure of this file changes its meaning; the
// other number is in library.py.
constexpr int kAbi = 2;

// A tensor (N, C, H, W) as a batch of matrices, strides in elements: of planes, a row per
// channel, or of pixels, a row per pixel.
struct Tensor {
  const char* data;
  int64_t batch_stride, row_stride;
};

struct Job {
  int32_t instruction_set, threads, type;  // the latter a Type of kernels.h
  int32_t kernel_rows, kernel_cols;  // parameters of a kernel: cells, or taps if dense
  int32_t vertical_length, horizontal_length;  // of Fourier transforms; 0 for none
  const int32_t *row_grid, *col_grid;          // of Fourier transforms: taps per cell
  int64_t batch, channels, height, width;
  Parallel parallel;
};

// What the functions that compute return.
enum Status : int { kDone = 0, kOutOfMemory = 1, kWrongLength = 2 };

PELK_EXPORT int pelk_abi();

PELK_EXPORT int pelk_job_bytes();

// The i-th instruction set, best first: its name, or null past the last.
PELK_EXPORT const char* pelk_instruction_set(int i);

PELK_EXPORT int pelk_instruction_set_supported(int i);

// Requests huge pages for memory that is about to be written, where the system has them.
PELK_EXPORT void pelk_use_huge_pages(char* data, size_t bytes);

// to[n][j][i] = from[n][i][j] for `rows` rows and `cols` columns of `from`. Reads the
// job's instruction set, threads, type and batch.
PELK_EXPORT int pelk_transpose(const Job* job, const Tensor* from, const Tensor* to,
                               int64_t rows, int64_t cols);

// y (contiguous) = convolution of x with `weight`, (C, kernel_rows, kernel_cols) floats,
// by direct sums. `bias` may be null.
PELK_EXPORT int pelk_convolve(const Job* job, const Tensor* x, const float* weight,
                              const float* bias, char* y);

// result (C, kernel_rows, kernel_cols) = gradient of pelk_convolve to its weights.
PELK_EXPORT int pelk_weight_grad(const Job* job, const Tensor* x, const Tensor* grad,
                                 float* result);

// pelk_convolve by Fourier transforms.
PELK_EXPORT int pelk_fourier_convolve(const Job* job, const Tensor* x,
                                      const float* weight, const float* bias, char* y);

// Both gradients of pelk_fourier_convolve. Either result may be null; then `weight` or
// `x`, which only it needs, is not read.
PELK_EXPORT int pelk_fourier_gradients(const Job* job, const Tensor* x,
                                       const Tensor* grad, const float* weight,
                                       char* grad_x, float* grad_weight);

// pelk_convolve for float32 maps, of planes or else of pixels, by sums over vectors of
// channels; y has the layout of x.
PELK_EXPORT int pelk_convolve_pixels(const Job* job, int32_t planes, const Tensor* x,
                                     const float* weight, const float* bias,
                                     const Tensor* y);

// Gradient of pelk_convolve_pixels to its weights; `result` is ordered [tap][channel].
PELK_EXPORT int pelk_weight_grad_pixels(const Job* job, int32_t planes, const Tensor* x,
                                        const Tensor* grad, float* result);

}  // namespace pelk
