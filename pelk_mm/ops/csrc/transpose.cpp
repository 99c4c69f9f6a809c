// Transpositions between the two layouts of a feature map: planes (channels apart) and
// pixels (channels together, torch's channels_last).

#include "simd.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// to[j][i] = from[i][j] for kLanes by kLanes floats; strides in floats.
void transpose_tile(const float* from, int64_t from_stride, float* to,
                    int64_t to_stride) {
  Vec tile[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) tile[i] = load(from + i * from_stride);
  transpose<1>(tile);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) store(to + i * to_stride, tile[i]);
}

template <class T>
void transpose_each(const T* from, int64_t from_stride, T* to, int64_t to_stride,
                    int64_t rows, int64_t cols) {
  for (int64_t j = 0; j < cols; ++j)
    for (int64_t i = 0; i < rows; ++i) to[j * to_stride + i] = from[i * from_stride + j];
}

void transpose_block(const void* from, int64_t from_stride, void* to, int64_t to_stride,
                     int64_t rows, int64_t cols, Type type) {
  if (type != kFloat32) {
    transpose_each(static_cast<const uint16_t*>(from), from_stride,
                   static_cast<uint16_t*>(to), to_stride, rows, cols);
    return;
  }
  const float* source = static_cast<const float*>(from);
  float* target = static_cast<float*>(to);
  if (rows < kLanes || cols < kLanes) {
    transpose_each(source, from_stride, target, to_stride, rows, cols);
    return;
  }
  // The last tile of either axis overlaps the one before.
  for (int64_t row = 0; row < rows; row += kLanes) {
    const int64_t i = smaller(row, rows - kLanes);
    for (int64_t col = 0; col < cols; col += kLanes) {
      const int64_t j = smaller(col, cols - kLanes);
      transpose_tile(source + i * from_stride + j, from_stride,
                     target + j * to_stride + i, to_stride);
    }
  }
}

}  // namespace

extern const TransposeBlock transpose_kernel = transpose_block;

}  // namespace PELK_ISA
}  // namespace pelk
