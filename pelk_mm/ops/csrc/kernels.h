// What the instruction-set versions of the kernels share with the library around
// them. Everything here is plain data: kernels.cpp is compiled once a version with
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
};

extern const Kernels kPortable;
#ifdef PELK_X86
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

}  // namespace pelk
