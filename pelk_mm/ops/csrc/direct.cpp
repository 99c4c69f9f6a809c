// Depthwise convolutions with dense kernels by direct sums, plane by plane.
//
// Forward, a register tile gathers for a few output rows what all their source rows
// contribute; the weight gradient is a matrix of inner products between rows of the
// output's gradient and shifted rows of the input:
//
//   gather: out[j] = sum_ab weight[a][b] * (source row j + a, shifted by b)
//   inner:  sums[a][b] += <gradient row a, input row shifted by b>

#include "simd.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// A strip's live rows should stay in the first-level cache.
constexpr int64_t kStripWidth = 128;

// ---------------------------------------------------------------- register tiles

// out[j * pitch + x..] = sum over source rows i and taps b in [b0, b1) of
// weight[(i - j) * width + b] * rows[i][x + b..]; a null row is one of zeros. There are
// `height` rows of weights, at least kRows, and height + kRows - 1 source rows.
struct Gather {
  const float* const* rows;
  const float* weight;
  int64_t height, width;
  float* out;
  int64_t pitch;
};

template <int kRows, int kVectors>
PELK_NOINLINE void gather(const Gather& g, int64_t x, int64_t b0, int64_t b1) {
  Vec sums[kRows][kVectors] = {};
  // Source row i contributes to output rows [first, last).
  const auto add = [&](int64_t i, auto first, auto last) __attribute__((always_inline)) {
    if (!g.rows[i]) return;
    const float* from = g.rows[i] + x;
    const float* weight = g.weight + i * g.width;
    // Summed by source row: a chain of all taps would round more.
    Vec row[kRows][kVectors] = {};
    for (int64_t b = b0; b < b1; ++b) {
      Vec values[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) values[v] = load(from + b + v * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < kRows; ++j) {
        if (j < first || j >= last) continue;
        const float tap = weight[b - j * g.width];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) row[j][v] += tap * values[v];
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < kRows; ++j)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        if (j >= first && j < last) sums[j][v] += row[j][v];
  };
  // The first source rows lie above the windows of the last output rows, the last ones
  // below those of the first.
  if constexpr (kRows > 1) add(0, Constant<0>(), Constant<1>());
  if constexpr (kRows > 2) add(1, Constant<0>(), Constant<2>());
  if constexpr (kRows > 3) add(2, Constant<0>(), Constant<3>());
  for (int64_t i = kRows - 1; i < g.height; ++i) add(i, Constant<0>(), Constant<kRows>());
  if constexpr (kRows > 1) add(g.height, Constant<1>(), Constant<kRows>());
  if constexpr (kRows > 2) add(g.height + 1, Constant<2>(), Constant<kRows>());
  if constexpr (kRows > 3) add(g.height + 2, Constant<3>(), Constant<kRows>());
#pragma GCC unroll 16
  for (int j = 0; j < kRows; ++j)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      store(g.out + j * g.pitch + x + v * kLanes, sums[j][v]);
}

constexpr int kGatherRows = PELK_REGISTERS >= 32 ? 4 : 3;
// Two vectors of each output row, the inputs and a weight must fit in the registers.
constexpr int kGatherVectors = (PELK_REGISTERS - 1) / (2 * kGatherRows + 1);

// sums[i * stride + j] += <g - i * g_pitch, s + j> over `rows` rows of `vectors` vectors,
// g_pitch and s_pitch floats apart; a sum is kept as one vector of partial sums.
template <int kG, int kS>
PELK_NOINLINE void inner(float* sums, int64_t stride, const float* g, int64_t g_pitch,
                         const float* s, int64_t s_pitch, int64_t rows, int64_t vectors) {
  Vec total[kG][kS] = {};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < vectors; ++v) {
      const float* own = g + r * g_pitch + v * kLanes;
      const float* other = s + r * s_pitch + v * kLanes;
      Vec across[kS];
#pragma GCC unroll 16
      for (int j = 0; j < kS; ++j) across[j] = load(other + j);
#pragma GCC unroll 16
      for (int i = 0; i < kG; ++i) {
        const Vec down = load(own - i * g_pitch);
#pragma GCC unroll 16
        for (int j = 0; j < kS; ++j) total[i][j] += down * across[j];
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kG; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kS; ++j) {
      float* sum = sums + (i * stride + j) * kLanes;
      store(sum, load(sum) + total[i][j]);
    }
}

constexpr int kMaxG = PELK_REGISTERS >= 32 ? 6 : 4;
constexpr int kMaxS = PELK_REGISTERS >= 32 ? 4 : 2;

// ---------------------------------------------------------------- strips and rows

int64_t strip_count(int64_t width) {
  return width <= kStripWidth + kStripWidth / 2 ? 1
                                                : (width + kStripWidth - 1) / kStripWidth;
}

struct Strip {
  int64_t begin, width, padded;  // of the output
  int64_t pitch;                 // floats from one output row to the next
  int64_t line;                  // floats per source row: padded + taps - 1, rounded

  Strip(int64_t whole, int64_t taps, int64_t index) {
    const int64_t count = strip_count(whole);
    const int64_t step =
        count == 1 ? whole : round_up((whole + count - 1) / count, kLanes);
    begin = smaller(whole, index * step);
    width = smaller(step, whole - begin);
    padded = round_up(step, kLanes);
    // Rows a multiple of 512 bytes apart would contend for the same few cache sets.
    pitch = padded % 128 ? padded : padded + 16;
    line = round_up(padded + taps - 1, kLanes);
  }
};

// The columns of a row that lie in the strip or at most `radius` from it, zero outside
// the map and after them, up to `size` floats.
void read_row(float* to, int64_t size, const Plane& x, int64_t row, const Strip& strip,
              int64_t radius) {
  if (row < 0 || row >= x.height) return clear(to, size);
  const int64_t first = strip.begin - radius;
  const int64_t begin = smaller(x.width, larger(0, first));
  const int64_t end = larger(begin, smaller(x.width, strip.begin + strip.width + radius));
  clear(to, begin - first);
  clear(to + (end - first), size - (end - first));
  read(to + (begin - first), x.data, row * x.width + begin, end - begin, x.type);
}

// ---------------------------------------------------------------- convolution

struct GatherScratch {
  int64_t count;       // source rows at hand
  float* lines;        // their values
  float** line;        // per source row, where it lies
  const float** rows;  // the same, null outside the map
  float* out;          // output rows

  GatherScratch(Arena& arena, const KernelSize& kernel, const Strip& strip) {
    count = kernel.height + kGatherRows - 1;
    lines = arena.take<float>(count * strip.line);
    line = arena.take<float*>(count);
    rows = arena.take<const float*>(count);
    out = arena.take<float>(kGatherRows * strip.pitch);
  }
};

size_t convolve_scratch(const KernelSize& kernel, int64_t width) {
  return bytes_of<GatherScratch>(kernel, Strip(width, kernel.width, 0));
}

void convolve(const KernelSize& kernel, const Plane& x, const float* weight, float bias,
              const Plane& y, int64_t strip_index, void* memory) {
  const Strip strip(x.width, kernel.width, strip_index);
  if (strip.width == 0) return;
  Arena arena = {static_cast<char*>(memory), 0};
  const GatherScratch scratch(arena, kernel, strip);
  for (int64_t i = 0; i < scratch.count; ++i)
    scratch.line[i] = scratch.lines + i * strip.line;
  const int64_t most = smaller(kGatherRows, kernel.height);
  const Gather g = {scratch.rows, weight,      kernel.height,
                    kernel.width, scratch.out, strip.pitch};
  const int64_t vectors = strip.padded / kLanes;

  int64_t known = 0;  // source rows that the group before has left at the front
  for (int64_t top = 0; top < x.height; top += most) {
    const int64_t group = smaller(most, x.height - top);
    const int64_t needed = kernel.height + group - 1;
    for (int64_t i = known; i < needed; ++i) {
      const int64_t row = top - kernel.height / 2 + i;
      const bool inside = row >= 0 && row < x.height;
      scratch.rows[i] = inside ? scratch.line[i] : nullptr;
      if (inside) read_row(scratch.line[i], strip.line, x, row, strip, kernel.width / 2);
    }
    for (int64_t v = 0; v < vectors;) {
      const int64_t tile = smaller(vectors - v, kGatherVectors);
      const int64_t first = strip.begin + v * kLanes;
      const ValidTaps taps(kernel.width, first, first + tile * kLanes - 1, x.width);
      with_constant<kGatherRows>(group, [&](auto rows) {
        with_constant<kGatherVectors>(tile, [&](auto width) {
          gather<rows, width>(g, v * kLanes, taps.begin, taps.end);
        });
      });
      v += tile;
    }
    for (int64_t j = 0; j < group; ++j)
      write(const_cast<void*>(y.data), (top + j) * x.width + strip.begin,
            scratch.out + j * strip.pitch, strip.width, bias, x.type);
    // The next group starts `group` rows on: its first rows are at hand.
    known = needed - group;
    for (int64_t i = 0; i < known; ++i) {
      float* freed = scratch.line[i];
      scratch.line[i] = scratch.line[i + group];
      scratch.line[i + group] = freed;
      scratch.rows[i] = scratch.rows[i + group];
    }
  }
}

// ---------------------------------------------------------------- weight gradient

// Rows of the map that are worked on at a time: bounds the memory of tall maps.
constexpr int64_t kBand = 128;

struct WeightGradScratch {
  // Rows of a register tile's loop: enough work to pay for loading its sums, few enough
  // that all rows stay in the first-level cache.
  int64_t chunk;
  float* lines;  // a chunk's rows of the input
  float* grads;  // a band's rows of the output's gradient
  float* sums;   // of a strip of a plane, one vector per tap
  double* totals;

  WeightGradScratch(Arena& arena, const KernelSize& kernel, const Strip& strip,
                    int64_t height) {
    chunk = smaller(larger(1, 64 * 16 / strip.padded), height);
    const int64_t band_rows = smaller(kBand, height) + kernel.height - 1;
    lines = arena.take<float>(strip.line * chunk);
    grads = arena.take<float>(band_rows * strip.pitch);
    sums = arena.take<float>(kernel.height * kernel.width * kLanes);
    totals = arena.take<double>(kernel.height * kernel.width);
  }
};

size_t weight_grad_scratch(const KernelSize& kernel, int64_t height, int64_t width) {
  return bytes_of<WeightGradScratch>(kernel, Strip(width, kernel.width, 0), height);
}

// Adds what a strip of a plane contributes to the totals.
void add_strip(const KernelSize& kernel, const Plane& x, const Plane& grad,
               const Strip& strip, const WeightGradScratch& scratch) {
  const int64_t height = x.height, radius = kernel.height / 2;
  const ValidTaps across(kernel.width, strip.begin, strip.begin + strip.width - 1,
                         x.width);
  const int64_t taps = kernel.height * kernel.width;
  clear(scratch.sums, taps * kLanes);

  for (int64_t top = 0; top < height; top += kBand) {
    const int64_t bottom = smaller(height, top + kBand);
    for (int64_t i = 0; i < bottom - top + kernel.height - 1; ++i)
      read_row(scratch.grads + i * strip.pitch, strip.padded, grad, top - radius + i,
               strip, 0);
    for (int64_t r = top; r < bottom; r += scratch.chunk) {
      const int64_t count = smaller(scratch.chunk, bottom - r);
      for (int64_t i = 0; i < count; ++i)
        read_row(scratch.lines + i * strip.line, strip.line, x, r + i, strip,
                 kernel.width / 2);
      // Kernel row a takes source row r to output row r + radius - a.
      const int64_t a0 = smaller(kernel.height, larger(0, r + radius - height + 1));
      const int64_t a1 = larger(a0, smaller(kernel.height, r + count + radius));
      const float* first = scratch.grads + (r - top + kernel.height - 1) * strip.pitch;
      split(a1 - a0, kMaxG, [&](int64_t i, int64_t a_count) {
        split(across.end - across.begin, kMaxS, [&](int64_t j, int64_t b_count) {
          const int64_t a = a0 + i, b = across.begin + j;
          with_constant<kMaxG>(a_count, [&](auto rows) {
            with_constant<kMaxS>(b_count, [&](auto cols) {
              inner<rows, cols>(scratch.sums + (a * kernel.width + b) * kLanes,
                                kernel.width, first - a * strip.pitch, strip.pitch,
                                scratch.lines + b, strip.line, count,
                                strip.padded / kLanes);
            });
          });
        });
      });
    }
  }
  for (int64_t i = 0; i < taps; ++i) {
    // Four chains, for one would wait for every addition.
    double parts[4] = {};
    for (int lane = 0; lane < kLanes; lane += 4)
      for (int k = 0; k < 4; ++k) parts[k] += scratch.sums[i * kLanes + lane + k];
    scratch.totals[i] += (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }
}

void weight_grad(const KernelSize& kernel, const Images& x, const Images& grad,
                 float* result, void* memory) {
  const int64_t width = x.first.width, taps = kernel.height * kernel.width;
  Arena arena = {static_cast<char*>(memory), 0};
  const WeightGradScratch scratch(arena, kernel, Strip(width, kernel.width, 0),
                                  x.first.height);
  for (int64_t i = 0; i < taps; ++i) scratch.totals[i] = 0.0;
  for (int64_t n = 0; n < x.count; ++n)
    for (int64_t index = 0; index < strip_count(width); ++index) {
      const Strip strip(width, kernel.width, index);
      if (strip.width) add_strip(kernel, image(x, n), image(grad, n), strip, scratch);
    }
  for (int64_t i = 0; i < taps; ++i) result[i] = float(scratch.totals[i]);
}

}  // namespace

extern const DirectKernels direct_kernels = {convolve_scratch, weight_grad_scratch,
                                             strip_count, convolve, weight_grad};

}  // namespace PELK_ISA
}  // namespace pelk
