// Problems, and what a kernel has to find for them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "maps.h"

namespace pelk {

using Grid = std::vector<int32_t>;

inline int64_t taps_of(const Grid& grid) {
  return std::accumulate(grid.begin(), grid.end(), int64_t(0));
}

// The cell of every tap.
inline std::vector<int64_t> cells_of(const Grid& grid) {
  std::vector<int64_t> cells;
  for (size_t a = 0; a < grid.size(); ++a) cells.insert(cells.end(), grid[a], a);
  return cells;
}

// Convolution and gradients of a problem, as sums in float64.
struct Problem {
  Shape shape;
  Grid rows, cols;
  Numbers x, grad, weight, dense, bias;  // weight per cell, dense per tap
  Numbers out, grad_x, grad_weight, grad_dense;
  float largest = 0.0f;  // the largest sum of magnitudes

  Problem(const Shape& shape, const Grid& rows, const Grid& cols, uint64_t seed)
      : shape(shape), rows(rows), cols(cols) {
    Random random(seed);
    const int64_t cells = shape.channels * rows.size() * cols.size();
    x = draw(random, shape.count());
    grad = draw(random, shape.count());
    weight = draw(random, cells);
    bias = draw(random, shape.channels);
    compute();
  }

 private:
  void compute() {
    const int64_t down = taps_of(rows), along = taps_of(cols);
    const int64_t height = shape.height, width = shape.width;
    const std::vector<int64_t> cell_down = cells_of(rows), cell_along = cells_of(cols);
    const int64_t kernel = rows.size() * cols.size();
    std::vector<double> sums(shape.count()), sums_x(shape.count());
    std::vector<double> sums_weight(shape.channels * kernel);
    std::vector<double> sums_dense(shape.channels * down * along);
    std::vector<double> magnitudes(shape.count());
    dense.resize(sums_dense.size());
    for (int64_t c = 0; c < shape.channels; ++c)
      for (int64_t a = 0; a < down; ++a)
        for (int64_t b = 0; b < along; ++b) {
          const int64_t tap = (c * down + a) * along + b;
          const int64_t cell =
              c * kernel + cell_down[a] * cols.size() + cell_along[b];
          const double value = dense[tap] = weight[cell];
          const int64_t dy = a - down / 2, dx = b - along / 2;
          double total = 0.0, magnitude = 0.0;
          for (int64_t n = 0; n < shape.batch; ++n) {
            const int64_t plane = (n * shape.channels + c) * height * width;
            for (int64_t i = std::max<int64_t>(0, -dy); i < std::min(height, height - dy);
                 ++i)
              for (int64_t j = std::max<int64_t>(0, -dx); j < std::min(width, width - dx);
                   ++j) {
                const int64_t to = plane + i * width + j, from = to + dy * width + dx;
                sums[to] += value * x[from];
                magnitudes[to] += std::abs(value * x[from]);
                sums_x[from] += value * grad[to];
                total += double(grad[to]) * x[from];
                magnitude += std::abs(double(grad[to]) * x[from]);
              }
          }
          sums_dense[tap] += total;
          sums_weight[cell] += total;
          largest = std::max(largest, float(magnitude));
        }
    for (int64_t i = 0; i < shape.count(); ++i) {
      sums[i] += bias[i / shape.pixels() % shape.channels];
      largest = std::max(largest, float(magnitudes[i]));
    }
    out.assign(sums.begin(), sums.end());
    grad_x.assign(sums_x.begin(), sums_x.end());
    grad_weight.assign(sums_weight.begin(), sums_weight.end());
    grad_dense.assign(sums_dense.begin(), sums_dense.end());
  }
};

// The shortest even length of factors 2, 3 and 5.
inline int32_t fast_length(int64_t least) {
  for (int32_t length = 2;; length += 2) {
    int32_t rest = length;
    for (const int32_t factor : {2, 3, 5})
      while (rest % factor == 0) rest /= factor;
    if (rest == 1 && length >= least) return length;
  }
}

inline int32_t transform_length(int64_t size, int64_t taps) {
  return fast_length(size + std::min(taps / 2, std::max<int64_t>(0, size - 1)));
}

}  // namespace pelk
