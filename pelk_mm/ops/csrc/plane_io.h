// Reading and writing planes for Fourier transforms of their columns, for files that are
// compiled once per instruction set.
#pragma once

#include "transform.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// Bytes of a cache line.
constexpr int64_t kLine = 64;

// Complex columns made of two real ones each: kLanes columns of a plane from `first` on
// are the real parts, those from `second` on the imaginary parts. Any type; columns
// beyond the plane are zero and not written. Point `top` is the plane's first row.
class Columns {
 public:
  Columns(const Plane& plane, int64_t top, int64_t first, int64_t second, float bias)
      : plane_(plane),
        top_(top),
        last_(plane.type == kFloat32 ? plane.height * plane.width - kLanes : -1),
        bias_(bias),
        first_(columns_from(first)),
        second_(columns_from(second)) {}

  PELK_INLINE Complex load(int64_t i) const {
    const int64_t row = i - top_;
    const bool inside = uint64_t(row) < uint64_t(plane_.height);
    return {inside ? get(row, first_) : Vec{}, inside ? get(row, second_) : Vec{}};
  }

  PELK_INLINE void store(int64_t i, const Complex& z) const {
    const int64_t row = i - top_;
    if (uint64_t(row) >= uint64_t(plane_.height)) return;
    put(row, first_, z.re);
    put(row, second_, z.im);
  }

 private:
  struct Part {
    int64_t begin, count;
    Indices mask;  // all ones in the lanes of columns within the plane
  };

  Part columns_from(int64_t begin) const {
    Part part = {begin, smaller(kLanes, plane_.width - begin), {}};
    for (int64_t i = 0; i < part.count; ++i) part.mask[i] = -1;
    return part;
  }

  // Whole vectors are read and written back where they end within the plane's memory; the
  // lanes beyond the last column belong to the next row and are preserved.
  PELK_INLINE Vec get(int64_t row, const Part& part) const {
    const int64_t at = row * plane_.width + part.begin;
    if (at > last_) return get_each(at, part.count);
    return Vec(Indices(pelk::PELK_ISA::load(floats() + at)) & part.mask);
  }

  PELK_INLINE void put(int64_t row, const Part& part, Vec vector) const {
    const int64_t at = row * plane_.width + part.begin;
    if (at > last_) return put_each(at, part.count, vector);
    const Vec next = pelk::PELK_ISA::load(floats() + at);
    pelk::PELK_ISA::store(floats() + at, part.mask ? vector + bias_ : next);
  }

  float* floats() const { return static_cast<float*>(const_cast<void*>(plane_.data)); }

  // Inlined into every pass these would take a minute to compile.
  PELK_NOINLINE Vec get_each(int64_t at, int64_t count) const {
    float values[kLanes] = {};
    if (count > 0) read(values, plane_.data, at, count, plane_.type);
    return pelk::PELK_ISA::load(values);
  }

  PELK_NOINLINE void put_each(int64_t at, int64_t count, Vec vector) const {
    float values[kLanes];
    pelk::PELK_ISA::store(values, vector);
    if (count > 0)
      write(const_cast<void*>(plane_.data), at, values, count, bias_, plane_.type);
  }

  Plane plane_;
  int64_t top_, last_;  // the last element from which a vector ends within the plane
  float bias_;
  Part first_, second_;
};

// The same where all columns lie within the plane, in float32.
struct WholeColumns {
  float* data;  // the first real part
  int64_t pitch, half, top, height;
  float bias;

  PELK_INLINE Complex load(int64_t i) const {
    const int64_t row = i - top;
    const bool inside = uint64_t(row) < uint64_t(height);
    const float* from = data + row * pitch;
    return {inside ? pelk::PELK_ISA::load(from) : Vec{},
            inside ? pelk::PELK_ISA::load(from + half) : Vec{}};
  }

  PELK_INLINE void store(int64_t i, const Complex& z) const {
    const int64_t row = i - top;
    if (uint64_t(row) >= uint64_t(height)) return;
    float* to = data + row * pitch;
    pelk::PELK_ISA::store(to, z.re + bias);
    pelk::PELK_ISA::store(to + half, z.im + bias);
  }
};

// Calls `work` with the columns from `first` and from `first + half` on, as WholeColumns
// where possible.
template <class Work>
void with_columns(const Plane& plane, int64_t top, int64_t first, int64_t half,
                  float bias, const Work& work) {
  if (plane.type == kFloat32 && first + half + kLanes <= plane.width) {
    float* data = static_cast<float*>(const_cast<void*>(plane.data)) + first;
    work(WholeColumns{data, plane.width, half, top, plane.height, bias});
  } else {
    work(Columns(plane, top, first, first + half, bias));
  }
}

// The distance from a column that is a real part to the one that is its imaginary part.
int64_t half_of(int64_t width) { return round_up((width + 1) / 2, kLanes); }

// The plane that the thread reads after image n; its data is null if there is none.
Plane next_image(const Images& images, int64_t n) {
  if (n + 1 < images.count) return image(images, n + 1);
  Plane next = images.first;
  next.data = images.next_channel
                  ? static_cast<const char*>(next.data) + images.next_channel
                  : nullptr;
  return next;
}

// Prefetches a plane that is needed soon into the second-level cache, a few cache lines
// at each of `points`; nothing for a plane without data.
struct Prefetcher {
  const char* lines;
  int64_t step;

  Prefetcher(const Plane& plane, int64_t points) : lines(nullptr), step(0) {
    if (!plane.data) return;
    const int64_t bytes = plane.height * plane.width * (plane.type == kFloat32 ? 4 : 2);
    lines = static_cast<const char*>(plane.data);
    step = round_up((bytes + points - 1) / points, kLine);
  }

  PELK_INLINE void prefetch(int64_t point) const {
    for (int64_t at = point * step; at < (point + 1) * step; at += kLine)
      __builtin_prefetch(lines + at, 0, 2);
  }
};

}  // namespace
}  // namespace PELK_ISA
}  // namespace pelk
