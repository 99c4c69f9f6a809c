// Depthwise convolutions by real Fourier transforms down the columns and box sums along
// the rows.
//
// A kernel whose columns share parameters has few columns that differ, and each becomes
// one number a vertical frequency: along a row of the spectrum the convolution is a mix
// of box sums with complex weights. Neither a transform along the rows nor its padding
// is needed, and of the kernel only the columns that differ are transformed.
//
// Two real columns make one complex column, which is taken apart when its row is read and
// put together when it is written. The input lies half a kernel down from the origin,
// kernel and output at the origin, so that no index wraps around where it counts.

#include "boxes.h"
#include "fourier.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// ---------------------------------------------------------------- spectra of columns

// Spectra of columns, two of them in one: [position][part][column].
struct Spectra {
  float* data;
  int64_t width;  // columns
  int64_t half;   // complex ones
  int64_t pitch;  // floats from one position to the next

  // Rows a power of two apart would contend for the same few cache sets.
  static int64_t pitch_of(int64_t width) { return 2 * half_of(width) + kLanes; }

  static Spectra take(Arena& arena, const Transform& down, int64_t width) {
    return {arena.take<float>(down.length * pitch_of(width)), width, half_of(width),
            pitch_of(width)};
  }

  float* at(const Transform& down, int64_t frequency) const {
    return data + down.position[frequency] * pitch;
  }
  // The conjugate of what a real column has at `frequency`.
  float* mirrored(const Transform& down, int64_t frequency) const {
    return at(down, frequency ? down.length - frequency : 0);
  }
};

// A vector of complex columns, as a place of transforms.
struct Panel {
  float* data;
  int64_t pitch, half;

  PELK_INLINE void load(int64_t i, Vec* re, Vec* im) const {
    *re = pelk::PELK_ISA::load(data + i * pitch);
    *im = pelk::PELK_ISA::load(data + i * pitch + half);
  }
  PELK_INLINE void store(int64_t i, Vec re, Vec im) const {
    pelk::PELK_ISA::store(data + i * pitch, re);
    pelk::PELK_ISA::store(data + i * pitch + half, im);
  }
};

// The plane's first row becomes row `top` of what is transformed.
void analyse(const Transform& down, const Plane& x, int64_t top, const Spectra& spectra,
             const Points& points) {
  for (int64_t begin = 0; begin < spectra.half; begin += kLanes)
    with_columns(x, top, begin, spectra.half, 0.0f, [&](const auto& columns) {
      forward(down, columns, points,
              Panel{spectra.data + begin, spectra.pitch, spectra.half});
    });
}

// The way back, length times too large; adds `bias`.
void synthesise(const Transform& down, const Spectra& spectra, const Plane& y, int64_t top,
                float bias, const Points& points) {
  for (int64_t begin = 0; begin < spectra.half; begin += kLanes)
    with_columns(y, top, begin, spectra.half, bias, [&](const auto& columns) {
      inverse(down, Panel{spectra.data + begin, spectra.pitch, spectra.half}, points,
              columns);
    });
}

// Reads the columns' spectra at a frequency, in two times the scale.
void take_apart(const Transform& down, const Spectra& spectra, int64_t frequency,
                float* re, float* im) {
  const int64_t half = spectra.half;
  const float* here = spectra.at(down, frequency);
  const float* there = spectra.mirrored(down, frequency);
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vec here_re = load(here + i), here_im = load(here + half + i);
    const Vec there_re = load(there + i), there_im = load(there + half + i);
    store(re + i, here_re + there_re);
    store(im + i, here_im - there_im);
    store(re + half + i, here_im + there_im);
    store(im + half + i, there_re - here_re);
  }
  // Beyond the last column rounding has left something of those that these shared a
  // transform with.
  clear(re + spectra.width, 2 * half - spectra.width);
  clear(im + spectra.width, 2 * half - spectra.width);
}

void put_together(const Transform& down, const Spectra& spectra, int64_t frequency,
                  const float* re, const float* im) {
  const int64_t half = spectra.half;
  float* here = spectra.at(down, frequency);
  float* there = spectra.mirrored(down, frequency);
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vec first_re = load(re + i), first_im = load(im + i);
    const Vec second_re = load(re + half + i), second_im = load(im + half + i);
    store(here + i, first_re - second_im);
    store(here + half + i, first_im + second_re);
    store(there + i, first_re + second_im);
    store(there + half + i, second_re - first_im);
  }
}

// ---------------------------------------------------------------- register tiles

// A row of a spectrum and its box sums: real parts of all levels, then imaginary ones.
struct Boxes {
  const float* lines;
  int64_t step;           // floats from real to imaginary parts
  const int64_t* offset;  // of each cell, from `lines` to its box sums
};

// A complex number of each column, or of each cell.
struct Row {
  float *re, *im;
};

// What a tile computes of the box sums that it reads.
enum Work { kConvolve = 1, kConvolveTurned = 2, kCorrelate = 4 };

// With many registers complex products are of three real ones (Gauss), and the additions
// that this takes have units of their own.
constexpr bool kThreeProducts = PELK_REGISTERS >= 32;

// A factor, a number or vectors of them.
template <class T>
struct Complex {
  T re, im, sum;

  Complex(T re, T im) : re(re), im(im), sum(kThreeProducts ? re + im : T{}) {}
};

// A sum of products of complex vectors.
struct Products {
  Vec p = {}, q = {}, s = {};

  template <class T>
  PELK_INLINE void add(const Complex<T>& a, const Complex<Vec>& b) {
    p += a.re * b.re;
    if constexpr (kThreeProducts) {
      q += a.im * b.im;
      s += a.sum * b.sum;
    } else {
      s += a.re * b.im;
      p -= a.im * b.im;
      s += a.im * b.re;
    }
  }
  Vec re() const { return kThreeProducts ? p - q : p; }
  Vec im() const { return kThreeProducts ? s - p - q : s; }
};

// Of kVectors vectors of columns from x on and the cells in [b0, b1)
//   kConvolve:        out[x..] = sum of conj(weight[b]) * box sum of b
//   kConvolveTurned:  out[x..] = sum of weight[b] * box sum of b
//   kCorrelate:       sums[b] (+)= sum over columns of own[x..] * conj(box sum of b),
//                     kept as vectors of partial sums
// `out` may be `own`. The first tile of a row is `fresh` and sets the sums.
template <int kVectors, int kWork>
void run_tile(const Boxes& boxes, int64_t x, int b0, int b1, const Row& weight,
              const Row& own, const Row& out, const Row& sums, bool fresh) {
  constexpr bool kMixes = kWork & (kConvolve | kConvolveTurned);
  constexpr float kSign = kWork & kConvolve ? -1.0f : 1.0f;
  Products mixed[kVectors];
  Vec own_re[kVectors], own_im[kVectors];
  if constexpr (kWork & kCorrelate) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      own_re[v] = load(own.re + x + v * kLanes);
      own_im[v] = load(own.im + x + v * kLanes);
    }
  }
  for (int b = b0; b < b1; ++b) {
    const float* from = boxes.lines + boxes.offset[b] + x;
    Products conjugate;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Complex<Vec> box(once(load(from + v * kLanes)),
                             once(load(from + boxes.step + v * kLanes)));
      if constexpr (kMixes)
        mixed[v].add(Complex<float>(weight.re[b], kSign * weight.im[b]), box);
      if constexpr (kWork & kCorrelate)
        conjugate.add(Complex<Vec>(own_re[v], -own_im[v]), box);
    }
    if constexpr (kWork & kCorrelate) {
      float *to_re = sums.re + b * kLanes, *to_im = sums.im + b * kLanes;
      store(to_re, fresh ? conjugate.re() : load(to_re) + conjugate.re());
      store(to_im, fresh ? -conjugate.im() : load(to_im) - conjugate.im());
    }
  }
  if constexpr (kMixes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      store(out.re + x + v * kLanes, mixed[v].re());
      store(out.im + x + v * kLanes, mixed[v].im());
    }
  }
}

// The sums of a tile's columns must fit in the registers, and `own` beside them nearly.
constexpr int most_vectors(int work) {
  return PELK_REGISTERS >= 32 ? (work & kCorrelate ? 4 : 8) : (work & kCorrelate ? 2 : 4);
}

template <int kWork>
struct Tiles {
  using Tile = void (*)(const Boxes& boxes, int64_t x, int b0, int b1, const Row& weight,
                        const Row& own, const Row& out, const Row& sums, bool fresh);
  template <int, int vectors>
  static constexpr Tile of() {
    return run_tile<vectors, kWork>;
  }
};

// Lane i of the result is the sum of the lanes of tile[i].
template <int kStep = 1>
inline Vec sum_lanes(Vec* tile) {
  if constexpr (kStep == kLanes) {
    return tile[0];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += 2 * kStep) {
      exchange<kStep>(tile[i], tile[i + kStep],
                      std::make_integer_sequence<int, kLanes>());
      tile[i] += tile[i + kStep];
    }
    return sum_lanes<2 * kStep>(tile);
  }
}

// ---------------------------------------------------------------- convolutions

struct Scratch {
  Spectra x, grad, kernel;
  Points points;
  int64_t line, halo, width;  // of a row's box sums, what precedes the row, its columns
  float *lines, *re, *im;     // box sums; a row
  float *weight, *sums;       // [frequency][part][column of the kernel]
  float* taps;
  float* partial;             // [part][cell][lane]
  int64_t* offset;
  int32_t *begin, *end;       // of every vector, the cells that can be other than zero
  int32_t *start, *level;     // of the turned axis

  Scratch(Arena& arena, const Fourier& f, const Axis& rows, const Axis& cols,
          int64_t columns)
      : x(Spectra::take(arena, f.down, columns)),
        grad(Spectra::take(arena, f.down, columns)),
        kernel(Spectra::take(arena, f.down, cols.cells)),
        points{arena.take<float>(f.down.length * kPoint)},
        halo(round_up(cols.radius, kLanes)),
        width(2 * half_of(columns)) {
    line = round_up(halo + width + cols.radius, kLanes) + kLanes;
    lines = arena.take<float>(2 * (cols.level_count + 1) * line + kLanes);
    re = arena.take<float>(width);
    im = arena.take<float>(width);
    weight = arena.take<float>((f.down.length / 2 + 1) * weight_step());
    sums = arena.take<float>((f.down.length / 2 + 1) * weight_step());
    taps = arena.take<float>(smaller(rows.taps, 2 * f.down.length) * cols.cells);
    partial = arena.take<float>(2 * part(cols));
    offset = arena.take<int64_t>(cols.cells);
    begin = arena.take<int32_t>(width / kLanes);
    end = arena.take<int32_t>(width / kLanes);
    start = arena.take<int32_t>(cols.cells + 1);
    level = arena.take<int32_t>(cols.cells);
  }

  int64_t weight_step() const { return 4 * kernel.half; }
  float* weight_at(int64_t frequency) const { return weight + frequency * weight_step(); }
  float* sums_at(int64_t frequency) const { return sums + frequency * weight_step(); }
  int64_t part(const Axis& cols) const { return round_up(cols.cells, kLanes) * kLanes; }
  int64_t line_step(const Axis& cols) const { return (cols.level_count + 1) * line; }

  // The axis seen from its other end.
  Axis turn(const Axis& cols) const {
    for (int b = 0; b <= cols.cells; ++b) start[b] = cols.taps - cols.start[cols.cells - b];
    for (int b = 0; b < cols.cells; ++b) level[b] = cols.level[cols.cells - 1 - b];
    Axis turned = cols;
    turned.start = start;
    turned.level = level;
    return turned;
  }
};

// Places the box sums of an axis and finds what each vector of a row meets.
Boxes prepare(const Axis& cols, int64_t columns, const Scratch& scratch) {
  const int64_t step = scratch.line_step(cols);
  clear(scratch.lines, 2 * step + kLanes);
  for (int b = 0; b < cols.cells; ++b)
    scratch.offset[b] =
        cols.level[b] * scratch.line + scratch.halo - cols.radius + cols.start[b];
  for (int64_t v = 0; v < scratch.width / kLanes; ++v)
    cells_in_reach(cols, v * kLanes, (v + 1) * kLanes - 1, columns, scratch.begin + v,
                   scratch.end + v);
  return {scratch.lines, step, scratch.offset};
}

// Reads a row of a spectrum and sums its boxes.
void read_row(const Transform& down, const Axis& cols, const Spectra& spectra,
              int64_t frequency, const Scratch& scratch) {
  float* row = scratch.lines + scratch.halo;
  take_apart(down, spectra, frequency, row, row + scratch.line_step(cols));
  sum_along(scratch.lines, scratch.line, 2, cols, scratch.halo, scratch.halo + scratch.width);
}

// Runs the tiles of a row whose boxes are at hand. The row itself, which correlating
// reads, is in scratch.re and .im, where convolving leaves its result.
template <int kWork>
void run_row(const Axis& cols, const Boxes& boxes, int64_t frequency,
             const Scratch& scratch) {
  float* weight = scratch.weight_at(frequency);
  const Row weights = {weight, weight + 2 * scratch.kernel.half};
  const Row row = {scratch.re, scratch.im};
  const Row sums = {scratch.partial, scratch.partial + scratch.part(cols)};
  constexpr int kMost = most_vectors(kWork);
  static constexpr TileTable<Tiles<kWork>, 1, kMost> tiles;
  split(scratch.width / kLanes, kMost, [&](int64_t v, int64_t count) {
    // The sums of every cell start from the first tile.
    const bool fresh = v == 0, all = fresh && (kWork & kCorrelate);
    tiles.of[1][count](boxes, v * kLanes, all ? 0 : scratch.begin[v + count - 1],
                       all ? cols.cells : scratch.end[v], weights, row, row, sums, fresh);
  });
}

// Spectra of a kernel's columns, scaled so that their products with a plane's transform
// back in the right scale; of the kernel turned about its vertical axis if `turned`.
void analyse_weight(const Transform& down, const Axis& rows, const Axis& cols,
                    const Taps& taps, const float* weight, bool turned,
                    const Scratch& scratch) {
  // Each of the two spectra is two times too large.
  const float scale = 0.25f / float(down.length);
  for (int a = 0; a < rows.cells; ++a)
    for (int64_t row = taps.begin(rows, a); row < taps.begin(rows, a + 1); ++row)
      for (int b = 0; b < cols.cells; ++b)
        scratch.taps[row * cols.cells + b] =
            scale * weight[a * cols.cells + (turned ? cols.cells - 1 - b : b)];
  analyse(down, {scratch.taps, taps.count, cols.cells, kFloat32}, 0, scratch.kernel,
          scratch.points);
  for (int64_t k = 0; k <= down.length / 2; ++k) {
    float* to = scratch.weight_at(k);
    take_apart(down, scratch.kernel, k, to, to + 2 * scratch.kernel.half);
  }
}

// Adds what a row's tiles have left to the sums of its frequency.
void add_sums(const Axis& cols, int64_t frequency, const Scratch& scratch) {
  float* to = scratch.sums_at(frequency);
  for (int p = 0; p < 2; ++p, to += 2 * scratch.kernel.half)
    for (int64_t b = 0; b < cols.cells; b += kLanes) {
      Vec tile[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        tile[i] = load(scratch.partial + p * scratch.part(cols) + (b + i) * kLanes);
      const Vec sum = sum_lanes(tile);
      store(to + b, load(to + b) + sum);
    }
}

// A plane to bring into the second-level cache while a spectrum's rows are worked on.
struct Fetching {
  const char* lines;
  int64_t step;

  Fetching(const Plane& plane, int64_t frequencies)
      : lines(static_cast<const char*>(plane.data)),
        step((bytes_to_read(plane) + frequencies - 1) / frequencies) {}

  void fetch(int64_t frequency) const {
    for (int64_t at = 0; at < step; at += kLine)
      __builtin_prefetch(lines + frequency * step + at, 0, 2);
  }
};

size_t scratch_size(const Fourier& f, const Axis& rows, const Axis& cols, int64_t width) {
  Arena arena = {nullptr, 0};
  Scratch(arena, f, rows, cols, width);
  return arena.used;
}

void convolve(const Fourier& f, const Axis& rows, const Axis& cols, const Images& x,
              const float* weight, float bias, const Images& y, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f, rows, cols, x.first.width);
  const Transform& down = f.down;
  const Taps taps(rows, x.first.height);
  const int64_t frequencies = down.length / 2 + 1;
  analyse_weight(down, rows, cols, taps, weight, false, scratch);
  const Boxes boxes = prepare(cols, x.first.width, scratch);
  for (int64_t n = 0; n < x.count; ++n) {
    analyse(down, image(x, n), taps.reach, scratch.x, scratch.points);
    const Fetching out(image(y, n), frequencies), next(after(x, n), frequencies);
    for (int64_t k = 0; k < frequencies; ++k) {
      read_row(down, cols, scratch.x, k, scratch);
      out.fetch(k);
      run_row<kConvolve>(cols, boxes, k, scratch);
      put_together(down, scratch.x, k, scratch.re, scratch.im);
      next.fetch(k);
    }
    synthesise(down, scratch.x, image(y, n), 0, bias, scratch.points);
  }
}

void gradients(const Fourier& f, const Axis& rows, const Axis& cols, const Images& x,
               const Images& grad, const float* weight, const Images* grad_x,
               float* grad_weight, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f, rows, cols, grad.first.width);
  const Transform& down = f.down;
  const Taps taps(rows, grad.first.height);
  const int64_t frequencies = down.length / 2 + 1;
  if (grad_x) analyse_weight(down, rows, cols, taps, weight, true, scratch);
  if (grad_weight) {
    clear(scratch.partial, 2 * scratch.part(cols));
    clear(scratch.sums, frequencies * scratch.weight_step());
  }
  const Axis turned = scratch.turn(cols);
  const Boxes boxes = prepare(turned, grad.first.width, scratch);
  const auto run = !grad_weight ? run_row<kConvolveTurned>
                   : grad_x     ? run_row<kConvolveTurned | kCorrelate>
                                : run_row<kCorrelate>;
  for (int64_t n = 0; n < grad.count; ++n) {
    analyse(down, image(grad, n), 0, scratch.grad, scratch.points);
    if (grad_weight) analyse(down, image(x, n), taps.reach, scratch.x, scratch.points);
    const Fetching out(grad_x ? image(*grad_x, n) : Plane{}, frequencies);
    const Fetching next_grad(after(grad, n), frequencies);
    const Fetching next_x(grad_weight ? after(x, n) : Plane{}, frequencies);
    for (int64_t k = 0; k < frequencies; ++k) {
      read_row(down, turned, scratch.grad, k, scratch);
      next_grad.fetch(k);
      if (grad_weight) take_apart(down, scratch.x, k, scratch.re, scratch.im);
      next_x.fetch(k);
      run(turned, boxes, k, scratch);
      if (grad_weight) add_sums(turned, k, scratch);
      if (grad_x) put_together(down, scratch.grad, k, scratch.re, scratch.im);
      out.fetch(k);
    }
    if (grad_x)
      synthesise(down, scratch.grad, image(*grad_x, n), taps.reach, 0.0f, scratch.points);
  }
  if (!grad_weight) return;
  for (int64_t k = 0; k < frequencies; ++k) {
    const float* sums = scratch.sums_at(k);
    put_together(down, scratch.kernel, k, sums, sums + 2 * scratch.kernel.half);
  }
  synthesise(down, scratch.kernel, {scratch.taps, taps.count, cols.cells, kFloat32}, 0,
             0.0f, scratch.points);
  const double scale = 0.25 / double(down.length);
  for (int a = 0; a < rows.cells; ++a)
    for (int b = 0; b < cols.cells; ++b) {
      double sum = 0.0;
      for (int64_t row = taps.begin(rows, a); row < taps.begin(rows, a + 1); ++row)
        sum += scratch.taps[row * cols.cells + cols.cells - 1 - b];
      grad_weight[a * cols.cells + b] = float(scale * sum);
    }
}

}  // namespace

extern const FourierKernels column_kernels = {scratch_size, convolve, gradients};

}  // namespace PELK_ISA
}  // namespace pelk
