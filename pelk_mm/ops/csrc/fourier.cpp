// Depthwise convolutions by real Fourier transforms that stay in the cache.
//
// A vector holds kLanes independent transforms, so that no butterfly shuffles. Down a
// plane the lanes are columns: two real columns make one complex column, and the
// symmetry of their spectra takes them apart again. Along it the lanes are vertical
// frequencies; a transposition in registers lies between the two. Vertical frequencies
// 0 and length / 2 of a real plane are both real down the columns and share lane 0.
//
// Forward passes go from natural order to the order of the digits reversed, inverse
// ones back: a product of spectra does not mind the order.
//
// The input lies half a kernel down and to the right of the origin, kernel and output at
// the origin, so that no index wraps around where it counts.

#include "simd.h"

#include <utility>

namespace pelk {
namespace PELK_ISA {
namespace {

#define PELK_INLINE __attribute__((always_inline))

// Real and imaginary part of kLanes transforms.
constexpr int64_t kPoint = 2 * kLanes;
// Bytes of a line of the cache.
constexpr int64_t kLine = 64;

// ---------------------------------------------------------------- butterflies

// Discrete Fourier transforms of kRadix points in registers.
template <int kRadix>
struct Butterfly;

template <>
struct Butterfly<2> {
  static inline void run(Vec* re, Vec* im) {
    const Vec r = re[0] - re[1], i = im[0] - im[1];
    re[0] += re[1];
    im[0] += im[1];
    re[1] = r;
    im[1] = i;
  }
};

template <>
struct Butterfly<3> {
  static inline void run(Vec* re, Vec* im) {
    constexpr float kSine = 0.866025403784438647f;
    const Vec sum_r = re[1] + re[2], sum_i = im[1] + im[2];
    const Vec turn_r = kSine * (im[1] - im[2]), turn_i = kSine * (re[2] - re[1]);
    const Vec mid_r = re[0] - 0.5f * sum_r, mid_i = im[0] - 0.5f * sum_i;
    re[0] += sum_r;
    im[0] += sum_i;
    re[1] = mid_r + turn_r;
    im[1] = mid_i + turn_i;
    re[2] = mid_r - turn_r;
    im[2] = mid_i - turn_i;
  }
};

template <>
struct Butterfly<4> {
  static inline void run(Vec* re, Vec* im) {
    const Vec even_r = re[0] + re[2], even_i = im[0] + im[2];
    const Vec skew_r = re[0] - re[2], skew_i = im[0] - im[2];
    const Vec odd_r = re[1] + re[3], odd_i = im[1] + im[3];
    const Vec turn_r = im[1] - im[3], turn_i = re[3] - re[1];
    re[0] = even_r + odd_r;
    im[0] = even_i + odd_i;
    re[1] = skew_r + turn_r;
    im[1] = skew_i + turn_i;
    re[2] = even_r - odd_r;
    im[2] = even_i - odd_i;
    re[3] = skew_r - turn_r;
    im[3] = skew_i - turn_i;
  }
};

template <>
struct Butterfly<5> {
  static inline void run(Vec* re, Vec* im) {
    constexpr float kCosine1 = 0.309016994374947424f, kSine1 = 0.951056516295153572f;
    constexpr float kCosine2 = -0.809016994374947424f, kSine2 = 0.587785252292473129f;
    const Vec sum1_r = re[1] + re[4], sum1_i = im[1] + im[4];
    const Vec sum2_r = re[2] + re[3], sum2_i = im[2] + im[3];
    const Vec gap1_r = im[1] - im[4], gap1_i = re[4] - re[1];
    const Vec gap2_r = im[2] - im[3], gap2_i = re[3] - re[2];
    const Vec mid1_r = re[0] + kCosine1 * sum1_r + kCosine2 * sum2_r;
    const Vec mid1_i = im[0] + kCosine1 * sum1_i + kCosine2 * sum2_i;
    const Vec mid2_r = re[0] + kCosine2 * sum1_r + kCosine1 * sum2_r;
    const Vec mid2_i = im[0] + kCosine2 * sum1_i + kCosine1 * sum2_i;
    const Vec turn1_r = kSine1 * gap1_r + kSine2 * gap2_r;
    const Vec turn1_i = kSine1 * gap1_i + kSine2 * gap2_i;
    const Vec turn2_r = kSine2 * gap1_r - kSine1 * gap2_r;
    const Vec turn2_i = kSine2 * gap1_i - kSine1 * gap2_i;
    re[0] += sum1_r + sum2_r;
    im[0] += sum1_i + sum2_i;
    re[1] = mid1_r + turn1_r;
    im[1] = mid1_i + turn1_i;
    re[2] = mid2_r + turn2_r;
    im[2] = mid2_i + turn2_i;
    re[3] = mid2_r - turn2_r;
    im[3] = mid2_i - turn2_i;
    re[4] = mid1_r - turn1_r;
    im[4] = mid1_i - turn1_i;
  }
};

template <>
struct Butterfly<8> {
  static inline void run(Vec* re, Vec* im) {
    constexpr float kHalf = 0.707106781186547524f;
    Vec even_r[4] = {re[0], re[2], re[4], re[6]}, even_i[4] = {im[0], im[2], im[4], im[6]};
    Vec odd_r[4] = {re[1], re[3], re[5], re[7]}, odd_i[4] = {im[1], im[3], im[5], im[7]};
    Butterfly<4>::run(even_r, even_i);
    Butterfly<4>::run(odd_r, odd_i);
    const Vec first = odd_r[1], third = odd_r[3];
    odd_r[1] = kHalf * (first + odd_i[1]);
    odd_i[1] = kHalf * (odd_i[1] - first);
    const Vec second = odd_r[2];
    odd_r[2] = odd_i[2];
    odd_i[2] = -second;
    odd_r[3] = kHalf * (odd_i[3] - third);
    odd_i[3] = -kHalf * (odd_i[3] + third);
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      re[k] = even_r[k] + odd_r[k];
      im[k] = even_i[k] + odd_i[k];
      re[k + 4] = even_r[k] - odd_r[k];
      im[k + 4] = even_i[k] - odd_i[k];
    }
  }
};

// Twice an odd radix: Good and Thomas' map of the indices needs no twiddles.
template <int kOdd>
struct PrimeFactor {
  static inline void run(Vec* re, Vec* im) {
    Vec half_r[2][kOdd], half_i[2][kOdd];
#pragma GCC unroll 8
    for (int n = 0; n < kOdd; ++n) {
      const int a = 2 * n, b = (2 * n + kOdd) % (2 * kOdd);
      half_r[0][n] = re[a] + re[b];
      half_i[0][n] = im[a] + im[b];
      half_r[1][n] = re[a] - re[b];
      half_i[1][n] = im[a] - im[b];
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      Butterfly<kOdd>::run(half_r[h], half_i[h]);
#pragma GCC unroll 8
      for (int k = 0; k < kOdd; ++k) {
        const int to = (kOdd * h + (kOdd + 1) * k) % (2 * kOdd);
        re[to] = half_r[h][k];
        im[to] = half_i[h][k];
      }
    }
  }
};

template <>
struct Butterfly<6> : PrimeFactor<3> {};
template <>
struct Butterfly<10> : PrimeFactor<5> {};

// ---------------------------------------------------------------- passes

// Points of kLanes transforms in memory: [point][part][lane].
struct Points {
  float* data;

  PELK_INLINE void load(int64_t i, Vec* re, Vec* im) const {
    *re = pelk::PELK_ISA::load(data + i * kPoint);
    *im = pelk::PELK_ISA::load(data + i * kPoint + kLanes);
  }
  PELK_INLINE void store(int64_t i, Vec re, Vec im) const {
    pelk::PELK_ISA::store(data + i * kPoint, re);
    pelk::PELK_ISA::store(data + i * kPoint + kLanes, im);
  }
};

// One pass over `length` points in runs of `run`. The inverse is the transposed pass with
// real and imaginary parts exchanged, which conjugates everything; it does not scale.
template <int kRadix, bool kInverse, class From, class To>
void pass(const From from, const To to, int64_t length, int64_t run,
          const float* twiddles) {
  const int64_t step = run / kRadix;
  const auto rotate = [](Vec* re, Vec* im, const float* twiddle) PELK_INLINE {
#pragma GCC unroll 10
    for (int k = 1; k < kRadix; ++k, twiddle += 2) {
      const Vec r = re[k] * twiddle[0] - im[k] * twiddle[1];
      im[k] = re[k] * twiddle[1] + im[k] * twiddle[0];
      re[k] = r;
    }
  };
  const auto column = [&](int64_t first, const float* twiddle) PELK_INLINE {
    Vec re[kRadix], im[kRadix];
#pragma GCC unroll 10
    for (int k = 0; k < kRadix; ++k)
      from.load(first + k * step, kInverse ? im + k : re + k, kInverse ? re + k : im + k);
    if (kInverse && twiddle) rotate(re, im, twiddle);
    Butterfly<kRadix>::run(re, im);
    if (!kInverse && twiddle) rotate(re, im, twiddle);
#pragma GCC unroll 10
    for (int k = 0; k < kRadix; ++k)
      to.store(first + k * step, kInverse ? im[k] : re[k], kInverse ? re[k] : im[k]);
  };
  for (int64_t at = 0; at < length; at += run) column(at, nullptr);
  for (int64_t p = 1; p < step; ++p, twiddles += 2 * (kRadix - 1))
    for (int64_t at = p; at < length; at += run) column(at, twiddles);
}

template <bool kInverse, class From, class To>
void pass_of(int radix, const From& from, const To& to, int64_t length, int64_t run,
             const float* twiddles) {
  switch (radix) {
    case 2: return pass<2, kInverse>(from, to, length, run, twiddles);
    case 3: return pass<3, kInverse>(from, to, length, run, twiddles);
    case 4: return pass<4, kInverse>(from, to, length, run, twiddles);
    case 5: return pass<5, kInverse>(from, to, length, run, twiddles);
    case 6: return pass<6, kInverse>(from, to, length, run, twiddles);
    case 8: return pass<8, kInverse>(from, to, length, run, twiddles);
    case 10: return pass<10, kInverse>(from, to, length, run, twiddles);
  }
}

// Floats of the twiddles of a pass.
int64_t twiddle_count(int64_t run, int64_t radix) {
  return 2 * (run / radix - 1) * (radix - 1);
}

// The first pass reads `from`, all write `points`.
template <class From>
void forward(const Transform& t, const From& from, const Points& points) {
  const float* twiddles = t.twiddles;
  int64_t run = t.length;
  pass_of<false>(t.radices[0], from, points, run, run, twiddles);
  for (int i = 1; i < t.passes; ++i) {
    twiddles += twiddle_count(run, t.radices[i - 1]);
    run /= t.radices[i - 1];
    pass_of<false>(t.radices[i], points, points, t.length, run, twiddles);
  }
}

// All passes work on `points` but the last, which writes `to`.
template <class To>
void inverse(const Transform& t, const Points& points, const To& to) {
  const float* twiddles = t.twiddles;
  int64_t run = t.length;
  for (int i = 0; i < t.passes; ++i) {
    twiddles += twiddle_count(run, t.radices[i]);
    run /= t.radices[i];
  }
  for (int i = t.passes - 1; i > 0; --i) {
    run *= t.radices[i];
    twiddles -= twiddle_count(run, t.radices[i]);
    pass_of<true>(t.radices[i], points, points, t.length, run, twiddles);
  }
  pass_of<true>(t.radices[0], points, to, t.length, t.length, t.twiddles);
}

// ---------------------------------------------------------------- transposition

#ifdef __clang__
#define PELK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
using Picks = int32_t __attribute__((vector_size(kLanes * 4)));
#define PELK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Picks{__VA_ARGS__})
#endif

// Exchanges the blocks beside the diagonal of a 2 x 2 matrix of kStep x kStep blocks.
template <int kStep, int... lane>
inline void exchange(Vec& a, Vec& b, std::integer_sequence<int, lane...>) {
  const Vec low = PELK_SHUFFLE(a, b, (lane & kStep ? lane - kStep + kLanes : lane)...);
  b = PELK_SHUFFLE(a, b, (lane & kStep ? lane + kLanes : lane + kStep)...);
  a = low;
}

template <int kStep>
inline void transpose(Vec* tile) {
  if constexpr (kStep < kLanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & kStep))
        exchange<kStep>(tile[i], tile[i + kStep],
                        std::make_integer_sequence<int, kLanes>());
    transpose<2 * kStep>(tile);
  }
}

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

// kLanes real columns of a plane as real parts and the ones `half` later as imaginary
// parts; point `top` is the first row.
struct Columns {
  Plane plane;
  int64_t top, first, second;
  float bias;

  PELK_INLINE void load(int64_t i, Vec* re, Vec* im) const {
    const int64_t row = i - top;
    const bool inside = uint64_t(row) < uint64_t(plane.height);
    *re = inside ? part(row, first) : Vec{};
    *im = inside ? part(row, second) : Vec{};
  }

  PELK_INLINE void store(int64_t i, Vec re, Vec im) const {
    const int64_t row = i - top;
    if (uint64_t(row) >= uint64_t(plane.height)) return;
    put(row, first, re);
    put(row, second, im);
  }

 private:
  PELK_INLINE Vec part(int64_t row, int64_t begin) const {
    if (plane.type != kFloat32 || begin + kLanes > plane.width) return edge(row, begin);
    return pelk::PELK_ISA::load(static_cast<const float*>(plane.data) +
                                row * plane.width + begin);
  }

  PELK_INLINE void put(int64_t row, int64_t begin, Vec values) const {
    if (plane.type == kFloat32 && begin + kLanes <= plane.width)
      pelk::PELK_ISA::store(static_cast<float*>(const_cast<void*>(plane.data)) +
                                row * plane.width + begin,
                            values + bias);
    else
      put_edge(row, begin, values);
  }

  __attribute__((noinline)) Vec edge(int64_t row, int64_t begin) const {
    float values[kLanes] = {};
    const int64_t count = smaller(kLanes, plane.width - begin);
    if (count > 0)
      read(values, plane.data, row * plane.width + begin, count, plane.type, false);
    return pelk::PELK_ISA::load(values);
  }

  __attribute__((noinline)) void put_edge(int64_t row, int64_t begin, Vec vector) const {
    float values[kLanes];
    pelk::PELK_ISA::store(values, vector);
    const int64_t count = smaller(kLanes, plane.width - begin);
    if (count > 0)
      write(const_cast<void*>(plane.data), row * plane.width + begin, values, count, bias,
            plane.type);
  }
};

// Columns from one that is a real part to the one that is its imaginary part.
int64_t half_of(int64_t width) { return round_up((width + 1) / 2, kLanes); }

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
    forward(f.down, Columns{x, top, begin, begin + half, 0.0f}, Points{panel});
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
    inverse(f.down, Points{panel}, Columns{y, top, begin, begin + half, bias});
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

// `plane` null fetches nothing.
Fetching fetching(const Fourier& f, float* spectrum, int64_t block, const Plane& plane) {
  const int64_t bytes = plane.height * plane.width * (plane.type == kFloat32 ? 4 : 2);
  const int64_t points = block_count(f) * f.along.length;
  const int64_t step = plane.data ? round_up((bytes + points - 1) / points, kLine) : 0;
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

// The taps of a kernel that some pixel meets the map with.
struct Taps {
  int64_t crop, reach, count;

  Taps(const Axis& axis, int64_t size)
      : crop(larger(0, axis.radius - (size - 1))),
        reach(axis.radius - crop),
        count(2 * reach + 1) {}

  // Those of a cell, within [0, count).
  int64_t begin(const Axis& axis, int cell) const {
    return smaller(count, larger(0, axis.start[cell] - crop));
  }
};

struct FourierScratch {
  float *x, *grad, *weight, *sum;  // spectra
  float *panel, *lane, *taps;

  FourierScratch(Arena& arena, const Fourier& f, const Axis& rows, const Axis& cols) {
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

Plane image(const Images& images, int64_t n) {
  return {static_cast<const char*>(images.first.data) + n * images.stride,
          images.first.height, images.first.width, images.first.type};
}

// What is read after image n; no data if there is nothing.
Plane after(const Images& images, int64_t n) {
  if (n + 1 < images.count) return image(images, n + 1);
  Plane next = images.first;
  next.data =
      images.next ? static_cast<const char*>(next.data) + images.next : nullptr;
  return next;
}

// Spectrum of a kernel, scaled so that its product with the spectrum of a plane
// transforms back in the right scale.
void analyse_weight(const Fourier& f, const Axis& rows, const Axis& cols, const Taps& down,
                    const Taps& along, const float* weight,
                    const FourierScratch& scratch) {
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

}  // namespace

size_t fourier_scratch(const Fourier& f, const Axis& rows, const Axis& cols) {
  Arena arena = {nullptr, 0};
  FourierScratch(arena, f, rows, cols);
  return arena.used;
}

void fourier_convolve(const Fourier& f, const Axis& rows, const Axis& cols,
                      const Images& x, const float* weight, float bias, const Images& y,
                      void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const FourierScratch scratch(arena, f, rows, cols);
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

void fourier_gradients(const Fourier& f, const Axis& rows, const Axis& cols,
                       const Images& x, const Images& grad, const float* weight,
                       const Images* grad_x, float* grad_weight, void* memory) {
  Arena arena = {static_cast<char*>(memory), 0};
  const FourierScratch scratch(arena, f, rows, cols);
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

}  // namespace PELK_ISA
}  // namespace pelk
