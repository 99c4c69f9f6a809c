// Depthwise convolutions by direct sums in the layout that keeps the channels of a pixel
// together: a vector holds kLanes channels, so it is full whatever the size of the map.
//
// A row of the map meets a few neighbouring taps at a time. Each pixel that is read serves
// all of them: in the convolution for as many output pixels, in the weight gradient with
// as many pixels of the output's gradient.

#include "simd.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// Output pixels and taps of a tile; two sums a pixel, the taps and an input fit.
constexpr int kMaxPixels = PELK_REGISTERS >= 32 ? 13 : 5;
constexpr int kMaxTaps = 5;

// Where a row of taps meets a row of pixels: input pixel `from + u` lies under output
// pixel t and tap u - t of a tile. Those outside [begin, end) are beyond the map.
struct Span {
  int64_t from;
  int begin, end;

  Span(int64_t pixel, int64_t tap, int64_t radius, int64_t width, int length)
      : from(pixel + tap - radius),
        begin(int(larger(0, -from))),
        end(int(larger(begin, smaller(length, width - from)))) {}
};

// Calls add(u) for the pixels of a span of kLength that are on the map.
template <int kLength, class Add>
PELK_INLINE inline void walk(const Span& span, const Add& add) {
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

// out = start + what kTaps taps of each of `rows` kernel rows give kPixels pixels.
template <int kPixels, int kTaps>
void convolve_tile(const float* x, int64_t step, int64_t row_step, const Span& span,
                   const float* weight, int64_t tap_step, int64_t weight_row_step,
                   int64_t rows, const float* start, int64_t start_step, float* out,
                   int64_t out_step) {
  // Rows are summed in turn to two sums, and those apart from `start`: a chain of all taps
  // would round more.
  Vec sums[2][kPixels] = {};
  const auto add_row = [&](Vec* row) __attribute__((always_inline)) {
    Vec taps[kTaps];
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j) taps[j] = load(weight + j * tap_step);
    const auto add = [&](int u) __attribute__((always_inline)) {
      const Vec value = once(load(x + u * step));
#pragma GCC unroll 8
      for (int j = 0; j < kTaps; ++j)
        if (u - j >= 0 && u - j < kPixels) row[u - j] += taps[j] * value;
    };
    walk<kPixels + kTaps - 1>(span, add);
    x += row_step;
    weight += weight_row_step;
  };
  for (; rows > 1; rows -= 2) {
    add_row(sums[0]);
    add_row(sums[1]);
  }
  if (rows) add_row(sums[0]);
#pragma GCC unroll 16
  for (int t = 0; t < kPixels; ++t)
    store(out + t * out_step, load(start + t * start_step) + (sums[0][t] + sums[1][t]));
}

// sums[j] += sum over kPixels pixels of their gradient times the input under tap j.
template <int kPixels, int kTaps>
PELK_INLINE inline void correlate_tile(const float* x, int64_t step, const Span& span,
                                       const float* grad, int64_t grad_step, Vec* sums) {
  Vec own[kPixels];
#pragma GCC unroll 8
  for (int t = 0; t < kPixels; ++t) own[t] = load(grad + t * grad_step);
  const auto add = [&](int u) __attribute__((always_inline)) {
    const Vec value = once(load(x + u * step));
#pragma GCC unroll 8
    for (int j = 0; j < kTaps; ++j)
      if (u - j >= 0 && u - j < kPixels) sums[j] += own[u - j] * value;
  };
  walk<kPixels + kTaps - 1>(span, add);
}

struct ConvolveTiles {
  using Tile = void (*)(const float* x, int64_t step, int64_t row_step, const Span& span,
                        const float* weight, int64_t tap_step, int64_t weight_row_step,
                        int64_t rows, const float* start, int64_t start_step, float* out,
                        int64_t out_step);
  template <int kPixels, int kTaps>
  static constexpr Tile of() {
    return &convolve_tile<kPixels, kTaps>;
  }
};
constexpr TileTable<ConvolveTiles, kMaxPixels, kMaxTaps> kConvolve;

// ---------------------------------------------------------------- rows

// The kernel rows that meet the map from an output row: [begin, end).
struct Rows {
  int64_t begin, end;

  Rows(const PixelJob& job, int64_t row)
      : begin(larger(0, job.kernel_height / 2 - row)),
        end(smaller(job.kernel_height, job.height + job.kernel_height / 2 - row)) {}
};

// Channels from which a vector starts: the last vector overlaps the one before.
int64_t channel_of(const PixelJob& job, int64_t vector) {
  return smaller(vector * kLanes, job.channels - kLanes);
}

// Bytes of the weights that are gone through before the next pixels: a part of the
// first-level cache.
constexpr int64_t kWeightBytes = 16384;

// Output rows [top, bottom) of an image, all channels.
void convolve(const PixelJob& job, const Pixels& x, const float* weight, const float* bias,
              const Pixels& y, int64_t top, int64_t bottom) {
  static const float zeros[kLanes] = {};
  const int64_t vectors = (job.channels + kLanes - 1) / kLanes;
  const int64_t weight_row = job.kernel_width * job.weight_step;
  const int64_t radius = job.kernel_width / 2;
  const int64_t kernel_bytes = job.kernel_height * job.kernel_width * kLanes * 4;
  const auto tile = [&](int64_t row, int64_t pixel, int64_t pixels, int64_t vector) {
    const int64_t channel = channel_of(job, vector);
    const Rows rows(job, row);
    const float* from =
        x.data + channel + (row + rows.begin - job.kernel_height / 2) * job.width * x.step;
    float* to = y.data + channel + (row * job.width + pixel) * y.step;
    const float* start = bias ? bias + channel : zeros;
    int64_t start_step = 0;
    split(job.kernel_width, kMaxTaps, [&](int64_t tap, int64_t taps) {
      const Span span(pixel, tap, radius, job.width, int(pixels + taps - 1));
      kConvolve.of[pixels][taps](
          from + span.from * x.step, x.step, job.width * x.step, span,
          weight + channel + rows.begin * weight_row + tap * job.weight_step,
          job.weight_step, weight_row, rows.end - rows.begin, start, start_step, to, y.step);
      start = to;
      start_step = y.step;
    });
  };
  split(vectors, larger(1, kWeightBytes / kernel_bytes), [&](int64_t first, int64_t count) {
    for (int64_t row = top; row < bottom; ++row)
      split(job.width, kMaxPixels, [&](int64_t pixel, int64_t pixels) {
        for (int64_t vector = first; vector < first + count; ++vector)
          tile(row, pixel, pixels, vector);
      });
  });
}

// ---------------------------------------------------------------- weight gradient

// Products that are summed in float32 before they join the total, at least.
constexpr int64_t kChain = 128;
constexpr int kGradPixels = 4;

struct Sums {
  float* part;    // [kernel row][kernel column][lane]
  double* total;  // the same

  Sums(Arena& arena, const PixelJob& job) {
    const int64_t count = job.kernel_height * job.kernel_width * kLanes;
    part = arena.take<float>(count);
    total = arena.take<double>(count);
  }
};

// Adds to kTaps sums what a row of the gradient gives them.
template <int kTaps>
void correlate_row(const PixelJob& job, const float* x, int64_t step, const float* grad,
                   int64_t grad_step, int64_t tap, float* part) {
  const int64_t radius = job.kernel_width / 2;
  // Two chains a tap, as one would wait for every addition.
  Vec even[kTaps] = {}, odd[kTaps] = {};
  const auto run = [&](auto pixels, int64_t pixel, Vec* sums) __attribute__((always_inline)) {
    const Span span(pixel, tap, radius, job.width, pixels + kTaps - 1);
    if (span.begin < span.end)
      correlate_tile<pixels, kTaps>(x + span.from * step, step, span,
                                    grad + pixel * grad_step, grad_step, sums);
  };
  int64_t pixel = 0;
  for (; pixel + 2 * kGradPixels <= job.width; pixel += 2 * kGradPixels) {
    run(Constant<kGradPixels>(), pixel, even);
    run(Constant<kGradPixels>(), pixel + kGradPixels, odd);
  }
  for (; pixel < job.width; ++pixel) run(Constant<1>(), pixel, even);
  for (int j = 0; j < kTaps; ++j) {
    float* sum = part + j * kLanes;
    store(sum, load(sum) + (even[j] + odd[j]));
  }
}

using CorrelateRow = void (*)(const PixelJob& job, const float* x, int64_t step,
                              const float* grad, int64_t grad_step, int64_t tap,
                              float* part);
constexpr CorrelateRow kCorrelate[kMaxTaps + 1] = {
    nullptr,          correlate_row<1>, correlate_row<2>,
    correlate_row<3>, correlate_row<4>, correlate_row<5>};

void weight_grad(const PixelJob& job, const Pixels& x, const Pixels& grad, int64_t channel,
                 int64_t skip, int64_t first, int64_t last, bool begins, bool ends,
                 float* result, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Sums sums(arena, job);
  const int64_t row_sums = job.kernel_width * kLanes;
  const int64_t flush_rows = (kChain + job.width - 1) / job.width;
  for (int64_t i = first * row_sums; begins && i < last * row_sums; ++i) {
    sums.part[i] = 0.0f;
    sums.total[i] = 0.0;
  }
  for (int64_t n = 0; n < job.batch; ++n)
    for (int64_t row = 0; row < job.height; ++row) {
      const Rows rows(job, row);
      const float* own = grad.data + channel + n * grad.batch_stride +
                         row * job.width * grad.step;
      for (int64_t i = larger(first, rows.begin); i < smaller(last, rows.end); ++i) {
        const float* from = x.data + channel + n * x.batch_stride +
                            (row + i - job.kernel_height / 2) * job.width * x.step;
        split(job.kernel_width, kMaxTaps, [&](int64_t tap, int64_t taps) {
          kCorrelate[taps](job, from, x.step, own, grad.step, tap,
                           sums.part + i * row_sums + tap * kLanes);
        });
      }
      if ((row + 1) % flush_rows && row + 1 < job.height) continue;
      for (int64_t i = first * row_sums; i < last * row_sums; ++i) {
        sums.total[i] += sums.part[i];
        sums.part[i] = 0.0f;
      }
    }
  if (!ends) return;
  for (int64_t tap = first * job.kernel_width; tap < last * job.kernel_width; ++tap)
    for (int64_t lane = skip; lane < kLanes; ++lane)
      result[tap * job.weight_step + channel + lane] = float(sums.total[tap * kLanes + lane]);
}

size_t scratch_size(const PixelJob& job) {
  Arena arena = {nullptr, 0};
  Sums(arena, job);
  return arena.used;
}

}  // namespace

extern const PixelKernels pixel_kernels = {kLanes, channel_of, scratch_size, convolve,
                                           weight_grad};

}  // namespace PELK_ISA
}  // namespace pelk
