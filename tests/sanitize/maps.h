// Feature maps in memory of their exact size, in every element type and layout.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "api.h"
#include "kernels.h"

namespace pelk {

// The same numbers in every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  // In [least, most].
  int64_t integer(int64_t least, int64_t most) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return least + int64_t((state_ >> 33) % uint64_t(most - least + 1));
  }
  // Exact in every element type.
  float number() { return float(integer(-64, 64)) / 64.0f; }

 private:
  uint64_t state_;
};

// ---------------------------------------------------------------- element types

inline float decode(const char* from, int32_t type) {
  float value = 0.0f;
  if (type == kFloat32) {
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  if (type == kBFloat16) {
    const uint32_t wide = uint32_t(bits) << 16;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) value = fraction ? NAN : INFINITY;
  else if (exponent) value = std::ldexp(float(1024 + fraction), exponent - 25);
  else value = std::ldexp(float(fraction), -24);
  return bits & 0x8000 ? -value : value;
}

// Of numbers as Random gives them.
inline void encode(float value, int32_t type, char* to) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (type == kFloat32) {
    std::memcpy(to, &bits, 4);
    return;
  }
  uint16_t half = uint16_t(bits >> 16);
  if (type == kFloat16) {
    const int exponent = int(bits >> 23 & 255) - 127 + 15;
    const uint16_t magnitude = value == 0 ? 0 : exponent << 10 | (bits >> 13 & 1023);
    half = uint16_t((bits >> 16 & 0x8000) | magnitude);
  }
  std::memcpy(to, &half, 2);
}

inline int64_t size_of(int32_t type) { return type == kFloat32 ? 4 : 2; }

// ---------------------------------------------------------------- maps

struct Shape {
  int64_t batch, channels, height, width;
  int64_t pixels() const { return height * width; }
  int64_t count() const { return batch * channels * pixels(); }
};

// Numbers in order (N, C, H, W).
using Numbers = std::vector<float>;

inline Numbers draw(Random& random, int64_t count) {
  Numbers numbers(count);
  for (float& number : numbers) number = random.number();
  return numbers;
}

enum Layout { kPlanes, kPixelwise };

// A map in memory that ends with its last element; `gap` NaNs lie after each plane or
// pixel, and before the first one.
class Map {
 public:
  Map(const Shape& shape, int32_t type, Layout layout, int64_t gap)
      : shape_(shape), type_(type), layout_(layout), gap_(gap) {
    const bool planes = layout == kPlanes;
    rows_ = planes ? shape.channels : shape.pixels();
    length_ = planes ? shape.pixels() : shape.channels;
    row_stride_ = length_ + gap;
    batch_stride_ = rows_ * row_stride_;
    bytes_.assign(shape.batch * batch_stride_ * size_of(type), char(0xff));
  }

  Map(const Shape& shape, int32_t type, Layout layout, int64_t gap, const Numbers& from)
      : Map(shape, type, layout, gap) {
    for (int64_t i = 0; i < int64_t(from.size()); ++i) encode(from[i], type, at(i));
  }

  Tensor view() const {
    return {bytes_.data() + gap_ * size_of(type_), batch_stride_, row_stride_};
  }
  char* data() { return bytes_.data(); }

  Numbers numbers() const {
    Numbers found(shape_.count());
    for (int64_t i = 0; i < int64_t(found.size()); ++i) {
      found[i] = decode(const_cast<Map*>(this)->at(i), type_);
    }
    return found;
  }

  bool gaps_intact() const {
    for (int64_t row = 0; row < shape_.batch * rows_; ++row) {
      const char* begin = bytes_.data() + row * row_stride_ * size_of(type_);
      const char* end = begin + gap_ * size_of(type_);
      if (std::any_of(begin, end, [](char byte) { return byte != char(0xff); }))
        return false;
    }
    return true;
  }

 private:
  char* at(int64_t i) {
    const int64_t pixel = i % shape_.pixels(), plane = i / shape_.pixels();
    const int64_t c = plane % shape_.channels, n = plane / shape_.channels;
    const int64_t row = layout_ == kPlanes ? c : pixel;
    const int64_t place = layout_ == kPlanes ? pixel : c;
    const int64_t element = gap_ + n * batch_stride_ + row * row_stride_ + place;
    return bytes_.data() + element * size_of(type_);
  }

  Shape shape_;
  int32_t type_;
  Layout layout_;
  int64_t gap_, rows_, length_, row_stride_, batch_stride_;
  std::vector<char> bytes_;
};

}  // namespace pelk
