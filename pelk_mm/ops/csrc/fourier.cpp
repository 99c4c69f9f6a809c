// Depthwise convolutions by real Fourier transforms that stay in the cache.
//
// A vector holds kLanes independent transforms, so that no butterfly shuffles. Down a
// plane the lanes are columns: two real columns make one complex column, and the
// symmetry of their spectra takes them apart again. Along it the lanes are vertical
// frequencies; a transposition in registers lies between the two. Vertical frequencies
// 0 and length / 2 of a real plane are both real down the columns and share lane 0.
//
// The input lies half a kernel down and to the right of the origin, kernel and output at
// the origin, so that no index wraps around where it counts.

#include "fourier.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// ---------------------------------------------------------------- planes and spectra

void zero(float* to, int64_t points) {
  for (int64_t i = 0; i < points * kPoint; i += kLanes) store(to + i, Vec{});
}

// Vectors of vertical frequencies.
int64_t block_count(const Fourier& f) { return (f.down.length / 2 + kLanes - 1) / kLanes; }

// Floats of a spectrum: [block][horizontal frequency][part][lane].
int64_t spectrum_size(const Fourier& f) {
  return block_count(f) * f.along.length * kPoint;
}

// Transforms a plane's columns, in two times the scale; its first row becomes row `top`
// and its first column column `left` of the spectrum.
void analyse(const Fourier& f, const Plane& x, int64_t top, int64_t left, float* spectrum,
             float* panel) {
  const int64_t length = f.down.length, width = f.along.length;
  const int64_t half = half_of(x.width), blocks = block_count(f);
  const int32_t* position = f.down.position;
  for (int64_t block = 0; block < blocks; ++block) {
    float* rows = spectrum + block * width * kPoint;
    zero(rows, left);
    zero(rows + (left + x.width) * kPoint, width - left - x.width);
  }
  for (int64_t begin = 0; begin < half; begin += kLanes) {
    with_columns(x, top, begin, half, 0.0f, [&](const auto& columns) {
      forward(f.down, columns, Points{panel});
    });
    for (int64_t block = 0; block < blocks; ++block) {
      float* columns = spectrum + (block * width + left + begin) * kPoint;
      // Real and imaginary part of the first column's spectrum, then of the second's.
      const auto part = [&](auto number) {
        constexpr int kPart = number;
        constexpr int64_t kOwn = kPart == 1 || kPart == 2 ? kLanes : 0;
        Vec tile[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          const int64_t k = smaller(block * kLanes + i, length / 2);
          const Vec here = load(panel + position[k] * kPoint + kOwn);
          const Vec there = load(panel + position[k ? length - k : 0] * kPoint + kOwn);
          tile[i] = kPart == 0 || kPart == 2 ? here + there
                    : kPart == 1             ? here - there
                                             : there - here;
        }
        if (block == 0 && kPart % 2) {
          const Vec middle =
              load(panel + position[length / 2] * kPoint + kPart / 2 * kLanes);
          tile[0] = middle + middle;
        }
        transpose<1>(tile);
        const int64_t skip = kPart / 2 * half;
        const int64_t count = smaller(kLanes, x.width - begin - skip);
        float* to = columns + skip * kPoint + kPart % 2 * kLanes;
        if (count == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) store(to + i * kPoint, tile[i]);
        } else {
          for (int64_t i = 0; i < count; ++i) store(to + i * kPoint, tile[i]);
        }
      };
      part(Constant<0>());
      part(Constant<1>());
      part(Constant<2>());
      part(Constant<3>());
    }
  }
}

// Transforms columns back into a plane whose first row is row `top` and first column
// column `left` of the spectrum, length times too large, and adds `bias`.
void synthesise(const Fourier& f, const float* spectrum, const Plane& y, int64_t top,
                int64_t left, float bias, float* panel) {
  const int64_t length = f.down.length, width = f.along.length;
  const int64_t half = half_of(y.width), blocks = block_count(f);
  const int32_t* position = f.down.position;
  for (int64_t begin = 0; begin < half; begin += kLanes) {
    for (int64_t block = 0; block < blocks; ++block) {
      const float* columns = spectrum + (block * width + left + begin) * kPoint;
      const auto part = [&](int number, Vec* tile) {
        const int64_t skip = number / 2 * half;
        const int64_t count = smaller(kLanes, y.width - begin - skip);
        const float* from = columns + skip * kPoint + number % 2 * kLanes;
        if (count == kLanes) {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i) tile[i] = load(from + i * kPoint);
        } else {
#pragma GCC unroll 16
          for (int i = 0; i < kLanes; ++i)
            tile[i] = i < count ? load(from + i * kPoint) : Vec{};
        }
        transpose<1>(tile);
      };
      // The sum of the first column's spectrum and i times the second's.
      const auto combine = [&](int first, int second, int64_t offset, float sign) {
        Vec a[kLanes], b[kLanes];
        part(first, a);
        part(second, b);
        for (int i = 0; i < kLanes; ++i) {
          const int64_t k = block * kLanes + i;
          if (k == 0 || k >= length / 2) continue;
          store(panel + position[k] * kPoint + offset, a[i] + sign * b[i]);
          store(panel + position[length - k] * kPoint + offset, a[i] - sign * b[i]);
        }
        if (block == 0) {
          store(panel + position[0] * kPoint + offset, a[0]);
          store(panel + position[length / 2] * kPoint + (kLanes - offset), b[0]);
        }
      };
      combine(0, 3, 0, -1.0f);
      combine(2, 1, kLanes, 1.0f);
    }
    with_columns(y, top, begin, half, bias, [&](const auto& columns) {
      inverse(f.down, Points{panel}, columns);
    });
  }
}

// The rows of a block of a spectrum.
Points rows_of(const Fourier& f, float* spectrum, int64_t block) {
  return {spectrum + block * f.along.length * kPoint};
}

// The same, and while a pass goes through all blocks it brings a plane that is needed
// soon into the second-level cache, a few lines a point.
struct Fetching {
  Points points;
  const char* lines;
  int64_t step;

  PELK_INLINE void load(int64_t i, Vec* re, Vec* im) const {
    fetch(i);
    points.load(i, re, im);
  }
  PELK_INLINE void store(int64_t i, Vec re, Vec im) const {
    fetch(i);
    points.store(i, re, im);
  }

 private:
  PELK_INLINE void fetch(int64_t i) const {
    for (int64_t at = i * step; at < (i + 1) * step; at += kLine)
      __builtin_prefetch(lines + at, 0, 2);
  }
};

Fetching fetching(const Fourier& f, float* spectrum, int64_t block, const Plane& plane) {
  const int64_t points = block_count(f) * f.along.length;
  const int64_t step = round_up((bytes_to_read(plane) + points - 1) / points, kLine);
  return {rows_of(f, spectrum, block),
          static_cast<const char*>(plane.data) + block * f.along.length * step, step};
}

// out = a * b, or with kConjugate a * conj(b); kAdd adds it to out. One block; out may be
// an operand. `lane` has room for four floats a horizontal frequency.
template <bool kConjugate, bool kAdd>
void multiply(const Fourier& f, int64_t block, const Points& first, const Points& second,
              const Points& result, float* lane) {
  const float *a = first.data, *b = second.data;
  float* out = result.data;
  const int64_t width = f.along.length;
  const int32_t* position = f.along.position;
  // Lane 0 of the first block holds the spectra of two real sequences, P + iQ.
  const int64_t packed = block == 0 ? width / 2 + 1 : 0;
  for (int64_t k = 0; k < packed; ++k) {
    const int64_t here = position[k] * kPoint;
    const int64_t there = position[k ? width - k : 0] * kPoint;
    const auto split = [&](const float* from, float* p, float* q) {
      const float re = from[here], im = from[here + kLanes];
      const float other_re = from[there], other_im = from[there + kLanes];
      p[0] = 0.5f * (re + other_re);
      p[1] = 0.5f * (im - other_im);
      q[0] = 0.5f * (im + other_im);
      q[1] = 0.5f * (other_re - re);
    };
    float pa[2], qa[2], pb[2], qb[2];
    split(a, pa, qa);
    split(b, pb, qb);
    if (kConjugate) {
      pb[1] = -pb[1];
      qb[1] = -qb[1];
    }
    const float p_re = pa[0] * pb[0] - pa[1] * pb[1], p_im = pa[1] * pb[0] + pa[0] * pb[1];
    const float q_re = qa[0] * qb[0] - qa[1] * qb[1], q_im = qa[1] * qb[0] + qa[0] * qb[1];
    float* to = lane + 4 * k;
    to[0] = p_re - q_im + (kAdd ? out[here] : 0.0f);
    to[1] = p_im + q_re + (kAdd ? out[here + kLanes] : 0.0f);
    to[2] = p_re + q_im + (kAdd ? out[there] : 0.0f);
    to[3] = q_re - p_im + (kAdd ? out[there + kLanes] : 0.0f);
  }
  for (int64_t i = 0; i < width * kPoint; i += kPoint) {
    const Vec a_re = load(a + i), a_im = load(a + i + kLanes);
    const Vec b_re = load(b + i), b_im = load(b + i + kLanes);
    Vec re, im;
    if (kConjugate) {
      re = a_re * b_re + a_im * b_im;
      im = a_im * b_re - a_re * b_im;
    } else {
      re = a_re * b_re - a_im * b_im;
      im = a_im * b_re + a_re * b_im;
    }
    if (kAdd) {
      re += load(out + i);
      im += load(out + i + kLanes);
    }
    store(out + i, re);
    store(out + i + kLanes, im);
  }
  for (int64_t k = 0; k < packed; ++k) {
    const float* from = lane + 4 * k;
    float* here = out + position[k] * kPoint;
    float* there = out + position[k ? width - k : 0] * kPoint;
    here[0] = from[0];
    here[kLanes] = from[1];
    there[0] = from[2];
    there[kLanes] = from[3];
  }
}

// ---------------------------------------------------------------- convolutions

struct Scratch {
  float *x, *grad, *weight, *sum;  // spectra
  float *panel, *lane, *taps;

  Scratch(Arena& arena, const Fourier& f, const Axis& rows, const Axis& cols) {
    x = arena.take<float>(spectrum_size(f));
    grad = arena.take<float>(spectrum_size(f));
    weight = arena.take<float>(spectrum_size(f));
    sum = arena.take<float>(spectrum_size(f));
    panel = arena.take<float>(f.down.length * kPoint);
    lane = arena.take<float>(4 * (f.along.length / 2 + 1));
    // No more taps than the map can meet.
    taps = arena.take<float>(smaller(rows.taps, 2 * f.down.length) *
                             smaller(cols.taps, 2 * f.along.length));
  }
};

// Spectrum of a kernel, scaled so that its product with the spectrum of a plane
// transforms back in the right scale.
void analyse_weight(const Fourier& f, const Axis& rows, const Axis& cols, const Taps& down,
                    const Taps& along, const float* weight,
                    const Scratch& scratch) {
  // Each of the two spectra is two times too large.
  const float scale = 0.25f / (float(f.down.length) * float(f.along.length));
  for (int a = 0; a < rows.cells; ++a) {
    const int64_t begin = down.begin(rows, a), end = down.begin(rows, a + 1);
    if (begin == end) continue;
    float* row = scratch.taps + begin * along.count;
    for (int b = 0; b < cols.cells; ++b)
      for (int64_t col = along.begin(cols, b); col < along.begin(cols, b + 1); ++col)
        row[col] = scale * weight[a * cols.cells + b];
    for (int64_t i = along.count; i < (end - begin) * along.count; ++i)
      row[i] = row[i - along.count];
  }
  analyse(f, {scratch.taps, down.count, along.count, kFloat32}, 0, 0, scratch.weight,
          scratch.panel);
  for (int64_t block = 0; block < block_count(f); ++block) {
    const Points points = rows_of(f, scratch.weight, block);
    forward(f.along, points, points);
  }
}

size_t scratch_size(const Fourier& f, const Axis& rows, const Axis& cols, int64_t) {
  Arena arena = {nullptr, 0};
  Scratch(arena, f, rows, cols);
  return arena.used;
}

void convolve(const Fourier& f, const Axis& rows, const Axis& cols,
                      const Images& x, const float* weight, float bias, const Images& y,
                      void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f, rows, cols);
  const Taps down(rows, x.first.height), along(cols, x.first.width);
  analyse_weight(f, rows, cols, down, along, weight, scratch);
  for (int64_t n = 0; n < x.count; ++n) {
    analyse(f, image(x, n), down.reach, along.reach, scratch.x, scratch.panel);
    for (int64_t block = 0; block < block_count(f); ++block) {
      const Points points = rows_of(f, scratch.x, block);
      forward(f.along, fetching(f, scratch.x, block, image(y, n)), points);
      multiply<true, false>(f, block, points, rows_of(f, scratch.weight, block), points,
                            scratch.lane);
      inverse(f.along, points, fetching(f, scratch.x, block, after(x, n)));
    }
    synthesise(f, scratch.x, image(y, n), 0, 0, bias, scratch.panel);
  }
}

void gradients(const Fourier& f, const Axis& rows, const Axis& cols,
                       const Images& x, const Images& grad, const float* weight,
                       const Images* grad_x, float* grad_weight, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f, rows, cols);
  const Taps down(rows, grad.first.height), along(cols, grad.first.width);
  const int64_t blocks = block_count(f);
  if (grad_x) analyse_weight(f, rows, cols, down, along, weight, scratch);
  for (int64_t n = 0; n < grad.count; ++n) {
    if (grad_weight)
      analyse(f, image(x, n), down.reach, along.reach, scratch.x, scratch.panel);
    analyse(f, image(grad, n), 0, 0, scratch.grad, scratch.panel);
    for (int64_t block = 0; block < blocks; ++block) {
      const Points points = rows_of(f, scratch.grad, block);
      forward(f.along, fetching(f, scratch.grad, block, after(grad, n)), points);
      if (grad_weight) {
        const Points input = rows_of(f, scratch.x, block);
        const Points sum = rows_of(f, scratch.sum, block);
        forward(f.along, fetching(f, scratch.x, block, after(x, n)), input);
        if (n == 0)
          multiply<true, false>(f, block, input, points, sum, scratch.lane);
        else
          multiply<true, true>(f, block, input, points, sum, scratch.lane);
      }
      if (grad_x) {
        multiply<false, false>(f, block, points, rows_of(f, scratch.weight, block), points,
                               scratch.lane);
        inverse(f.along, points, fetching(f, scratch.grad, block, image(*grad_x, n)));
      }
    }
    if (grad_x)
      synthesise(f, scratch.grad, image(*grad_x, n), down.reach, along.reach, 0.0f,
                 scratch.panel);
  }
  if (!grad_weight) return;
  for (int64_t block = 0; block < blocks; ++block) {
    const Points sum = rows_of(f, scratch.sum, block);
    inverse(f.along, sum, sum);
  }
  synthesise(f, scratch.sum, {scratch.taps, down.count, along.count, kFloat32}, 0, 0, 0.0f,
             scratch.panel);
  const double scale = 0.25 / (double(f.down.length) * double(f.along.length));
  for (int a = 0; a < rows.cells; ++a)
    for (int b = 0; b < cols.cells; ++b) {
      double sum = 0.0;
      for (int64_t row = down.begin(rows, a); row < down.begin(rows, a + 1); ++row)
        for (int64_t col = along.begin(cols, b); col < along.begin(cols, b + 1); ++col)
          sum += scratch.taps[row * along.count + col];
      grad_weight[a * cols.cells + b] = float(scale * sum);
    }
}

}  // namespace

extern const FourierKernels plane_kernels = {scratch_size, convolve, gradients};

}  // namespace PELK_ISA
}  // namespace pelk
