// What the instruction-set versions of the kernels share with the library around
// them. Everything here is plain data: the kernels are compiled once a version with
// different machine flags, and an inline function of the standard library used there
// could be the copy that the linker keeps for all of them.
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
// input itself; level q > 0 is levels[q - 1]. A dense axis has cells of one tap.
struct Axis {
  int32_t cells, taps, radius, level_count;
  const int32_t* start;  // cells + 1 first taps; the last is `taps`
  const int32_t* level;  // of each cell, the level that sums as many taps
  const Level* levels;
};

struct Plane {
  const void* data;
  int64_t height, width;
  Type type;
};

// One channel of a batch; steps in bytes.
struct Images {
  Plane first;
  int64_t count, stride;
  int64_t next;  // to the channel that the thread takes up afterwards, 0 if there is none
};

// A complex Fourier transform, one pass a radix. It leaves frequency k at position[k];
// the inverse starts from that order.
struct Transform {
  int32_t length, passes;
  const int32_t* radices;
  const float* twiddles;  // of each pass, for every p > 0, the cosine and sine of each output
  const int32_t* position;
};

// Lengths down and along a plane: even, of factors 2, 3 and 5, at least the plane's size
// and half the kernel's. Transforms of columns alone leave `along` empty.
struct Fourier {
  Transform down, along;
};

// Convolutions by Fourier transforms, a channel of all images at a time.
struct FourierKernels {
  size_t (*scratch)(const Fourier& fourier, const Axis& rows, const Axis& cols,
                    int64_t width);
  void (*convolve)(const Fourier& fourier, const Axis& rows, const Axis& cols,
                   const Images& x, const float* weight, float bias, const Images& y,
                   void* scratch);
  // Of the two results, the one that is not wanted is null.
  void (*gradients)(const Fourier& fourier, const Axis& rows, const Axis& cols,
                    const Images& x, const Images& grad, const float* weight,
                    const Images* grad_x, float* grad_weight, void* scratch);
};

// to[j][i] = from[i][j]; steps in elements.
using TransposeBlock = void (*)(const void* from, int64_t from_step, void* to,
                                int64_t to_step, int64_t rows, int64_t cols, Type type);

// A batch of float32 maps that keep the channels of a pixel together; steps in floats.
struct Pixels {
  float* data;
  int64_t batch_stride, step;  // to the next pixel, along a row or down to the next
};

// Convolutions with dense kernels, weights ordered [kernel row][kernel column][channel].
struct PixelJob {
  int64_t batch, channels, height, width, kernel_height, kernel_width;
  int64_t weight_step;  // from tap to tap: the channels of all kernels
};

struct PixelKernels {
  int64_t lanes;  // of a vector: no fewer channels are needed
  // The channel that a vector starts from: the last vector overlaps the one before.
  int64_t (*channel)(const PixelJob& job, int64_t vector);
  size_t (*scratch)(const PixelJob& job);
  // Output rows [top, bottom) of an image. `bias` may be null.
  void (*convolve)(const PixelJob& job, const Pixels& x, const float* weight,
                   const float* bias, const Pixels& y, int64_t top, int64_t bottom);
  // Kernel rows [first, last) of the channels from `channel` on, of which the first `skip`
  // are left out of the result. Calls with the same scratch memory add up, from one that
  // `begins`; `result` is written by the one that `ends`.
  void (*weight_grad)(const PixelJob& job, const Pixels& x, const Pixels& grad,
                      int64_t channel, int64_t skip, int64_t first, int64_t last,
                      bool begins, bool ends, float* result, void* scratch);
};

struct Kernels {
  // Bytes of scratch memory that one thread needs.
  size_t (*convolve_scratch)(const Axis& rows, const Axis& cols, int64_t height,
                             int64_t width);
  size_t (*weight_grad_scratch)(const Axis& rows, const Axis& cols, int64_t height,
                                int64_t width);
  // How many strips of columns a plane is cut into; strips are independent.
  int64_t (*strips)(int64_t width);
  // One strip of one plane's output.
  void (*convolve)(const Axis& rows, const Axis& cols, const Plane& x,
                   const float* weight, float bias, void* y, int64_t strip,
                   void* scratch);
  // Adds one plane's share to `sums`, cells by cells doubles.
  void (*weight_grad)(const Axis& rows, const Axis& cols, const Plane& x,
                      const Plane& grad, double* sums, void* scratch);

  const FourierKernels *planes, *columns;
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
// Of the other files, for the table in direct.cpp.
namespace PELK_ISA {
extern const FourierKernels plane_kernels, column_kernels;
extern const PixelKernels pixel_kernels;
extern const TransposeBlock transpose_kernel;
}
#endif

}  // namespace pelk
