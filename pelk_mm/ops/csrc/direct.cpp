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

// out[j][x..] = sum over source rows i and taps b in [b0, b1) of
// weight[(i - j) * width + b] * rows[i][x + b..]; a null row is one of zeros. There are
// `height` rows of weights, at least kRows, and height + kRows - 1 source rows.
struct Gather {
  const float* const* rows;
  const float* weight;
  int64_t height, width;
};
using GatherTile = void (*)(const Gather& g, float* const* out, int64_t x, int64_t b0,
                            int64_t b1);

template <int kRows, int kVectors>
void gather(const Gather& g, float* const* out, int64_t x, int64_t b0, int64_t b1) {
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
    for (int v = 0; v < kVectors; ++v) store(out[j] + x + v * kLanes, sums[j][v]);
}

constexpr int kGatherRows = PELK_REGISTERS >= 32 ? 4 : 3;
// Two vectors of each output row, the inputs and a weight must fit in the registers.
constexpr int kGatherVectors = (PELK_REGISTERS - 1) / (2 * kGatherRows + 1);

struct GatherTiles {
  using Tile = GatherTile;
  template <int kRows, int kVectors>
  static constexpr Tile of() {
    return &gather<kRows, kVectors>;
  }
};
constexpr TileTable<GatherTiles, kGatherRows, kGatherVectors> kGather;

// sums[i * stride + j] += <g - i * g_pitch, s + j> over `rows` rows of `vectors` vectors,
// g_pitch and s_pitch floats apart; a sum is kept as one vector of partial sums.
using Inner = void (*)(float* sums, int64_t stride, const float* g, int64_t g_pitch,
                       const float* s, int64_t s_pitch, int64_t rows, int64_t vectors);

template <int kG, int kS>
void inner(float* sums, int64_t stride, const float* g, int64_t g_pitch, const float* s,
           int64_t s_pitch, int64_t rows, int64_t vectors) {
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

struct InnerTiles {
  using Tile = Inner;
  template <int kG, int kS>
  static constexpr Tile of() {
    return &inner<kG, kS>;
  }
};
constexpr TileTable<InnerTiles, kMaxG, kMaxS> kInner;

// ---------------------------------------------------------------- strips and rows

struct Strip {
  int64_t begin, width, padded;  // of the output
  int64_t pitch;                 // floats from one output row to the next
  int64_t line;                  // floats per source row: padded + taps - 1, rounded
};

int64_t strip_count(int64_t width) {
  return width <= kStripWidth + kStripWidth / 2 ? 1
                                                : (width + kStripWidth - 1) / kStripWidth;
}

Strip strip_at(int64_t width, int64_t taps, int64_t index) {
  const int64_t count = strip_count(width);
  const int64_t step = count == 1 ? width : round_up((width + count - 1) / count, kLanes);
  Strip strip;
  strip.begin = smaller(width, index * step);
  strip.width = smaller(step, width - strip.begin);
  strip.padded = round_up(step, kLanes);
  // Rows a multiple of 512 bytes apart would contend for the same few cache sets.
  strip.pitch = strip.padded % 128 ? strip.padded : strip.padded + 16;
  strip.line = round_up(strip.padded + taps - 1, kLanes);
  return strip;
}

// The columns of a source row that the strip's windows cover, zero outside the map.
void read_line(float* line, const Plane& x, int64_t row, const Strip& strip,
               int64_t radius) {
  const int64_t first = strip.begin - radius;
  const int64_t begin = smaller(x.width, larger(0, first));
  const int64_t end = larger(begin, smaller(x.width, strip.begin + strip.width + radius));
  float* to = line + (begin - first);
  clear(line, begin - first);
  float* after = to + (end - begin);
  clear(after, line + strip.line - after);
  read(to, x.data, row * x.width + begin, end - begin, x.type);
}

// The taps along a row that are valid (within [0, width)) for some of the columns
// [first, last]: [begin, end).
struct ValidTaps {
  int64_t begin, end;

  ValidTaps(int64_t taps, int64_t first, int64_t last, int64_t width)
      : begin(smaller(taps, larger(0, taps / 2 - last))),
        end(larger(begin, smaller(taps, width + taps / 2 - first))) {}
};

// ---------------------------------------------------------------- convolution

struct GatherScratch {
  int64_t count;       // source rows at hand
  float* lines;        // their values
  float** line;        // per source row, where it lies
  const float** rows;  // the same, null outside the map
  float* tile;         // output rows
  float** out;

  GatherScratch(Arena& arena, const KernelSize& kernel, const Strip& strip) {
    count = kernel.height + kGatherRows - 1;
    lines = arena.take<float>(count * strip.line);
    line = arena.take<float*>(count);
    rows = arena.take<const float*>(count);
    tile = arena.take<float>(kGatherRows * strip.pitch);
    out = arena.take<float*>(kGatherRows);
  }
};

size_t convolve_scratch(const KernelSize& kernel, int64_t width) {
  Arena arena = {nullptr, 0};
  GatherScratch(arena, kernel, strip_at(width, kernel.width, 0));
  return arena.used;
}

void convolve(const KernelSize& kernel, const Plane& x, const float* weight, float bias,
              void* y, int64_t strip_index, void* memory) {
  const Strip strip = strip_at(x.width, kernel.width, strip_index);
  if (strip.width == 0) return;
  Arena arena = {static_cast<char*>(memory), 0};
  const GatherScratch scratch(arena, kernel, strip);
  for (int64_t i = 0; i < scratch.count; ++i)
    scratch.line[i] = scratch.lines + i * strip.line;
  const int64_t most = smaller(kGatherRows, kernel.height);
  for (int64_t j = 0; j < most; ++j) scratch.out[j] = scratch.tile + j * strip.pitch;
  const Gather gather = {scratch.rows, weight, kernel.height, kernel.width};
  const int64_t vectors = strip.padded / kLanes;

  int64_t known = 0;  // source rows that the group before has left at the front
  for (int64_t top = 0; top < x.height; top += most) {
    const int64_t group = smaller(most, x.height - top);
    const int64_t needed = kernel.height + group - 1;
    for (int64_t i = known; i < needed; ++i) {
      const int64_t row = top - kernel.height / 2 + i;
      const bool inside = row >= 0 && row < x.height;
      scratch.rows[i] = inside ? scratch.line[i] : nullptr;
      if (inside) read_line(scratch.line[i], x, row, strip, kernel.width / 2);
    }
    for (int64_t v = 0; v < vectors;) {
      const int64_t tile = smaller(vectors - v, kGatherVectors);
      const int64_t first = strip.begin + v * kLanes;
      const ValidTaps taps(kernel.width, first, first + tile * kLanes - 1, x.width);
      kGather.of[group][tile](gather, scratch.out, v * kLanes, taps.begin, taps.end);
      v += tile;
    }
    for (int64_t j = 0; j < group; ++j)
      write(y, (top + j) * x.width + strip.begin, scratch.out[j], strip.width, bias,
            x.type);
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
  float* sums;   // one vector per tap

  WeightGradScratch(Arena& arena, const KernelSize& kernel, const Strip& strip,
                    int64_t height) {
    chunk = smaller(larger(1, 64 * 16 / strip.padded), height);
    const int64_t band_rows = smaller(kBand, height) + kernel.height - 1;
    lines = arena.take<float>(strip.line * chunk);
    grads = arena.take<float>(band_rows * strip.pitch);
    sums = arena.take<float>(kernel.height * kernel.width * kLanes);
  }
};

size_t weight_grad_scratch(const KernelSize& kernel, int64_t height, int64_t width) {
  Arena arena = {nullptr, 0};
  WeightGradScratch(arena, kernel, strip_at(width, kernel.width, 0), height);
  return arena.used;
}

// The gradient's rows [top, top + count), zero outside the map.
void read_band(float* grads, const Plane& grad, const Strip& strip, int64_t top,
               int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float* line = grads + i * strip.pitch;
    const int64_t inside = top + i >= 0 && top + i < grad.height ? strip.width : 0;
    read(line, grad.data, inside ? (top + i) * grad.width + strip.begin : 0, inside,
         grad.type);
    clear(line + inside, strip.padded - inside);
  }
}

void weight_grad_of_strip(const KernelSize& kernel, const Plane& x, const Plane& grad,
                          const Strip& strip, double* totals, void* memory) {
  const int64_t height = x.height, radius = kernel.height / 2;
  Arena arena = {static_cast<char*>(memory), 0};
  const WeightGradScratch scratch(arena, kernel, strip, height);
  const ValidTaps across(kernel.width, strip.begin, strip.begin + strip.width - 1,
                         x.width);
  const int64_t taps = kernel.height * kernel.width;
  clear(scratch.sums, taps * kLanes);

  for (int64_t top = 0; top < height; top += kBand) {
    const int64_t bottom = smaller(height, top + kBand);
    read_band(scratch.grads, grad, strip, top - radius, bottom - top + kernel.height - 1);
    for (int64_t r = top; r < bottom; r += scratch.chunk) {
      const int64_t count = smaller(scratch.chunk, bottom - r);
      for (int64_t i = 0; i < count; ++i)
        read_line(scratch.lines + i * strip.line, x, r + i, strip, kernel.width / 2);
      // Kernel row a takes source row r to output row r + radius - a.
      const int64_t a0 = smaller(kernel.height, larger(0, r + radius - height + 1));
      const int64_t a1 = larger(a0, smaller(kernel.height, r + count + radius));
      const float* first = scratch.grads + (r - top + kernel.height - 1) * strip.pitch;
      split(a1 - a0, kMaxG, [&](int64_t i, int64_t a_count) {
        split(across.end - across.begin, kMaxS, [&](int64_t j, int64_t b_count) {
          const int64_t a = a0 + i, b = across.begin + j;
          kInner.of[a_count][b_count](scratch.sums + (a * kernel.width + b) * kLanes,
                                      kernel.width, first - a * strip.pitch, strip.pitch,
                                      scratch.lines + b, strip.line, count,
                                      strip.padded / kLanes);
        });
      });
    }
  }
  for (int64_t i = 0; i < taps; ++i) {
    // Four chains, for one would wait for every addition.
    double parts[4] = {};
    for (int lane = 0; lane < kLanes; lane += 4)
      for (int k = 0; k < 4; ++k) parts[k] += scratch.sums[i * kLanes + lane + k];
    totals[i] += (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }
}

void weight_grad(const KernelSize& kernel, const Plane& x, const Plane& grad,
                 double* totals, void* memory) {
  for (int64_t index = 0; index < strip_count(x.width); ++index) {
    const Strip strip = strip_at(x.width, kernel.width, index);
    if (strip.width) weight_grad_of_strip(kernel, x, grad, strip, totals, memory);
  }
}

}  // namespace

extern const DirectKernels direct_kernels = {convolve_scratch, weight_grad_scratch,
                                             strip_count, convolve, weight_grad};

}  // namespace PELK_ISA
}  // namespace pelk
