// Depthwise convolutions plane by plane, on GCC and Clang vector types.
//
// All of it is three loops over register tiles. With S_b a row of the
// input summed over the columns of cell b:
//
//   mix:    out[j] += sum_b weight[b][j] * S_b     forward and input gradient
//   inner:  sums[a][b] += <G_a, S_b>               weight gradient
//
// Where cells of the vertical axis hold several taps, a source row is mixed once and
// added to the rows that it reaches. These are the differences between an output row and
// the one above it, because a cell's contribution changes at its two ends only; a closing
// running sum recovers the output. It starts afresh, from a directly computed row, every
// kRestart rows, and is compensated (Kahan), so that rounding does not build up.
// Otherwise a few output rows at a time gather what all their source rows give them:
//
//   gather: out[j] = sum_ab weight[a][b] * S_b of source row j + a
//
// Box sums are built by doubling (two 1s make a 2, two 2s a 4, ...), which needs
// log2(K) additions a pixel and, unlike differences of prefix sums, cancels nothing.

#include "boxes.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// Largest tile of output rows: two vectors of each, two inputs and a weight must fit.
constexpr int kMaxRows = (PELK_REGISTERS - 3) / 2 > 14 ? 14 : (PELK_REGISTERS - 3) / 2;
constexpr int kMaxVectors = 6;
constexpr int64_t kRestart = 64;
// A strip's live rows should stay in the first-level cache.
constexpr int64_t kStripWidth = 128;

// ---------------------------------------------------------------- register tiles

// out[j][x..] += sum over b in [b0, b1) of weight[b * stride + j] * in[b][x..]
using Mix = void (*)(float* const* out, const float* const* in, int64_t x, int b0,
                     int b1, const float* weight, int64_t stride);

template <int kRows, int kVectors>
void mix(float* const* out, const float* const* in, int64_t x, int b0, int b1,
         const float* weight, int64_t stride) {
  Vec sums[kRows][kVectors] = {};
  weight += b0 * stride;
  for (int b = b0; b < b1; ++b, weight += stride) {
    const float* from = in[b] + x;
    Vec values[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) values[v] = load(from + v * kLanes);
#pragma GCC unroll 16
    for (int j = 0; j < kRows; ++j)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) sums[j][v] += weight[j] * values[v];
  }
#pragma GCC unroll 16
  for (int j = 0; j < kRows; ++j) {
    float* to = out[j] + x;
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v)
      store(to + v * kLanes, load(to + v * kLanes) + sums[j][v]);
  }
}

constexpr int vectors_for(int rows) {
  const int fit = (PELK_REGISTERS - 2) / (rows + 1);
  return fit < 1 ? 1 : fit > kMaxVectors ? kMaxVectors : fit;
}

// out[j][x..] = sum over source rows i and b in [b0, b1) of
// weight[i - j][b] * rows[i][offset[b] + x..]; a null row is one of zeros. There are
// `taps` rows of weights, at least kRows, and taps + kRows - 1 source rows.
struct Gather {
  const float* const* rows;
  const int64_t* offset;
  const float* const* weight;
  int taps;
};
using GatherTile = void (*)(const Gather& g, float* const* out, int64_t x, int b0, int b1);

template <int kRows, int kVectors>
void gather(const Gather& g, float* const* out, int64_t x, int b0, int b1) {
  Vec sums[kRows][kVectors] = {};
  // Source row i meets output rows [first, last).
  const auto add = [&](int i, auto first, auto last) __attribute__((always_inline)) {
    if (!g.rows[i]) return;
    const float* from = g.rows[i] + x;
    // Summed by source row: a chain of all taps would round more.
    Vec row[kRows][kVectors] = {};
    for (int b = b0; b < b1; ++b) {
      Vec values[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) values[v] = load(from + g.offset[b] + v * kLanes);
#pragma GCC unroll 16
      for (int j = 0; j < kRows; ++j) {
        if (j < first || j >= last) continue;
        const float weight = g.weight[i - j][b];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) row[j][v] += weight * values[v];
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < kRows; ++j)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        if (j >= first && j < last) sums[j][v] += row[j][v];
  };
  // The first source rows lie above the last output rows' reach, the last ones below that
  // of the first.
  if constexpr (kRows > 1) add(0, Constant<0>(), Constant<1>());
  if constexpr (kRows > 2) add(1, Constant<0>(), Constant<2>());
  if constexpr (kRows > 3) add(2, Constant<0>(), Constant<3>());
  for (int i = kRows - 1; i < g.taps; ++i) add(i, Constant<0>(), Constant<kRows>());
  if constexpr (kRows > 1) add(g.taps, Constant<1>(), Constant<kRows>());
  if constexpr (kRows > 2) add(g.taps + 1, Constant<2>(), Constant<kRows>());
  if constexpr (kRows > 3) add(g.taps + 2, Constant<3>(), Constant<kRows>());
#pragma GCC unroll 16
  for (int j = 0; j < kRows; ++j)
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) store(out[j] + x + v * kLanes, sums[j][v]);
}

constexpr int kGatherRows = PELK_REGISTERS >= 32 ? 4 : 3;
// Two vectors of each output row, the inputs and a weight must fit.
constexpr int kGatherVectors = (PELK_REGISTERS - 1) / (2 * kGatherRows + 1);

struct GatherTiles {
  using Tile = GatherTile;
  template <int kRows, int kVectors>
  static constexpr Tile of() {
    return &gather<kRows, kVectors>;
  }
};
constexpr TileTable<GatherTiles, kGatherRows, kGatherVectors> kGather;

struct MixTiles {
  using Tile = Mix;
  template <int kRows, int kVectors>
  static constexpr Tile of() {
    if constexpr (kVectors <= vectors_for(kRows)) return &mix<kRows, kVectors>;
    return nullptr;
  }
};
constexpr TileTable<MixTiles, kMaxRows, kMaxVectors> kMix;

// sums[i * stride + j] += <g[i], s[j]> over `rows` rows of `vectors` vectors; a sum is
// kept as one vector of partial sums.
using Inner = void (*)(float* sums, int64_t stride, const float* const* g,
                       int64_t g_stride, const float* const* s, int64_t s_stride,
                       int64_t rows, int64_t vectors);

template <int kG, int kS>
void inner(float* sums, int64_t stride, const float* const* g, int64_t g_stride,
           const float* const* s, int64_t s_stride, int64_t rows, int64_t vectors) {
  Vec total[kG][kS] = {};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t g_at = r * g_stride + v * kLanes;
      const int64_t s_at = r * s_stride + v * kLanes;
      Vec across[kS];
#pragma GCC unroll 16
      for (int j = 0; j < kS; ++j) across[j] = load(s[j] + s_at);
#pragma GCC unroll 16
      for (int i = 0; i < kG; ++i) {
        const Vec down = load(g[i] + g_at);
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
  int64_t line;                  // floats of one source row: padded + taps - 1, rounded
};

int64_t strip_count(int64_t width) {
  return width <= kStripWidth + kStripWidth / 2 ? 1
                                                : (width + kStripWidth - 1) / kStripWidth;
}

Strip strip_at(int64_t width, int64_t taps, int64_t index) {
  const int64_t count = strip_count(width);
  const int64_t step =
      count == 1 ? width : round_up((width + count - 1) / count, kLanes);
  Strip strip;
  strip.begin = smaller(width, index * step);
  strip.width = smaller(step, width - strip.begin);
  strip.padded = round_up(step, kLanes);
  // Rows a multiple of 512 bytes apart would contend for the same few cache sets.
  strip.pitch = strip.padded % 128 ? strip.padded : strip.padded + 16;
  strip.line = round_up(strip.padded + taps - 1, kLanes);
  return strip;
}

// A source row's columns under the strip and the kernel's reach, zero outside the map.
void read_line(float* line, const Plane& x, int64_t row, const Strip& strip,
               int64_t radius, bool add) {
  const int64_t first = strip.begin - radius;
  const int64_t begin = smaller(x.width, larger(0, first));
  const int64_t end =
      larger(begin, smaller(x.width, strip.begin + strip.width + radius));
  float* to = line + (begin - first);
  if (!add) {
    clear(line, begin - first);
    float* after = to + (end - begin);
    clear(after, line + strip.line - after);
  }
  read(to, x.data, row * x.width + begin, end - begin, x.type, add);
}

// Of every vector of a strip, the cells that can be other than zero.
struct Reach {
  int32_t* begin;
  int32_t* end;

  void fill(const Axis& cols, const Strip& strip, int64_t width) const {
    for (int64_t v = 0; v < strip.padded / kLanes; ++v) {
      const int64_t x = strip.begin + v * kLanes;
      cells_in_reach(cols, x, x + kLanes - 1, width, begin + v, end + v);
    }
  }
};

// Adds the mix of a row's box sums to `count` output rows.
void mix_row(float* const* out, int count, const float* const* in, const float* weight,
             int64_t stride, const Strip& strip, const Reach& reach) {
  const int vectors = int(strip.padded / kLanes);
  split(count, kMaxRows, [&](int64_t row, int64_t rows) {
    const int most = vectors_for(int(rows));
    for (int v = 0; v < vectors;) {
      const int tile = vectors - v < most ? vectors - v : most;
      kMix.of[rows][tile](out + row, in, v * kLanes, reach.begin[v + tile - 1],
                          reach.end[v], weight + row, stride);
      v += tile;
    }
  });
}

// ---------------------------------------------------------------- convolution

// Differences pay where they are clearly fewer than the rows that a source row reaches;
// with small kernels or low maps the plain taps are as fast and more accurate.
bool uses_differences(const Axis& rows, int64_t height) {
  return 4 * (rows.cells + 1) <= 3 * smaller(rows.taps, height);
}

struct GatherScratch {
  int64_t count;         // source rows at hand
  float* lines;          // theirs, level 0 and above
  float** line;          // of each source row, where its levels lie
  const float** rows;    // the same, null outside the map
  const float** weight;  // of each vertical tap
  int64_t* offset;       // of each horizontal cell, from a line to its box sums
  float* tile;           // output rows
  float** out;
  Reach reach;

  GatherScratch(Arena& arena, const Axis& rows_axis, const Axis& cols,
                const Strip& strip) {
    count = rows_axis.taps + kGatherRows - 1;
    lines = arena.take<float>(count * (cols.level_count + 1) * strip.line + kLanes);
    line = arena.take<float*>(count);
    rows = arena.take<const float*>(count);
    weight = arena.take<const float*>(rows_axis.taps);
    offset = arena.take<int64_t>(cols.cells);
    tile = arena.take<float>(kGatherRows * strip.pitch);
    out = arena.take<float*>(kGatherRows);
    reach.begin = arena.take<int32_t>(strip.padded / kLanes);
    reach.end = arena.take<int32_t>(strip.padded / kLanes);
  }
};

void convolve_by_gathering(const Axis& rows, const Axis& cols, const Plane& x,
                           const Strip& strip, const float* weight, float bias, void* y,
                           void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const GatherScratch scratch(arena, rows, cols, strip);
  const int64_t line_step = (cols.level_count + 1) * strip.line;
  scratch.reach.fill(cols, strip, x.width);
  for (int64_t i = 0; i < scratch.count; ++i)
    scratch.line[i] = scratch.lines + i * line_step;
  for (int a = 0; a < rows.cells; ++a)
    for (int tap = rows.start[a]; tap < rows.start[a + 1]; ++tap)
      scratch.weight[tap] = weight + a * int64_t(cols.cells);
  for (int b = 0; b < cols.cells; ++b)
    scratch.offset[b] = cols.level[b] * strip.line + cols.start[b];
  const int64_t most = smaller(kGatherRows, rows.taps);
  for (int64_t j = 0; j < most; ++j) scratch.out[j] = scratch.tile + j * strip.pitch;
  const Gather gather = {scratch.rows, scratch.offset, scratch.weight, rows.taps};
  const int vectors = int(strip.padded / kLanes);

  int64_t known = 0;  // source rows that the group before has left at the front
  for (int64_t top = 0; top < x.height; top += most) {
    const int64_t group = smaller(most, x.height - top);
    const int64_t needed = rows.taps + group - 1;
    for (int64_t i = known; i < needed; ++i) {
      const int64_t row = top - rows.radius + i;
      const bool inside = row >= 0 && row < x.height;
      scratch.rows[i] = inside ? scratch.line[i] : nullptr;
      if (!inside) continue;
      read_line(scratch.line[i], x, row, strip, cols.radius, false);
      sum_along(scratch.line[i], strip.line, 1, cols, 0, strip.line);
    }
    for (int v = 0; v < vectors;) {
      const int tile = smaller(vectors - v, kGatherVectors);
      kGather.of[group][tile](gather, scratch.out, v * kLanes,
                              scratch.reach.begin[v + tile - 1], scratch.reach.end[v]);
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

// Source rows that are read and summed at a time.
constexpr int64_t kSourceRows = 4;

struct DifferenceScratch {
  int64_t ring;      // differences of output rows that are in the making
  float* lines;      // of a few source rows, level 0 and above
  float* mixing;     // differences of weights, transposed: cells of a row, then edges
  float* out;        // the ring
  float* sum;        // the running sum, the last output row
  float* lost;       // what rounding took from it
  const float** in;  // of each source row and horizontal cell, its box sums
  float** to;        // of each mixed row, the one that it is added to
  Reach reach;

  DifferenceScratch(Arena& arena, const Axis& rows, const Axis& cols, const Strip& strip,
                    int64_t height) {
    const int edges = rows.cells + 1;
    ring = smaller(height, rows.taps + kSourceRows);
    lines = arena.take<float>(kSourceRows * (cols.level_count + 1) * strip.line + kLanes);
    mixing = arena.take<float>(int64_t(edges) * cols.cells);
    out = arena.take<float>(ring * strip.pitch);
    sum = arena.take<float>(strip.padded);
    lost = arena.take<float>(strip.padded);
    in = arena.take<const float*>(kSourceRows * cols.cells);
    to = arena.take<float*>(edges);
    reach.begin = arena.take<int32_t>(strip.padded / kLanes);
    reach.end = arena.take<int32_t>(strip.padded / kLanes);
  }
};

// Transposes the differences of the weights down the kernel, for `mix`.
void arrange(float* mixing, const float* weight, const Axis& rows, const Axis& cols) {
  for (int b = 0; b < cols.cells; ++b, mixing += rows.cells + 1) {
    float above = 0.0f;
    for (int a = 0; a < rows.cells; ++a) {
      const float value = weight[a * int64_t(cols.cells) + b];
      mixing[a] = above - value;
      above = value;
    }
    mixing[rows.cells] = above;
  }
}

void convolve_by_differences(const Axis& rows, const Axis& cols, const Plane& x,
                             const Strip& strip, const float* weight, float bias, void* y,
                             void* memory) {
  const int64_t height = x.height;
  Arena arena = {static_cast<char*>(memory), 0};
  const DifferenceScratch scratch(arena, rows, cols, strip, height);
  const int edges = rows.cells + 1;
  const int64_t line_step = (cols.level_count + 1) * strip.line;
  arrange(scratch.mixing, weight, rows, cols);
  clear(scratch.out, scratch.ring * strip.pitch);

  scratch.reach.fill(cols, strip, x.width);
  for (int64_t i = 0; i < kSourceRows; ++i)
    for (int b = 0; b < cols.cells; ++b)
      scratch.in[i * cols.cells + b] = scratch.lines + i * line_step +
                                       cols.level[b] * strip.line + cols.start[b];

  // An output row that the running sum starts from: each cell's source rows are summed
  // first, then mixed.
  const auto restart = [&](int64_t row) {
    clear(scratch.sum, strip.padded);
    clear(scratch.lost, strip.padded);
    for (int a = 0; a < rows.cells; ++a) {
      const int64_t begin = larger(0, row + rows.start[a] - rows.radius);
      const int64_t end = smaller(height, row + rows.start[a + 1] - rows.radius);
      if (begin >= end) continue;
      for (int64_t r = begin; r < end; ++r)
        read_line(scratch.lines, x, r, strip, cols.radius, r > begin);
      sum_along(scratch.lines, strip.line, 1, cols, 0, strip.line);
      mix_row(&scratch.sum, 1, scratch.in, weight + a * int64_t(cols.cells), 1, strip,
              scratch.reach);
    }
  };

  // Hands out the row whose difference in the ring is complete, and clears that.
  int64_t finish_slot = 0;
  const auto finish = [&](int64_t row) {
    float* out = scratch.out + finish_slot * strip.pitch;
    if (++finish_slot == scratch.ring) finish_slot = 0;
    if (row % kRestart == 0) {
      restart(row);
    } else {
      for (int64_t i = 0; i < strip.padded; i += kLanes) {
        const Vec sum = load(scratch.sum + i);
        const Vec step = load(out + i) - load(scratch.lost + i);
        const Vec next = sum + step;
        store(scratch.lost + i, (next - sum) - step);
        store(scratch.sum + i, next);
      }
    }
    write(y, row * x.width + strip.begin, scratch.sum, strip.width, bias, x.type);
    clear(out, strip.padded);
  };

  // Edge j of source row r changes output row r + 1 + radius - its tap.
  int j0 = 0, j1 = 0;
  int64_t lap = 0;  // the row that the ring's first slot held last
  for (int64_t top = 0; top < height; top += kSourceRows) {
    const int64_t count = smaller(kSourceRows, height - top);
    for (int64_t i = 0; i < count; ++i)
      read_line(scratch.lines + i * line_step, x, top + i, strip, cols.radius, false);
    sum_along(scratch.lines, strip.line, count, cols, 0, strip.line);
    for (int64_t r = top; r < top + count; ++r) {
      const int64_t reach = r + 1 + rows.radius;
      while (j0 < edges && reach - rows.start[j0] >= height) ++j0;
      while (j1 < edges && reach - rows.start[j1] >= 1) ++j1;
      while (reach - lap >= scratch.ring) lap += scratch.ring;
      for (int j = j0; j < j1; ++j) {
        int64_t slot = reach - rows.start[j] - lap;
        while (slot < 0) slot += scratch.ring;
        scratch.to[j] = scratch.out + slot * strip.pitch;
      }
      if (j0 < j1)
        mix_row(scratch.to + j0, j1 - j0, scratch.in + (r - top) * cols.cells,
                scratch.mixing + j0, edges, strip, scratch.reach);
    }
    // Restarting reuses the source rows' memory, so rows are finished in between.
    for (int64_t r = top; r < top + count; ++r)
      if (r >= rows.radius) finish(r - rows.radius);
  }
  for (int64_t row = larger(0, height - rows.radius); row < height; ++row) finish(row);
}

size_t convolve_scratch(const Axis& rows, const Axis& cols, int64_t height,
                        int64_t width) {
  const Strip strip = strip_at(width, cols.taps, 0);
  Arena arena = {nullptr, 0};
  if (uses_differences(rows, height))
    DifferenceScratch(arena, rows, cols, strip, height);
  else
    GatherScratch(arena, rows, cols, strip);
  return arena.used;
}

void convolve(const Axis& rows, const Axis& cols, const Plane& x, const float* weight,
              float bias, void* y, int64_t strip_index, void* memory) {
  const Strip strip = strip_at(x.width, cols.taps, strip_index);
  if (strip.width == 0) return;
  const auto method = uses_differences(rows, x.height) ? convolve_by_differences
                                                       : convolve_by_gathering;
  method(rows, cols, x, strip, weight, bias, y, memory);
}

// ---------------------------------------------------------------- weight gradient

// Rows summed vertically at a time: bounds the memory of tall maps.
constexpr int64_t kBand = 128;

// Rows of a register tile's loop: enough work to pay for loading its sums, few enough
// that all rows stay in the first-level cache.
int64_t chunk_rows(const Axis& rows, const Strip& strip) {
  const int64_t vectors = rows.level_count ? 24 : 64;
  return larger(1, vectors * 16 / strip.padded);
}

struct WeightGradScratch {
  int64_t chunk, band_rows;
  float* lines;      // a chunk's rows of each level of the input
  float* grads;      // a band's rows of each vertical level of the output's gradient
  float* sums;       // cells by cells vectors
  const float** in;  // of each horizontal cell
  const float** down;  // of each vertical cell

  WeightGradScratch(Arena& arena, const Axis& rows, const Axis& cols,
                    const Strip& strip, int64_t height) {
    chunk = smaller(chunk_rows(rows, strip), height);
    band_rows = smaller(kBand, height) + rows.taps - 1;
    lines = arena.take<float>((cols.level_count + 1) * strip.line * chunk + kLanes);
    grads = arena.take<float>((rows.level_count + 1) * band_rows * strip.pitch);
    sums = arena.take<float>(int64_t(rows.cells) * cols.cells * kLanes);
    in = arena.take<const float*>(cols.cells);
    down = arena.take<const float*>(rows.cells);
  }
};

size_t weight_grad_scratch(const Axis& rows, const Axis& cols, int64_t height,
                           int64_t width) {
  Arena arena = {nullptr, 0};
  WeightGradScratch(arena, rows, cols, strip_at(width, cols.taps, 0), height);
  return arena.used;
}

// The gradient's rows [top, top + count) and their vertical box sums, zero outside.
void read_band(float* grads, const Axis& rows, const Plane& grad, const Strip& strip,
               int64_t top, int64_t count, int64_t level_step) {
  for (int64_t i = 0; i < count; ++i) {
    float* line = grads + i * strip.pitch;
    const int64_t inside = top + i >= 0 && top + i < grad.height ? strip.width : 0;
    read(line, grad.data, inside ? (top + i) * grad.width + strip.begin : 0, inside,
         grad.type, false);
    clear(line + inside, strip.padded - inside);
    // The sums that this row completes, while their parts are still in the cache.
    for (int q = 0; q < rows.level_count; ++q) {
      const Level level = rows.levels[q];
      const int64_t row = i - level.size + 1;
      if (row < 0) continue;
      const float* first = grads + level.first * level_step + row * strip.pitch;
      const float* second =
          grads + level.second * level_step + (row + level.shift) * strip.pitch;
      float* to = grads + (q + 1) * level_step + row * strip.pitch;
      for (int64_t v = 0; v < strip.padded; v += kLanes)
        store(to + v, load(first + v) + load(second + v));
    }
  }
}

void weight_grad(const Axis& rows, const Axis& cols, const Plane& x, const Plane& grad,
                 double* totals, void* memory) {
  const int64_t height = x.height;
  for (int64_t index = 0; index < strip_count(x.width); ++index) {
    const Strip strip = strip_at(x.width, cols.taps, index);
    if (strip.width == 0) continue;
    Arena arena = {static_cast<char*>(memory), 0};
    WeightGradScratch scratch(arena, rows, cols, strip, height);
    const int64_t grad_step = scratch.band_rows * strip.pitch;
    const int64_t line_step = (cols.level_count + 1) * strip.line;
    int32_t b0, b1;
    cells_in_reach(cols, strip.begin, strip.begin + strip.width - 1, x.width, &b0, &b1);
    for (int b = b0; b < b1; ++b)
      scratch.in[b] = scratch.lines + cols.level[b] * strip.line + cols.start[b];
    const int64_t cells = int64_t(rows.cells) * cols.cells;
    clear(scratch.sums, cells * kLanes);

    for (int64_t top = 0; top < height; top += kBand) {
      const int64_t bottom = smaller(height, top + kBand);
      read_band(scratch.grads, rows, grad, strip, top - rows.radius,
                bottom - top + rows.taps - 1, grad_step);
      for (int64_t r = top; r < bottom; r += scratch.chunk) {
        const int64_t count = smaller(scratch.chunk, bottom - r);
        for (int64_t i = 0; i < count; ++i) {
          read_line(scratch.lines + i * line_step, x, r + i, strip, cols.radius, false);
        }
        sum_along(scratch.lines, strip.line, count, cols, 0, strip.line);
        // Cell a of source row r met the output rows r + radius - (its taps).
        int a0 = 0, a1 = rows.cells;
        while (a0 < a1 && r + rows.radius - (rows.start[a0 + 1] - 1) >= height) ++a0;
        while (a1 > a0 && r + count - 1 + rows.radius - rows.start[a1 - 1] < 0) --a1;
        for (int a = a0; a < a1; ++a) {
          const int64_t row = r - top + rows.taps - rows.start[a + 1];
          scratch.down[a] =
              scratch.grads + rows.level[a] * grad_step + row * strip.pitch;
        }
        split(a1 - a0, kMaxG, [&](int64_t i, int64_t a_count) {
          split(b1 - b0, kMaxS, [&](int64_t j, int64_t b_count) {
            const int64_t a = a0 + i, b = b0 + j;
            kInner.of[a_count][b_count](
                scratch.sums + (a * cols.cells + b) * kLanes, cols.cells,
                scratch.down + a, strip.pitch, scratch.in + b, line_step, count,
                strip.padded / kLanes);
          });
        });
      }
    }
    for (int64_t i = 0; i < cells; ++i) {
      // Four chains, for one would wait for every addition.
      double parts[4] = {};
      for (int lane = 0; lane < kLanes; lane += 4)
        for (int k = 0; k < 4; ++k) parts[k] += scratch.sums[i * kLanes + lane + k];
      totals[i] += (parts[0] + parts[1]) + (parts[2] + parts[3]);
    }
  }
}

}  // namespace

extern const Kernels kernels = {convolve_scratch, weight_grad_scratch, strip_count,
                                convolve,         weight_grad,         &plane_kernels,
                                &column_kernels,  &pixel_kernels,      &transpose_kernel};

}  // namespace PELK_ISA
}  // namespace pelk
