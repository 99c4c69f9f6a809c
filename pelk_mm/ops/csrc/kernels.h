// What the kernels share with the library around them.
//
// The kernels are compiled once per instruction set, with different machine flags. The
// linker keeps one copy of an inline function that several files define, which could be
// one that this processor cannot run. So everything here is plain data, and the kernel
// files have internal linkage throughout and call no inline function of the standard
// library.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pelk {

enum Type : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A box sum built from two narrower ones: out[i] = in[first][i] + in[second][i + shift].
struct Level {
  int32_t first, second, size, shift;
};

// One axis of a kernel: `cells` runs of taps that share a parameter. Level 0 is the
// input itself; level q > 0 is levels[q - 1]. A dense axis has cells of one tap. One that
// is clipped to an input has only the taps that are valid for some output.
struct Axis {
  int32_t cells, taps, radius, level_count;
  const int32_t* start;  // cells + 1 first taps; the last is `taps`
  const int32_t* level;  // per cell, the level that sums as many taps
  const Level* levels;
};

struct Plane {
  const void* data;
  int64_t height, width;
  Type type;
};

// One channel of a batch; strides in bytes.
struct Images {
  Plane first;
  int64_t count, stride;
  int64_t next_channel;  // offset of the thread's next channel, 0 if there is none
};

// A pass of a Fourier transform, over points in runs of `run`.
struct Pass {
  int32_t radix, run;
  const float* twiddles;  // per p in (0, run / radix), cosine and sine of each output
};

// A complex Fourier transform. It leaves frequency k at position[k]; the inverse starts
// from that order.
struct Transform {
  int32_t length, pass_count;
  const Pass* passes;
  const int32_t* position;
};

// A convolution by Fourier transforms of a plane's columns (vertical) and rows
// (horizontal). Lengths are even, of factors 2, 3 and 5, at least the plane's size and
// half the kernel's. Axes that are transformed are clipped to the plane. The kernels that
// transform columns alone leave `horizontal` empty, and for gradients `cols` is flipped.
struct FourierProblem {
  Transform vertical, horizontal;
  Axis rows, cols;
  int64_t width;  // of the plane
};

struct KernelSize {
  int64_t height, width;
};

// Dense kernels, direct sums plane by plane; weights ordered [kernel row][kernel column].
struct DirectKernels {
  // Bytes of scratch memory per thread.
  size_t (*convolve_scratch)(const KernelSize& kernel, int64_t width);
  size_t (*weight_grad_scratch)(const KernelSize& kernel, int64_t height, int64_t width);
  // How many strips of columns a plane is cut into; strips are independent.
  int64_t (*strips)(int64_t width);
  // One strip of one plane's output.
  void (*convolve)(const KernelSize& kernel, const Plane& x, const float* weight,
                   float bias, const Plane& y, int64_t strip, void* scratch);
  void (*weight_grad)(const KernelSize& kernel, const Images& x, const Images& grad,
                      float* result, void* scratch);
};

// Convolutions by Fourier transforms, one channel of all images at a time; weights
// ordered [cell of the rows][cell of the columns].
struct FourierKernels {
  size_t (*scratch)(const FourierProblem& problem);
  void (*convolve)(const FourierProblem& problem, const Images& x, const float* weight,
                   float bias, const Images& y, void* scratch);
  // A result that is not wanted is null.
  void (*gradients)(const FourierProblem& problem, const Images& x, const Images& grad,
                    const float* weight, const Images* grad_x, float* grad_weight,
                    void* scratch);
};

// to[j][i] = from[i][j]; strides in elements.
using TransposeBlock = void (*)(const void* from, int64_t from_stride, void* to,
                                int64_t to_stride, int64_t rows, int64_t cols, Type type);

// A batch of float32 maps in channels_last layout, or of planes; strides in floats.
struct Pixels {
  float* data;
  int64_t batch_stride, stride;  // to the next pixel, or plane
};

// Convolutions with dense kernels, weights ordered [kernel row][kernel column][channel].
struct PixelProblem {
  int64_t batch, channels, height, width, kernel_height, kernel_width;
  int64_t weight_stride;  // from tap to tap: the channels of all kernels
};

struct PixelKernels {
  int64_t lanes;  // channels per vector: no fewer are needed
  // The first channel of a vector: the last vector overlaps the one before.
  int64_t (*channel)(const PixelProblem& problem, int64_t vector);
  size_t (*scratch)(const PixelProblem& problem);
  // Output rows [top, bottom) of an image. `bias` may be null.
  void (*convolve)(const PixelProblem& problem, const Pixels& x, const float* weight,
                   const float* bias, const Pixels& y, int64_t top, int64_t bottom);
  // Kernel rows [first, last) of the channels from `channel` on, of which the first
  // `skip` are left out of the result. Calls with the same scratch memory add up, from
  // one that `begins`; `result` is written by the one that `ends`.
  void (*weight_grad)(const PixelProblem& problem, const Pixels& x, const Pixels& grad,
                      int64_t channel, int64_t skip, int64_t first, int64_t last,
                      bool begins, bool ends, float* result, void* scratch);
};

// Everything that is compiled for one instruction set.
struct Kernels {
  const DirectKernels* direct;
  const FourierKernels *fft, *column_fft;
  const PixelKernels* pixels;
  const TransposeBlock* transpose;
};

namespace portable {
extern const Kernels kernels;
}
#ifdef PELK_X86
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

#ifdef PELK_ISA
// Of the kernel files, for kernel_table.cpp.
namespace PELK_ISA {
extern const DirectKernels direct_kernels;
extern const FourierKernels fft_kernels, column_fft_kernels;
extern const PixelKernels pixel_kernels;
extern const TransposeBlock transpose_kernel;
}  // namespace PELK_ISA
#endif

}  // namespace pelk
