// Depthwise convolutions by real Fourier transforms of the columns (vertical) and box
// sums along the rows.
//
// A kernel whose columns share parameters has few distinct columns, and each becomes one
// number per vertical frequency: along a row of the spectrum the convolution is a linear
// combination of box sums with complex weights. Neither a transform of the rows nor its
// padding is needed, and only the distinct columns of the kernel are transformed.
//
// Two real columns make one complex column, which is unpacked when a row of the spectrum
// is read and packed when it is written. The input is placed half a kernel below the
// origin, kernel and output at the origin, so that no index wraps around where it counts.

#include "box_sums.h"
#include "plane_io.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// ---------------------------------------------------------------- spectra of columns

// Spectra of complex columns, two real ones each: [position][part][complex column].
struct Spectra {
  Transform vertical;
  float* data;
  int64_t width;  // real columns
  int64_t half;   // complex columns
  int64_t pitch;  // floats from one position to the next

  Spectra(Arena& arena, const Transform& vertical, int64_t width)
      : vertical(vertical), width(width), half(half_of(width)) {
    // Rows a power of two apart would contend for the same few cache sets.
    pitch = 2 * half + kLanes;
    data = arena.take<float>(vertical.length * pitch);
  }

  float* at(int64_t frequency) const {
    return data + vertical.position[frequency] * pitch;
  }
  // Where a real column has the conjugate of what it has at `frequency`.
  float* mirrored(int64_t frequency) const {
    return at(frequency ? vertical.length - frequency : 0);
  }
};

// A vector of complex columns, read and written by transforms.
struct Panel {
  float* data;
  int64_t pitch, half;

  PELK_INLINE Complex load(int64_t i) const {
    const float* from = data + i * pitch;
    return {pelk::PELK_ISA::load(from), pelk::PELK_ISA::load(from + half)};
  }
  PELK_INLINE void store(int64_t i, const Complex& z) const {
    pelk::PELK_ISA::store(data + i * pitch, z.re);
    pelk::PELK_ISA::store(data + i * pitch + half, z.im);
  }
};

// The plane's first row becomes point `top` of the transforms.
void transform_columns(const Plane& x, int64_t top, const Spectra& spectra,
                       const Points& points) {
  for (int64_t begin = 0; begin < spectra.half; begin += kLanes)
    with_columns(x, top, begin, spectra.half, 0.0f, [&](const auto& columns) {
      transform<kForward>(spectra.vertical, columns, points,
                          Panel{spectra.data + begin, spectra.pitch, spectra.half});
    });
}

// Transforms back into a plane, `length` times too large, and adds `bias`.
void inverse_columns(const Spectra& spectra, const Plane& y, int64_t top, float bias,
                     const Points& points) {
  for (int64_t begin = 0; begin < spectra.half; begin += kLanes)
    with_columns(y, top, begin, spectra.half, bias, [&](const auto& columns) {
      transform<kInverse>(spectra.vertical,
                          Panel{spectra.data + begin, spectra.pitch, spectra.half},
                          points, columns);
    });
}

// Separates the real columns' spectra at a frequency, at two times their scale.
void unpack(const Spectra& spectra, int64_t frequency, float* re, float* im) {
  const int64_t half = spectra.half;
  const float* here = spectra.at(frequency);
  const float* mirrored = spectra.mirrored(frequency);
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vec here_re = load(here + i), here_im = load(here + half + i);
    const Vec mirrored_re = load(mirrored + i), mirrored_im = load(mirrored + half + i);
    store(re + i, here_re + mirrored_re);
    store(im + i, here_im - mirrored_im);
    store(re + half + i, here_im + mirrored_im);
    store(im + half + i, mirrored_re - here_re);
  }
  // What columns beyond the last one have is rounding error of those that they share
  // transforms with.
  clear(re + spectra.width, 2 * half - spectra.width);
  clear(im + spectra.width, 2 * half - spectra.width);
}

// Combines the real columns' spectra at a frequency: the inverse of `unpack`.
void pack(const Spectra& spectra, int64_t frequency, const float* re, const float* im) {
  const int64_t half = spectra.half;
  float* here = spectra.at(frequency);
  float* mirrored = spectra.mirrored(frequency);
  for (int64_t i = 0; i < half; i += kLanes) {
    const Vec first_re = load(re + i), first_im = load(im + i);
    const Vec second_re = load(re + half + i), second_im = load(im + half + i);
    store(here + i, first_re - second_im);
    store(here + half + i, first_im + second_re);
    store(mirrored + i, first_re + second_im);
    store(mirrored + half + i, second_re - first_im);
  }
}

// ---------------------------------------------------------------- register tiles

// A row of a spectrum and its box sums: real parts of all levels, then imaginary ones.
struct Boxes {
  const float* lines;
  int64_t step;           // floats from real to imaginary parts
  const int64_t* offset;  // per cell, from `lines` to its box sums
};

// One complex number per column, or per cell.
struct Row {
  float *re, *im;
};

// How a tile combines box sums with the weights into an output.
enum class Mix { kNone, kConjugate, kPlain };

// With many registers complex products take three real ones (Gauss); the additions that
// this costs are cheaper.
constexpr bool kThreeProducts = PELK_REGISTERS >= 32;

// A factor: a number or vectors of them.
template <class T>
struct Factor {
  T re, im, sum;

  Factor(T re, T im) : re(re), im(im), sum(kThreeProducts ? re + im : T{}) {}
};

// A sum of products of complex vectors.
struct Products {
  Vec p = {}, q = {}, s = {};

  template <class T>
  PELK_INLINE void add(const Factor<T>& a, const Factor<Vec>& b) {
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

// For kVectors vectors of columns from x on and the cells in [b0, b1) computes
//   Mix::kConjugate:  out[x..] = sum of conj(weight[b]) * box sum of b
//   Mix::kPlain:      out[x..] = sum of weight[b] * box sum of b
//   kCorrelate:       sums[b] (+)= sum over columns of own[x..] * conj(box sum of b),
//                     kept as vectors of partial sums
// `out` may be `own`. The `first` tile of a row sets the sums, later ones add to them.
template <int kVectors, Mix kMix, bool kCorrelate>
PELK_NOINLINE void run_tile(const Boxes& boxes, int64_t x, int b0, int b1,
                            const Row& weight, const Row& own, const Row& out,
                            const Row& sums, bool first) {
  constexpr bool kMixes = kMix != Mix::kNone;
  constexpr float kSign = kMix == Mix::kConjugate ? -1.0f : 1.0f;
  Products mixed[kVectors];
  Vec own_re[kVectors], own_im[kVectors];
  if constexpr (kCorrelate) {
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
      const Factor<Vec> box(keep_in_register(load(from + v * kLanes)),
                            keep_in_register(load(from + boxes.step + v * kLanes)));
      if constexpr (kMixes)
        mixed[v].add(Factor<float>(weight.re[b], kSign * weight.im[b]), box);
      if constexpr (kCorrelate) conjugate.add(Factor<Vec>(own_re[v], -own_im[v]), box);
    }
    if constexpr (kCorrelate) {
      float *to_re = sums.re + b * kLanes, *to_im = sums.im + b * kLanes;
      store(to_re, first ? conjugate.re() : load(to_re) + conjugate.re());
      store(to_im, first ? -conjugate.im() : load(to_im) - conjugate.im());
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

// The sums of a tile's columns must fit in the registers, and most of `own`.
constexpr int most_vectors(bool correlate) {
  return (PELK_REGISTERS >= 32 ? 8 : 4) / (correlate ? 2 : 1);
}

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
  // Floats per level of a row, of them before its first column, and its columns.
  int64_t line, halo, width;
  float *lines, *re, *im;  // box sums; a row
  float *weight, *sums;    // [frequency][part][column of the kernel]
  float* taps;
  float* partial;  // [part][cell][lane]
  int64_t* offset;
  int32_t *begin, *end;  // per vector, its valid cells

  Scratch(Arena& arena, const FourierProblem& f)
      : x(Spectra(arena, f.vertical, f.width)),
        grad(Spectra(arena, f.vertical, f.width)),
        kernel(Spectra(arena, f.vertical, f.cols.cells)),
        points{arena.take<float>(f.vertical.length * kPoint)},
        halo(round_up(f.cols.radius, kLanes)),
        width(2 * half_of(f.width)) {
    const Axis& cols = f.cols;
    line = round_up(halo + width + cols.radius, kLanes) + kLanes;
    lines = arena.take<float>(2 * (cols.level_count + 1) * line + kLanes);
    re = arena.take<float>(width);
    im = arena.take<float>(width);
    weight = arena.take<float>((f.vertical.length / 2 + 1) * weight_step());
    sums = arena.take<float>((f.vertical.length / 2 + 1) * weight_step());
    taps = arena.take<float>(f.rows.taps * cols.cells);
    partial = arena.take<float>(2 * part(cols));
    offset = arena.take<int64_t>(cols.cells);
    begin = arena.take<int32_t>(width / kLanes);
    end = arena.take<int32_t>(width / kLanes);
  }

  int64_t weight_step() const { return 4 * kernel.half; }
  float* weight_at(int64_t frequency) const { return weight + frequency * weight_step(); }
  float* sums_at(int64_t frequency) const { return sums + frequency * weight_step(); }
  int64_t part(const Axis& cols) const { return round_up(cols.cells, kLanes) * kLanes; }
  int64_t line_step(const Axis& cols) const { return (cols.level_count + 1) * line; }
};

// Lays out the box sums of a row and finds the valid cells of each of its vectors.
Boxes lay_out(const FourierProblem& f, const Scratch& scratch) {
  const Axis& cols = f.cols;
  const int64_t step = scratch.line_step(cols);
  clear(scratch.lines, 2 * step + kLanes);
  for (int b = 0; b < cols.cells; ++b)
    scratch.offset[b] =
        cols.level[b] * scratch.line + scratch.halo - cols.radius + cols.start[b];
  for (int64_t v = 0; v < scratch.width / kLanes; ++v) {
    const ValidTaps taps(cols.taps, v * kLanes, (v + 1) * kLanes - 1, f.width);
    int32_t begin = 0, end = cols.cells;
    while (begin < end && cols.start[begin + 1] <= taps.begin) ++begin;
    while (end > begin && cols.start[end - 1] >= taps.end) --end;
    scratch.begin[v] = begin;
    scratch.end[v] = end;
  }
  return {scratch.lines, step, scratch.offset};
}

// Reads a row of a spectrum and computes its box sums.
void read_row(const FourierProblem& f, const Spectra& spectra, int64_t frequency,
              const Scratch& scratch) {
  float* row = scratch.lines + scratch.halo;
  unpack(spectra, frequency, row, row + scratch.line_step(f.cols));
  add_box_sums(scratch.lines, scratch.line, 2, f.cols, scratch.halo,
               scratch.halo + scratch.width);
}

// Runs the tiles of a row whose box sums are computed. Correlating reads the other
// operand's row from scratch.re and .im; the output replaces it there.
template <Mix kMix, bool kCorrelate>
void run_row(const Axis& cols, const Boxes& boxes, int64_t frequency,
             const Scratch& scratch) {
  float* weight = scratch.weight_at(frequency);
  const Row weights = {weight, weight + 2 * scratch.kernel.half};
  const Row row = {scratch.re, scratch.im};
  const Row sums = {scratch.partial, scratch.partial + scratch.part(cols)};
  constexpr int kMost = most_vectors(kCorrelate);
  split(scratch.width / kLanes, kMost, [&](int64_t v, int64_t count) {
    // The first tile sets the sums of every cell.
    const bool first = v == 0, all = first && kCorrelate;
    const int b0 = all ? 0 : scratch.begin[v + count - 1];
    const int b1 = all ? cols.cells : scratch.end[v];
    with_constant<kMost>(count, [&](auto vectors) {
      run_tile<vectors, kMix, kCorrelate>(boxes, v * kLanes, b0, b1, weights, row, row,
                                          sums, first);
    });
  });
}

// Spectra of a kernel's columns, scaled so that their products with a plane's transform
// back at the right scale; of the horizontally flipped kernel if `flipped`.
void transform_weight(const FourierProblem& f, const float* weight, bool flipped,
                      const Scratch& scratch) {
  const Axis& rows = f.rows;
  const int cells = f.cols.cells;
  // Each of the two spectra is two times too large.
  const float scale = 0.25f / float(f.vertical.length);
  float* tap = scratch.taps;
  for (int a = 0; a < rows.cells; ++a)
    for (int row = rows.start[a]; row < rows.start[a + 1]; ++row)
      for (int b = 0; b < cells; ++b)
        *tap++ = scale * weight[a * cells + (flipped ? cells - 1 - b : b)];
  transform_columns({scratch.taps, rows.taps, cells, kFloat32}, 0, scratch.kernel,
                    scratch.points);
  for (int64_t k = 0; k <= f.vertical.length / 2; ++k) {
    float* to = scratch.weight_at(k);
    unpack(scratch.kernel, k, to, to + 2 * scratch.kernel.half);
  }
}

// Adds the partial sums of a row's tiles to the sums of its frequency.
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

void convolve(const FourierProblem& f, const Images& x, const float* weight, float bias,
              const Images& y, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f);
  const Transform& vertical = f.vertical;
  const int64_t frequencies = vertical.length / 2 + 1;
  transform_weight(f, weight, false, scratch);
  const Boxes boxes = lay_out(f, scratch);
  for (int64_t n = 0; n < x.count; ++n) {
    transform_columns(image(x, n), f.rows.radius, scratch.x, scratch.points);
    const Prefetcher out(image(y, n), frequencies), next(next_image(x, n), frequencies);
    for (int64_t k = 0; k < frequencies; ++k) {
      read_row(f, scratch.x, k, scratch);
      out.prefetch(k);
      run_row<Mix::kConjugate, false>(f.cols, boxes, k, scratch);
      pack(scratch.x, k, scratch.re, scratch.im);
      next.prefetch(k);
    }
    inverse_columns(scratch.x, image(y, n), 0, bias, scratch.points);
  }
}

void gradients(const FourierProblem& f, const Images& x, const Images& grad,
               const float* weight, const Images* grad_x, float* grad_weight,
               void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f);
  const Transform& vertical = f.vertical;
  const Axis &rows = f.rows, &cols = f.cols;
  const int64_t frequencies = vertical.length / 2 + 1;
  if (grad_x) transform_weight(f, weight, true, scratch);
  if (grad_weight) {
    clear(scratch.partial, 2 * scratch.part(cols));
    clear(scratch.sums, frequencies * scratch.weight_step());
  }
  const Boxes boxes = lay_out(f, scratch);
  const auto run = !grad_weight ? run_row<Mix::kPlain, false>
                   : grad_x     ? run_row<Mix::kPlain, true>
                                : run_row<Mix::kNone, true>;
  for (int64_t n = 0; n < grad.count; ++n) {
    transform_columns(image(grad, n), 0, scratch.grad, scratch.points);
    if (grad_weight)
      transform_columns(image(x, n), rows.radius, scratch.x, scratch.points);
    const Prefetcher out(grad_x ? image(*grad_x, n) : Plane{}, frequencies);
    const Prefetcher next_grad(next_image(grad, n), frequencies);
    const Prefetcher next_x(grad_weight ? next_image(x, n) : Plane{}, frequencies);
    for (int64_t k = 0; k < frequencies; ++k) {
      read_row(f, scratch.grad, k, scratch);
      next_grad.prefetch(k);
      if (grad_weight) unpack(scratch.x, k, scratch.re, scratch.im);
      next_x.prefetch(k);
      run(cols, boxes, k, scratch);
      if (grad_weight) add_sums(cols, k, scratch);
      if (grad_x) pack(scratch.grad, k, scratch.re, scratch.im);
      out.prefetch(k);
    }
    if (grad_x)
      inverse_columns(scratch.grad, image(*grad_x, n), rows.radius, 0.0f, scratch.points);
  }
  if (!grad_weight) return;
  for (int64_t k = 0; k < frequencies; ++k) {
    const float* sums = scratch.sums_at(k);
    pack(scratch.kernel, k, sums, sums + 2 * scratch.kernel.half);
  }
  inverse_columns(scratch.kernel, {scratch.taps, rows.taps, cols.cells, kFloat32}, 0,
                  0.0f, scratch.points);
  const double scale = 0.25 / double(vertical.length);
  for (int a = 0; a < rows.cells; ++a)
    for (int b = 0; b < cols.cells; ++b) {
      double sum = 0.0;
      for (int row = rows.start[a]; row < rows.start[a + 1]; ++row)
        sum += scratch.taps[row * cols.cells + cols.cells - 1 - b];
      grad_weight[a * cols.cells + b] = float(scale * sum);
    }
}

}  // namespace

extern const FourierKernels column_fft_kernels = {bytes_of<Scratch, FourierProblem>,
                                                  convolve, gradients};

}  // namespace PELK_ISA
}  // namespace pelk
