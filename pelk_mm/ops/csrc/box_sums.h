// Box sums along rows, for files that are compiled once per instruction set.
//
// They are built by doubling (two 1s make a 2, two 2s a 4, ...), which takes about
// log2(taps) additions per pixel and, unlike differences of prefix sums, cancels nothing.
#pragma once

#include "simd.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// Successive vectors from an unaligned address. With AVX-512, two aligned loads and a
// permutation take less than a load that straddles two cache lines.
class UnalignedReader {
 public:
#ifdef __AVX512F__
  explicit UnalignedReader(const float* from)
      : next_(from - misaligned(from)), indices_(kIota + misaligned(from)) {
    current_ = load(next_);
  }

  Vec next() {
    const Vec previous = current_;
    current_ = load(next_ += kLanes);
    return __builtin_shuffle(previous, current_, indices_);
  }

 private:
  static int32_t misaligned(const float* from) {
    return int32_t(reinterpret_cast<uintptr_t>(from) / sizeof(float) % kLanes);
  }

  static constexpr Indices kIota = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const float* next_;
  Indices indices_;
  Vec current_;
#else
  explicit UnalignedReader(const float* from) : next_(from) {}

  Vec next() {
    const Vec values = load(next_);
    next_ += kLanes;
    return values;
  }

 private:
  const float* next_;
#endif
};

// Computes the box sums of `count` rows of [level][`line` floats], of which level 0 is
// given and zero outside of [begin, end). Elements of a level whose box does not overlap
// [begin, end) are left as they are. Level by level, because a load that straddles two
// recent stores stalls.
void add_box_sums(float* lines, int64_t line, int64_t count, const Axis& axis,
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
      UnalignedReader shifted(right + first);
      for (int64_t i = first; i < last; i += kLanes)
        store(to + i, load(left + i) + shifted.next());
    }
  }
}

}  // namespace
}  // namespace PELK_ISA
}  // namespace pelk
