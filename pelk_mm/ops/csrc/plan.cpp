#include "plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>

namespace pelk {
namespace {

// A transform with its storage.
struct TransformPlan {
  int32_t length;
  std::vector<Pass> passes;
  std::vector<int32_t> position = {0};
  std::vector<std::vector<float>> twiddles;  // per pass

  explicit TransformPlan(int32_t points) : length(points) {
    const double full_turn = -2.0 * std::acos(-1.0);
    int32_t run = length;
    for (const int32_t radix : factorise()) {
      std::vector<float>& factors = twiddles.emplace_back();
      for (int32_t p = 1; p < run / radix; ++p)
        for (int32_t k = 1; k < radix; ++k) {
          factors.push_back(float(std::cos(full_turn * p * k / run)));
          factors.push_back(float(std::sin(full_turn * p * k / run)));
        }
      passes.push_back({radix, run, factors.data()});
      run /= radix;
      // The last radix runs slowest in the frequency and fastest in the position.
      const size_t known = position.size();
      for (int32_t k = 1; k < radix; ++k)
        for (size_t i = 0; i < known; ++i) position.push_back(position[i] + k * run);
    }
  }

  Transform transform() const {
    return {length, int32_t(passes.size()), passes.data(), position.data()};
  }

 private:
  // Chooses radices by vector operations per point: few passes, and none whose
  // butterfly spills registers.
  std::vector<int32_t> factorise() const {
    struct Choice {
      int32_t radix;
      float cost;
    };
    static constexpr Choice choices[] = {{2, 10.f}, {3, 12.f},  {4, 12.f}, {5, 15.f},
                                         {6, 14.f}, {8, 15.5f}, {10, 18.f}};
    std::vector<float> cost(length + 1, HUGE_VALF);
    std::vector<int32_t> last(length + 1, 0);
    cost[1] = 0.f;
    for (int32_t n = 2; n <= length; ++n) {
      if (length % n) continue;
      for (const Choice& choice : choices)
        if (n % choice.radix == 0 && cost[n / choice.radix] + choice.cost < cost[n]) {
          cost[n] = cost[n / choice.radix] + choice.cost;
          last[n] = choice.radix;
        }
    }
    std::vector<int32_t> radices;
    for (int32_t n = length; n > 1; n /= last[n]) {
      if (last[n] == 0) throw std::invalid_argument("length");
      radices.push_back(last[n]);
    }
    return radices;
  }
};

}  // namespace

AxisPlan::AxisPlan(const int32_t* grid, int32_t cells, bool flip) {
  for (int32_t a = 0; a < cells; ++a) {
    const int32_t taps = grid[flip ? cells - 1 - a : a];
    start_.push_back(start_.back() + taps);
    level_.push_back(level_of(taps));
  }
}

int32_t AxisPlan::clip(int64_t size) {
  const int32_t whole = start_.back() / 2;
  const int32_t radius = int32_t(std::clamp<int64_t>(size - 1, 0, whole));
  for (int32_t& start : start_)
    start = std::clamp(start - (whole - radius), 0, 2 * radius + 1);
  return radius;
}

// The level of sums of `size` taps: twice half of them where that is a power of two,
// else the largest power of two below and the rest.
int32_t AxisPlan::level_of(int32_t size) {
  if (size == 1) return 0;
  for (size_t q = 0; q < levels_.size(); ++q)
    if (levels_[q].size == size) return int32_t(q + 1);
  int32_t shift = 1;
  while (2 * shift < size) shift *= 2;
  const int32_t first = level_of(shift);
  const int32_t second = level_of(size - shift);
  levels_.push_back({first, second, size, shift});
  return int32_t(levels_.size());
}

Axis AxisPlan::axis() const {
  return {int32_t(level_.size()),  start_.back(), start_.back() / 2,
          int32_t(levels_.size()), start_.data(), level_.data(),
          levels_.data()};
}

Transform plan_transform(int32_t length, int64_t least) {
  if (length % 2 || length < least) throw std::invalid_argument("length");
  // Plans are kept: their sines take longer than a small convolution.
  thread_local std::map<int32_t, TransformPlan> plans;
  return plans.try_emplace(length, length).first->second.transform();
}

}  // namespace pelk
