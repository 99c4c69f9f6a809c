// Depthwise convolutions by real two-dimensional Fourier transforms that stay in the
// cache.
//
// A vector holds kLanes independent transforms, so that butterflies need no shuffles. In
// the vertical transforms the lanes are columns: two real columns make one complex
// column, and the symmetry of their spectra separates them again (unpacking). In the
// horizontal ones the lanes are vertical frequencies; a transposition in registers lies
// between the two.
//
// The packed products: at the vertical frequencies 0 and length / 2 the columns of a real
// plane have real spectra. They share products 0 of the first block of frequencies, one
// as the real part and the other as the imaginary part, and are separated when spectra
// are multiplied.
//
// The input is placed half a kernel below and to the right of the origin, kernel and
// output at the origin, so that no index wraps around where it counts.

#include "plane_io.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// ---------------------------------------------------------------- planes and spectra

// Blocks of kLanes vertical frequencies.
int64_t block_count(const FourierProblem& f) {
  return (f.vertical.length / 2 + kLanes - 1) / kLanes;
}

// Floats of a spectrum: [block][horizontal frequency][part][products].
int64_t spectrum_size(const FourierProblem& f) {
  return block_count(f) * f.horizontal.length * kPoint;
}

// Separates the spectra Z of complex columns, which `panel` holds, into those of the
// first and second real columns, A and B, at two times their scale:
//
//   A(k) = Z(k) + conj(Z(-k))        B(k) = -i (Z(k) - conj(Z(-k)))
//
// Writes kLanes horizontal points from `rows` on for A, and `half` points on for B;
// points beyond `width` are left out.
void unpack_columns(const Transform& vertical, const float* panel, int64_t block,
                    float* rows, int64_t half, int64_t width) {
  const int64_t length = vertical.length;
  const int32_t* position = vertical.position;
  const auto unpack = [&](auto second, auto imaginary) {
    constexpr bool kSecond = second, kImaginary = imaginary;
    // Real parts of A and imaginary parts of B come from real parts of Z.
    constexpr int64_t kPart = kSecond == kImaginary ? 0 : kLanes;
    Vec tile[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      const int64_t k = smaller(block * kLanes + i, length / 2);
      const Vec here = load(panel + position[k] * kPoint + kPart);
      const Vec mirrored = load(panel + position[k ? length - k : 0] * kPoint + kPart);
      tile[i] = !kImaginary ? here + mirrored
                : !kSecond  ? here - mirrored
                            : mirrored - here;
    }
    if (block == 0 && kImaginary) {
      // The packed products: frequency length / 2 instead of the imaginary part of
      // frequency 0.
      const Vec middle =
          load(panel + position[length / 2] * kPoint + (kSecond ? kLanes : 0));
      tile[0] = middle + middle;
    }
    transpose<1>(tile);
    const int64_t skip = kSecond ? half : 0;
    const int64_t count = smaller(kLanes, width - skip);
    float* to = rows + skip * kPoint + (kImaginary ? kLanes : 0);
    if (count == kLanes) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + i * kPoint, tile[i]);
    } else {
      for (int64_t i = 0; i < count; ++i) store(to + i * kPoint, tile[i]);
    }
  };
  unpack(Constant<false>(), Constant<false>());
  unpack(Constant<false>(), Constant<true>());
  unpack(Constant<true>(), Constant<false>());
  unpack(Constant<true>(), Constant<true>());
}

// The inverse of `unpack_columns`: Z(k) = A(k) + i B(k), Z(-k) = conj(A(k)) + i
// conj(B(k)).
void pack_columns(const Transform& vertical, const float* rows, int64_t half,
                  int64_t width, int64_t block, float* panel) {
  const int64_t length = vertical.length;
  const int32_t* position = vertical.position;
  const auto read_part = [&](bool second, bool imaginary, Vec* tile) {
    const int64_t skip = second ? half : 0;
    const int64_t count = smaller(kLanes, width - skip);
    const float* from = rows + skip * kPoint + (imaginary ? kLanes : 0);
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
  // A part of Z is the real part of one column's spectrum, plus or minus the imaginary
  // part of the other's.
  const auto pack = [&](bool imaginary) {
    const int64_t part = imaginary ? kLanes : 0;
    const float sign = imaginary ? 1.0f : -1.0f;
    Vec a[kLanes], b[kLanes];
    read_part(imaginary, false, a);
    read_part(!imaginary, true, b);
    for (int i = 0; i < kLanes; ++i) {
      const int64_t k = block * kLanes + i;
      if (k == 0 || k >= length / 2) continue;
      store(panel + position[k] * kPoint + part, a[i] + sign * b[i]);
      store(panel + position[length - k] * kPoint + part, a[i] - sign * b[i]);
    }
    if (block == 0) {
      // The packed products: `b` has the other column at frequency length / 2.
      store(panel + position[0] * kPoint + part, a[0]);
      store(panel + position[length / 2] * kPoint + (kLanes - part), b[0]);
    }
  };
  pack(false);
  pack(true);
}

// Transforms a plane's columns, at two times the scale; its first row becomes row `top`
// and its first column column `left` of the spectrum.
void transform_columns(const FourierProblem& f, const Plane& x, int64_t top, int64_t left,
                       float* spectrum, float* panel) {
  const int64_t width = f.horizontal.length;
  const int64_t half = half_of(x.width), blocks = block_count(f);
  for (int64_t block = 0; block < blocks; ++block) {
    float* rows = spectrum + block * width * kPoint;
    clear(rows, left * kPoint);
    clear(rows + (left + x.width) * kPoint, (width - left - x.width) * kPoint);
  }
  for (int64_t begin = 0; begin < half; begin += kLanes) {
    with_columns(x, top, begin, half, 0.0f, [&](const auto& columns) {
      transform<kForward>(f.vertical, columns, Points{panel}, Points{panel});
    });
    for (int64_t block = 0; block < blocks; ++block)
      unpack_columns(f.vertical, panel, block,
                     spectrum + (block * width + left + begin) * kPoint, half,
                     x.width - begin);
  }
}

// Transforms columns back into a plane whose first row is row `top` and first column
// column `left` of the spectrum, `length` times too large, and adds `bias`.
void inverse_columns(const FourierProblem& f, const float* spectrum, const Plane& y,
                     int64_t top, int64_t left, float bias, float* panel) {
  const int64_t width = f.horizontal.length;
  const int64_t half = half_of(y.width), blocks = block_count(f);
  for (int64_t begin = 0; begin < half; begin += kLanes) {
    for (int64_t block = 0; block < blocks; ++block)
      pack_columns(f.vertical, spectrum + (block * width + left + begin) * kPoint, half,
                   y.width - begin, block, panel);
    with_columns(y, top, begin, half, bias, [&](const auto& columns) {
      transform<kInverse>(f.vertical, Points{panel}, Points{panel}, columns);
    });
  }
}

// The rows of a block of a spectrum.
Points rows_of(const FourierProblem& f, float* spectrum, int64_t block) {
  return {spectrum + block * f.horizontal.length * kPoint};
}

// The same, and while a pass goes through all blocks it prefetches a plane.
struct PrefetchingPoints {
  Points points;
  Prefetcher plane;
  int64_t first;

  PELK_INLINE Complex load(int64_t i) const {
    plane.prefetch(first + i);
    return points.load(i);
  }
  PELK_INLINE void store(int64_t i, const Complex& z) const {
    plane.prefetch(first + i);
    points.store(i, z);
  }
};

PrefetchingPoints prefetching(const FourierProblem& f, float* spectrum, int64_t block,
                              const Plane& plane) {
  const int64_t width = f.horizontal.length;
  return {rows_of(f, spectrum, block), {plane, block_count(f) * width}, block * width};
}

// ---------------------------------------------------------------- products of spectra

// A number of the packed products.
struct Packed {
  float re, im;
};

// Multiplies the packed products as `multiply` does the others. They hold the spectra P
// and Q of two real sequences as P + iQ, which their symmetry separates. `products` is
// ordered as they are.
template <bool kConjugate, bool kAdd>
void multiply_packed(const Transform& horizontal, const float* a, const float* b,
                     const float* out, Packed* products) {
  const int64_t width = horizontal.length;
  for (int64_t k = 0; k <= width / 2; ++k) {
    const int64_t here = horizontal.position[k];
    const int64_t mirrored = horizontal.position[k ? width - k : 0];
    const auto get = [](const float* from, int64_t i) {
      return Packed{from[i * kPoint], from[i * kPoint + kLanes]};
    };
    const auto separate = [&](const float* from, Packed* p, Packed* q) {
      const Packed z = get(from, here), w = get(from, mirrored);
      *p = {0.5f * (z.re + w.re), 0.5f * (z.im - w.im)};
      *q = {0.5f * (z.im + w.im), 0.5f * (w.re - z.re)};
    };
    const auto product = [](const Packed& x, const Packed& y) {
      const float im = kConjugate ? -y.im : y.im;
      return Packed{x.re * y.re - x.im * im, x.im * y.re + x.re * im};
    };
    Packed pa, qa, pb, qb;
    separate(a, &pa, &qa);
    separate(b, &pb, &qb);
    const Packed p = product(pa, pb), q = product(qa, qb);
    const Packed old = kAdd ? get(out, here) : Packed{};
    const Packed old_mirrored = kAdd ? get(out, mirrored) : Packed{};
    products[here] = {p.re - q.im + old.re, p.im + q.re + old.im};
    products[mirrored] = {p.re + q.im + old_mirrored.re, q.re - p.im + old_mirrored.im};
  }
}

// out = a * b, or with kConjugate a * conj(b), for one block; kAdd adds it to out. `out`
// may be an operand. `products` has room for one per horizontal frequency.
template <bool kConjugate, bool kAdd>
void multiply(const FourierProblem& f, int64_t block, const Points& first,
              const Points& second, const Points& result, Packed* products) {
  float* out = result.data;
  if (block == 0)
    multiply_packed<kConjugate, kAdd>(f.horizontal, first.data, second.data, out,
                                      products);
  for (int64_t i = 0; i < f.horizontal.length; ++i) {
    const Complex a = first.load(i), b = second.load(i);
    const Complex product =
        kConjugate ? Complex{a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im}
                   : Complex{a.re * b.re - a.im * b.im, a.im * b.re + a.re * b.im};
    result.store(i, kAdd ? product + result.load(i) : product);
  }
  for (int64_t i = 0; block == 0 && i < f.horizontal.length; ++i) {
    out[i * kPoint] = products[i].re;
    out[i * kPoint + kLanes] = products[i].im;
  }
}

// ---------------------------------------------------------------- convolutions

struct Scratch {
  float *x, *grad, *weight, *sum;  // spectra
  float *panel, *taps;
  Packed* products;

  Scratch(Arena& arena, const FourierProblem& f) {
    x = arena.take<float>(spectrum_size(f));
    grad = arena.take<float>(spectrum_size(f));
    weight = arena.take<float>(spectrum_size(f));
    sum = arena.take<float>(spectrum_size(f));
    panel = arena.take<float>(f.vertical.length * kPoint);
    products = arena.take<Packed>(f.horizontal.length);
    taps = arena.take<float>(f.rows.taps * f.cols.taps);
  }
};

// The spectrum of a kernel, scaled so that its product with the spectrum of a plane
// transforms back at the right scale.
void transform_weight(const FourierProblem& f, const float* weight,
                      const Scratch& scratch) {
  const Axis &rows = f.rows, &cols = f.cols;
  // Each of the two spectra is two times too large.
  const float scale = 0.25f / (float(f.vertical.length) * float(f.horizontal.length));
  float* tap = scratch.taps;
  for (int a = 0; a < rows.cells; ++a)
    for (int row = rows.start[a]; row < rows.start[a + 1]; ++row)
      for (int b = 0; b < cols.cells; ++b)
        for (int col = cols.start[b]; col < cols.start[b + 1]; ++col)
          *tap++ = scale * weight[a * cols.cells + b];
  transform_columns(f, {scratch.taps, rows.taps, cols.taps, kFloat32}, 0, 0,
                    scratch.weight, scratch.panel);
  for (int64_t block = 0; block < block_count(f); ++block) {
    const Points points = rows_of(f, scratch.weight, block);
    transform<kForward>(f.horizontal, points, points, points);
  }
}

void convolve(const FourierProblem& f, const Images& x, const float* weight, float bias,
              const Images& y, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f);
  transform_weight(f, weight, scratch);
  for (int64_t n = 0; n < x.count; ++n) {
    transform_columns(f, image(x, n), f.rows.radius, f.cols.radius, scratch.x,
                      scratch.panel);
    for (int64_t block = 0; block < block_count(f); ++block) {
      const Points points = rows_of(f, scratch.x, block);
      transform<kForward>(f.horizontal, prefetching(f, scratch.x, block, image(y, n)),
                          points, points);
      multiply<true, false>(f, block, points, rows_of(f, scratch.weight, block), points,
                            scratch.products);
      transform<kInverse>(f.horizontal, points, points,
                          prefetching(f, scratch.x, block, next_image(x, n)));
    }
    inverse_columns(f, scratch.x, image(y, n), 0, 0, bias, scratch.panel);
  }
}

void gradients(const FourierProblem& f, const Images& x, const Images& grad,
               const float* weight, const Images* grad_x, float* grad_weight,
               void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const Scratch scratch(arena, f);
  const Axis &rows = f.rows, &cols = f.cols;
  const int64_t blocks = block_count(f);
  if (grad_x) transform_weight(f, weight, scratch);
  for (int64_t n = 0; n < grad.count; ++n) {
    if (grad_weight)
      transform_columns(f, image(x, n), rows.radius, cols.radius, scratch.x,
                        scratch.panel);
    transform_columns(f, image(grad, n), 0, 0, scratch.grad, scratch.panel);
    for (int64_t block = 0; block < blocks; ++block) {
      const Points points = rows_of(f, scratch.grad, block);
      transform<kForward>(f.horizontal,
                          prefetching(f, scratch.grad, block, next_image(grad, n)),
                          points, points);
      if (grad_weight) {
        const Points input = rows_of(f, scratch.x, block);
        transform<kForward>(f.horizontal,
                            prefetching(f, scratch.x, block, next_image(x, n)), input,
                            input);
        (n == 0 ? multiply<true, false>
                : multiply<true, true>)(f, block, input, points,
                                        rows_of(f, scratch.sum, block), scratch.products);
      }
      if (grad_x) {
        multiply<false, false>(f, block, points, rows_of(f, scratch.weight, block),
                               points, scratch.products);
        transform<kInverse>(f.horizontal, points, points,
                            prefetching(f, scratch.grad, block, image(*grad_x, n)));
      }
    }
    if (grad_x)
      inverse_columns(f, scratch.grad, image(*grad_x, n), rows.radius, cols.radius, 0.0f,
                      scratch.panel);
  }
  if (!grad_weight) return;
  for (int64_t block = 0; block < blocks; ++block) {
    const Points sum = rows_of(f, scratch.sum, block);
    transform<kInverse>(f.horizontal, sum, sum, sum);
  }
  inverse_columns(f, scratch.sum, {scratch.taps, rows.taps, cols.taps, kFloat32}, 0, 0,
                  0.0f, scratch.panel);
  const double scale = 0.25 / (double(f.vertical.length) * double(f.horizontal.length));
  for (int a = 0; a < rows.cells; ++a)
    for (int b = 0; b < cols.cells; ++b) {
      double sum = 0.0;
      for (int row = rows.start[a]; row < rows.start[a + 1]; ++row)
        for (int col = cols.start[b]; col < cols.start[b + 1]; ++col)
          sum += scratch.taps[row * cols.taps + col];
      grad_weight[a * cols.cells + b] = float(scale * sum);
    }
}

}  // namespace

extern const FourierKernels fft_kernels = {bytes_of<Scratch, FourierProblem>, convolve,
                                           gradients};

}  // namespace PELK_ISA
}  // namespace pelk
