// Depthwise convolutions by direct sums in the layout that keeps the channels of a pixel
// together: a vector holds kLanes channels, so it is full whatever the size of the map.
//
// A tile combines a few neighbouring taps of a kernel row with a row of the map. Each
// pixel that is read serves all of these taps: in the convolution it is added to as many
// output pixels, in the weight gradient it is multiplied by as many pixels of the
// gradient.

#include "simd.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// Output pixels and taps of a tile: two sums per pixel, the taps and an input must fit in
// the registers.
constexpr int kMaxPixels = PELK_REGISTERS >= 32 ? 13 : 5;
constexpr int kMaxTaps = 5;

// The input pixels of a tile: `from + u` is multiplied by tap u - t for output pixel t.
// Only u in [begin, end) are valid, within the map.
struct Span {
  int64_t from;
  int begin, end;

  Span(int64_t pixel, int64_t tap, int64_t radius, int64_t width, int length)
      : from(pixel + tap - radius),
        begin(int(larger(0, -from))),
        end(int(larger(begin, smaller(length, width - from)))) {}
};

// Calls add(u) for the valid pixels of a span of kLength.
template <int kLength, class Add>
PELK_INLINE inline void for_each_valid(const Span& span, const Add& add) {
  if (span.begin == 0 && span.end == kLength) {
#pragma GCC unroll 32
    for (int u = 0; u < kLength; ++u) add(u);
  } else {
#pragma GCC unroll 32
    for (int u = 0; u < kLength; ++u)
      if (u >= span.begin && u < span.end) add(u);
  }
}

// ---------------------------------------------------------------- convolution

// Convolves kPixels output pixels with kTaps taps of each of `rows` kernel rows; the
// result is added to `start`.
template <int kPixels, int kTaps>
PELK_NOINLINE void convolve_tile(const float* x, int64_t stride, int64_t row_stride,
                                 const Span& span, const float* weight,
                                 int64_t tap_stride, int64_t weight_row_stride,
                                 int64_t rows, const float* start, int64_t start_stride,
                                 float* out, int64_t out_stride) {
  // Rows go to two sums alternately, separate from `start`: a chain of all taps would
  // round more.
  Vec sums[2][kPixels] = {};
  const auto add_row = [&](Vec* row) __attribute__((always_inline)) {
    Vec taps[kTaps];
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j) taps[j] = load(weight + j * tap_stride);
    const auto add = [&](int u) __attribute__((always_inline)) {
      const Vec value = keep_in_register(load(x + u * stride));
#pragma GCC unroll 8
      for (int j = 0; j < kTaps; ++j)
        if (u - j >= 0 && u - j < kPixels) row[u - j] += taps[j] * value;
    };
    for_each_valid<kPixels + kTaps - 1>(span, add);
    x += row_stride;
    weight += weight_row_stride;
  };
  for (; rows > 1; rows -= 2) {
    add_row(sums[0]);
    add_row(sums[1]);
  }
  if (rows) add_row(sums[0]);
#pragma GCC unroll 16
  for (int t = 0; t < kPixels; ++t)
    store(out + t * out_stride,
          load(start + t * start_stride) + (sums[0][t] + sums[1][t]));
}

// sums[j] += sum over kPixels pixels of their gradient times the input at tap j.
template <int kPixels, int kTaps>
PELK_INLINE inline void correlate_tile(const float* x, int64_t stride, const Span& span,
                                       const float* grad, int64_t grad_stride,
                                       Vec* sums) {
  Vec own[kPixels];
#pragma GCC unroll 8
  for (int t = 0; t < kPixels; ++t) own[t] = load(grad + t * grad_stride);
  const auto add = [&](int u) __attribute__((always_inline)) {
    const Vec value = keep_in_register(load(x + u * stride));
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j)
      if (u - j >= 0 && u - j < kPixels) sums[j] += own[u - j] * value;
  };
  for_each_valid<kPixels + kTaps - 1>(span, add);
}

// ---------------------------------------------------------------- rows

// The kernel rows that are valid for an output row.
ValidTaps valid_rows(const PixelProblem& problem, int64_t row) {
  return {problem.kernel_height, row, row, problem.height};
}

// The first channel of a vector: the last vector overlaps the one before.
int64_t channel_of(const PixelProblem& problem, int64_t vector) {
  return smaller(vector * kLanes, problem.channels - kLanes);
}

// Bytes of weights that are applied before moving on to the next pixels: a part of the
// first-level cache.
constexpr int64_t kWeightBytes = 16384;

// Output rows [top, bottom) of an image, all channels.
void convolve(const PixelProblem& problem, const Pixels& x, const float* weight,
              const float* bias, const Pixels& y, int64_t top, int64_t bottom) {
  static const float zeros[kLanes] = {};
  const int64_t vectors = (problem.channels + kLanes - 1) / kLanes;
  const int64_t weight_row = problem.kernel_width * problem.weight_stride;
  const int64_t radius = problem.kernel_width / 2;
  const int64_t kernel_bytes = problem.kernel_height * problem.kernel_width * kLanes * 4;
  const auto tile = [&](int64_t row, int64_t pixel, int64_t pixels, int64_t vector) {
    const int64_t channel = channel_of(problem, vector);
    const ValidTaps rows = valid_rows(problem, row);
    const float* from =
        x.data + channel +
        (row + rows.begin - problem.kernel_height / 2) * problem.width * x.stride;
    float* to = y.data + channel + (row * problem.width + pixel) * y.stride;
    const float* start = bias ? bias + channel : zeros;
    int64_t start_stride = 0;
    split(problem.kernel_width, kMaxTaps, [&](int64_t tap, int64_t taps) {
      const Span span(pixel, tap, radius, problem.width, int(pixels + taps - 1));
      const float* first_tap =
          weight + channel + rows.begin * weight_row + tap * problem.weight_stride;
      with_constant<kMaxPixels>(pixels, [&](auto pixel_count) {
        with_constant<kMaxTaps>(taps, [&](auto tap_count) {
          convolve_tile<pixel_count, tap_count>(
              from + span.from * x.stride, x.stride, problem.width * x.stride, span,
              first_tap, problem.weight_stride, weight_row, rows.end - rows.begin, start,
              start_stride, to, y.stride);
        });
      });
      start = to;
      start_stride = y.stride;
    });
  };
  split(vectors, larger(1, kWeightBytes / kernel_bytes),
        [&](int64_t first, int64_t count) {
          for (int64_t row = top; row < bottom; ++row)
            split(problem.width, kMaxPixels, [&](int64_t pixel, int64_t pixels) {
              for (int64_t vector = first; vector < first + count; ++vector)
                tile(row, pixel, pixels, vector);
            });
        });
}

// ---------------------------------------------------------------- weight gradient

// The least number of products that are summed in float32 before they are added to the
// float64 total.
constexpr int64_t kChain = 128;
constexpr int kGradPixels = 4;

struct Sums {
  float* part;    // [kernel row][kernel column][lane]
  double* total;  // the same

  Sums(Arena& arena, const PixelProblem& problem) {
    const int64_t count = problem.kernel_height * problem.kernel_width * kLanes;
    part = arena.take<float>(count);
    total = arena.take<double>(count);
  }
};

// Adds the contribution of one row of the gradient to kTaps sums.
template <int kTaps>
PELK_NOINLINE void correlate_row(const PixelProblem& problem, const float* x,
                                 int64_t stride, const float* grad, int64_t grad_stride,
                                 int64_t tap, float* part) {
  const int64_t radius = problem.kernel_width / 2;
  // Two chains per tap, as one would wait for every addition.
  Vec even[kTaps] = {}, odd[kTaps] = {};
  const auto run = [&](auto pixels, int64_t pixel,
                       Vec* sums) __attribute__((always_inline)) {
    const Span span(pixel, tap, radius, problem.width, pixels + kTaps - 1);
    if (span.begin < span.end)
      correlate_tile<pixels, kTaps>(x + span.from * stride, stride, span,
                                    grad + pixel * grad_stride, grad_stride, sums);
  };
  int64_t pixel = 0;
  for (; pixel + 2 * kGradPixels <= problem.width; pixel += 2 * kGradPixels) {
    run(Constant<kGradPixels>(), pixel, even);
    run(Constant<kGradPixels>(), pixel + kGradPixels, odd);
  }
  for (; pixel < problem.width; ++pixel) run(Constant<1>(), pixel, even);
  for (int j = 0; j < kTaps; ++j) {
    float* sum = part + j * kLanes;
    store(sum, load(sum) + (even[j] + odd[j]));
  }
}

void weight_grad(const PixelProblem& problem, const Pixels& x, const Pixels& grad,
                 int64_t channel, int64_t skip, int64_t first, int64_t last, bool begins,
                 bool ends, float* result, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Sums sums(arena, problem);
  const int64_t row_sums = problem.kernel_width * kLanes;
  const int64_t flush_rows = (kChain + problem.width - 1) / problem.width;
  for (int64_t i = first * row_sums; begins && i < last * row_sums; ++i) {
    sums.part[i] = 0.0f;
    sums.total[i] = 0.0;
  }
  for (int64_t n = 0; n < problem.batch; ++n)
    for (int64_t row = 0; row < problem.height; ++row) {
      const ValidTaps rows = valid_rows(problem, row);
      const float* own =
          grad.data + channel + n * grad.batch_stride + row * problem.width * grad.stride;
      for (int64_t i = larger(first, rows.begin); i < smaller(last, rows.end); ++i) {
        const float* from =
            x.data + channel + n * x.batch_stride +
            (row + i - problem.kernel_height / 2) * problem.width * x.stride;
        split(problem.kernel_width, kMaxTaps, [&](int64_t tap, int64_t taps) {
          float* part = sums.part + i * row_sums + tap * kLanes;
          with_constant<kMaxTaps>(taps, [&](auto count) {
            correlate_row<count>(problem, from, x.stride, own, grad.stride, tap, part);
          });
        });
      }
      if ((row + 1) % flush_rows && row + 1 < problem.height) continue;
      for (int64_t i = first * row_sums; i < last * row_sums; ++i) {
        sums.total[i] += sums.part[i];
        sums.part[i] = 0.0f;
      }
    }
  if (!ends) return;
  for (int64_t tap = first * problem.kernel_width; tap < last * problem.kernel_width;
       ++tap)
    for (int64_t lane = skip; lane < kLanes; ++lane)
      result[tap * problem.weight_stride + channel + lane] =
          float(sums.total[tap * kLanes + lane]);
}

}  // namespace

extern const PixelKernels pixel_kernels = {
    kLanes, channel_of, bytes_of<Sums, PixelProblem>, convolve, weight_grad};

}  // namespace PELK_ISA
}  // namespace pelk
