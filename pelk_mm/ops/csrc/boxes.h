// Box sums along rows, for the files that are compiled once an instruction set.
#pragma once

#include "simd.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// Rows are short: a loop beats a call into the C library.
void clear(float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, Vec{});
  for (; i < n; ++i) to[i] = 0.0f;
}

// Vectors at any distance from aligned ones, in turn from `from` on. Two aligned loads
// and a permutation take less than a load that straddles two lines of the cache.
class Shifted {
 public:
#ifdef __AVX512F__
  explicit Shifted(const float* from)
      : next_(from - misaligned(from)), picks_(kCount + misaligned(from)) {
    here_ = load(next_);
  }

  Vec take() {
    const Vec before = here_;
    here_ = load(next_ += kLanes);
    return __builtin_shuffle(before, here_, picks_);
  }

 private:
  static int32_t misaligned(const float* from) {
    return int32_t(reinterpret_cast<uintptr_t>(from) / sizeof(float) % kLanes);
  }

  static constexpr Picks kCount = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const float* next_;
  Picks picks_;
  Vec here_;
#else
  explicit Shifted(const float* from) : next_(from) {}

  Vec take() {
    const Vec values = load(next_);
    next_ += kLanes;
    return values;
  }

 private:
  const float* next_;
#endif
};

// Box sums along `count` rows; each row's levels lie `line` floats apart, the rows as
// many levels. Level 0 is zero outside of [begin, end), and what levels are outside of
// their reach is left as it is. Level by level, because a load that straddles two fresh
// stores stalls.
void sum_along(float* lines, int64_t line, int64_t count, const Axis& axis,
               int64_t begin, int64_t end) {
  const int64_t row_step = (axis.level_count + 1) * line;
  for (int q = 0; q < axis.level_count; ++q) {
    const Level level = axis.levels[q];
    const int64_t first = larger(0, begin - level.size + 1) / kLanes * kLanes;
    const int64_t last = smaller(end, line - level.size + 1);
    for (int64_t r = 0; r < count; ++r) {
      const float* left = lines + r * row_step + level.first * line;
      const float* right = lines + r * row_step + level.second * line + level.shift;
      float* to = lines + r * row_step + (q + 1) * line;
      Shifted shifted(right + first);
      for (int64_t i = first; i < last; i += kLanes)
        store(to + i, load(left + i) + shifted.take());
    }
  }
}

// The cells whose taps touch [0, size) from somewhere in [first, last].
void cells_in_reach(const Axis& axis, int64_t first, int64_t last, int64_t size,
                    int32_t* begin, int32_t* end) {
  int32_t b = 0, e = axis.cells;
  while (b < e && last + axis.start[b + 1] - 1 - axis.radius < 0) ++b;
  while (e > b && first + axis.start[e - 1] - axis.radius >= size) --e;
  *begin = b;
  *end = e;
}

}  // namespace
}  // namespace PELK_ISA
}  // namespace pelk
