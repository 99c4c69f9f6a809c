// What is worked out about a call before its loops start.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace pelk {

// An axis of a kernel with its storage, which axis() points to.
class AxisPlan {
 public:
  // `grid` has the taps of each of `cells` cells.
  AxisPlan(const int32_t* grid, int32_t cells, bool flip);
  AxisPlan(const AxisPlan&) = delete;

  // Leaves only the taps that are valid for some output of an input of `size` pixels;
  // returns the radius.
  int32_t clip(int64_t size);
  Axis axis() const;

 private:
  int32_t level_of(int32_t size);

  std::vector<int32_t> start_ = {0}, level_;
  std::vector<Level> levels_;
};

// A transform of at least `least` points. Valid until the thread ends. Throws
// std::invalid_argument for a length that cannot serve.
Transform plan_transform(int32_t length, int64_t least);

}  // namespace pelk
