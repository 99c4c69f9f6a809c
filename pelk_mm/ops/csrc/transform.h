// Fourier transforms: butterflies and passes, for files that are compiled once per
// instruction set.
//
// A vector holds kLanes independent transforms, so that butterflies need no shuffles.
// Forward passes go from natural to digit-reversed order, inverse ones back: the order
// does not matter to a product of spectra.
#pragma once

#include "simd.h"

namespace pelk {
namespace PELK_ISA {
namespace {

// Floats per point of kLanes transforms: real parts, then imaginary parts.
constexpr int64_t kPoint = 2 * kLanes;

// ---------------------------------------------------------------- butterflies

// Discrete Fourier transforms of kRadix points; inlined, as otherwise their operands
// would go through memory.
template <int kRadix>
struct Butterfly;

template <>
struct Butterfly<2> {
  static PELK_INLINE void run(Vec* re, Vec* im) {
    const Vec r = re[0] - re[1], i = im[0] - im[1];
    re[0] += re[1];
    im[0] += im[1];
    re[1] = r;
    im[1] = i;
  }
};

template <>
struct Butterfly<3> {
  static PELK_INLINE void run(Vec* re, Vec* im) {
    constexpr float kSine = 0.866025403784438647f;
    const Vec sum_r = re[1] + re[2], sum_i = im[1] + im[2];
    const Vec rot_r = kSine * (im[1] - im[2]), rot_i = kSine * (re[2] - re[1]);
    const Vec mid_r = re[0] - 0.5f * sum_r, mid_i = im[0] - 0.5f * sum_i;
    re[0] += sum_r;
    im[0] += sum_i;
    re[1] = mid_r + rot_r;
    im[1] = mid_i + rot_i;
    re[2] = mid_r - rot_r;
    im[2] = mid_i - rot_i;
  }
};

template <>
struct Butterfly<4> {
  static PELK_INLINE void run(Vec* re, Vec* im) {
    const Vec even_r = re[0] + re[2], even_i = im[0] + im[2];
    const Vec skew_r = re[0] - re[2], skew_i = im[0] - im[2];
    const Vec odd_r = re[1] + re[3], odd_i = im[1] + im[3];
    const Vec rot_r = im[1] - im[3], rot_i = re[3] - re[1];
    re[0] = even_r + odd_r;
    im[0] = even_i + odd_i;
    re[1] = skew_r + rot_r;
    im[1] = skew_i + rot_i;
    re[2] = even_r - odd_r;
    im[2] = even_i - odd_i;
    re[3] = skew_r - rot_r;
    im[3] = skew_i - rot_i;
  }
};

template <>
struct Butterfly<5> {
  static PELK_INLINE void run(Vec* re, Vec* im) {
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
    const Vec rot1_r = kSine1 * gap1_r + kSine2 * gap2_r;
    const Vec rot1_i = kSine1 * gap1_i + kSine2 * gap2_i;
    const Vec rot2_r = kSine2 * gap1_r - kSine1 * gap2_r;
    const Vec rot2_i = kSine2 * gap1_i - kSine1 * gap2_i;
    re[0] += sum1_r + sum2_r;
    im[0] += sum1_i + sum2_i;
    re[1] = mid1_r + rot1_r;
    im[1] = mid1_i + rot1_i;
    re[2] = mid2_r + rot2_r;
    im[2] = mid2_i + rot2_i;
    re[3] = mid2_r - rot2_r;
    im[3] = mid2_i - rot2_i;
    re[4] = mid1_r - rot1_r;
    im[4] = mid1_i - rot1_i;
  }
};

template <>
struct Butterfly<8> {
  static PELK_INLINE void run(Vec* re, Vec* im) {
    constexpr float kHalf = 0.707106781186547524f;
    Vec even_r[4] = {re[0], re[2], re[4], re[6]},
        even_i[4] = {im[0], im[2], im[4], im[6]};
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

// Twice an odd radix: the prime-factor (Good-Thomas) index mapping needs no twiddles.
template <int kOdd>
struct PrimeFactor {
  static PELK_INLINE void run(Vec* re, Vec* im) {
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
// real and imaginary parts exchanged, which conjugates everything; it is not normalised.
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

// The first pass reads `from`, the last writes `to`, those in between work on `points`.
template <class From, class To>
void forward(const Transform& t, const From& from, const Points& points, const To& to) {
  const float* twiddles = t.twiddles;
  int64_t run = t.length;
  if (t.passes == 1) return pass_of<false>(t.radices[0], from, to, run, run, twiddles);
  pass_of<false>(t.radices[0], from, points, run, run, twiddles);
  for (int i = 1; i < t.passes; ++i) {
    twiddles += twiddle_count(run, t.radices[i - 1]);
    run /= t.radices[i - 1];
    if (i + 1 < t.passes)
      pass_of<false>(t.radices[i], points, points, t.length, run, twiddles);
    else
      pass_of<false>(t.radices[i], points, to, t.length, run, twiddles);
  }
}

template <class From>
void forward(const Transform& t, const From& from, const Points& points) {
  forward(t, from, points, points);
}

template <class From, class To>
void inverse(const Transform& t, const From& from, const Points& points, const To& to) {
  const float* twiddles = t.twiddles;
  int64_t run = t.length;
  if (t.passes == 1) return pass_of<true>(t.radices[0], from, to, run, run, twiddles);
  for (int i = 0; i < t.passes; ++i) {
    twiddles += twiddle_count(run, t.radices[i]);
    run /= t.radices[i];
  }
  for (int i = t.passes - 1; i > 0; --i) {
    run *= t.radices[i];
    twiddles -= twiddle_count(run, t.radices[i]);
    if (i + 1 == t.passes)
      pass_of<true>(t.radices[i], from, points, t.length, run, twiddles);
    else
      pass_of<true>(t.radices[i], points, points, t.length, run, twiddles);
  }
  pass_of<true>(t.radices[0], points, to, t.length, t.length, t.twiddles);
}

template <class To>
void inverse(const Transform& t, const Points& points, const To& to) {
  inverse(t, points, points, to);
}

}  // namespace
}  // namespace PELK_ISA
}  // namespace pelk
