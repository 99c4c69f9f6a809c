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

struct Complex {
  Vec re, im;
};

PELK_INLINE inline Complex operator+(const Complex& a, const Complex& b) {
  return {a.re + b.re, a.im + b.im};
}
PELK_INLINE inline Complex operator-(const Complex& a, const Complex& b) {
  return {a.re - b.re, a.im - b.im};
}
PELK_INLINE inline Complex operator*(float a, const Complex& b) {
  return {a * b.re, a * b.im};
}

// ---------------------------------------------------------------- butterflies

// -i (a - b)
PELK_INLINE inline Complex rotated_difference(const Complex& a, const Complex& b) {
  return {a.im - b.im, b.re - a.re};
}

PELK_INLINE inline Complex combine(float s, const Complex& a, float t, const Complex& b) {
  return {s * a.re + t * b.re, s * a.im + t * b.im};
}

// A discrete Fourier transform of kRadix points; inlined, as otherwise its operands would
// go through memory.
template <int kRadix>
PELK_INLINE inline void butterfly(Complex* z) {
  if constexpr (kRadix == 2) {
    const Complex difference = z[0] - z[1];
    z[0] = z[0] + z[1];
    z[1] = difference;
  } else if constexpr (kRadix == 3) {
    constexpr float kSine = 0.866025403784438647f;
    const Complex sum = z[1] + z[2], rotated = kSine * rotated_difference(z[1], z[2]);
    const Complex middle = z[0] - 0.5f * sum;
    z[0] = z[0] + sum;
    z[1] = middle + rotated;
    z[2] = middle - rotated;
  } else if constexpr (kRadix == 4) {
    const Complex even = z[0] + z[2], skew = z[0] - z[2];
    const Complex odd = z[1] + z[3], rotated = rotated_difference(z[1], z[3]);
    z[0] = even + odd;
    z[1] = skew + rotated;
    z[2] = even - odd;
    z[3] = skew - rotated;
  } else if constexpr (kRadix == 5) {
    constexpr float kCosine1 = 0.309016994374947424f, kSine1 = 0.951056516295153572f;
    constexpr float kCosine2 = -0.809016994374947424f, kSine2 = 0.587785252292473129f;
    const Complex sum1 = z[1] + z[4], gap1 = rotated_difference(z[1], z[4]);
    const Complex sum2 = z[2] + z[3], gap2 = rotated_difference(z[2], z[3]);
    const Complex middle1 = z[0] + kCosine1 * sum1 + kCosine2 * sum2;
    const Complex middle2 = z[0] + kCosine2 * sum1 + kCosine1 * sum2;
    const Complex rotated1 = combine(kSine1, gap1, kSine2, gap2);
    const Complex rotated2 = combine(kSine2, gap1, -kSine1, gap2);
    z[0] = z[0] + (sum1 + sum2);
    z[1] = middle1 + rotated1;
    z[2] = middle2 + rotated2;
    z[3] = middle2 - rotated2;
    z[4] = middle1 - rotated1;
  } else if constexpr (kRadix == 8) {
    constexpr float kHalf = 0.707106781186547524f;
    Complex even[4] = {z[0], z[2], z[4], z[6]}, odd[4] = {z[1], z[3], z[5], z[7]};
    butterfly<4>(even);
    butterfly<4>(odd);
    odd[1] = {kHalf * (odd[1].re + odd[1].im), kHalf * (odd[1].im - odd[1].re)};
    odd[2] = {odd[2].im, -odd[2].re};
    odd[3] = {kHalf * (odd[3].im - odd[3].re), -kHalf * (odd[3].im + odd[3].re)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      z[k] = even[k] + odd[k];
      z[k + 4] = even[k] - odd[k];
    }
  } else {
    // Twice an odd radix: the prime-factor (Good-Thomas) index mapping needs no twiddles.
    constexpr int kOdd = kRadix / 2;
    Complex half[2][kOdd];
#pragma GCC unroll 8
    for (int n = 0; n < kOdd; ++n) {
      const Complex a = z[2 * n], b = z[(2 * n + kOdd) % kRadix];
      half[0][n] = a + b;
      half[1][n] = a - b;
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      butterfly<kOdd>(half[h]);
#pragma GCC unroll 8
      for (int k = 0; k < kOdd; ++k) z[(kOdd * h + (kOdd + 1) * k) % kRadix] = half[h][k];
    }
  }
}

// ---------------------------------------------------------------- passes

// Points of kLanes transforms in memory: [point][part][lane].
struct Points {
  float* data;

  PELK_INLINE Complex load(int64_t i) const {
    const float* from = data + i * kPoint;
    return {pelk::PELK_ISA::load(from), pelk::PELK_ISA::load(from + kLanes)};
  }
  PELK_INLINE void store(int64_t i, const Complex& z) const {
    pelk::PELK_ISA::store(data + i * kPoint, z.re);
    pelk::PELK_ISA::store(data + i * kPoint + kLanes, z.im);
  }
};

enum Direction : bool { kForward, kInverse };

// One pass over `length` points. The inverse is the transposed pass with real and
// imaginary parts exchanged, which conjugates everything; it is not normalised.
template <int kRadix, Direction kDirection, class From, class To>
void run_pass(const Pass& pass, const From from, const To to, int64_t length) {
  const int64_t run = pass.run, step = run / kRadix;
  const float* twiddles = pass.twiddles;
  const auto exchanged = [](const Complex& z) PELK_INLINE {
    return kDirection == kInverse ? Complex{z.im, z.re} : z;
  };
  const auto rotate = [](Complex* z, const float* twiddle) PELK_INLINE {
#pragma GCC unroll 10
    for (int k = 1; k < kRadix; ++k, twiddle += 2)
      z[k] = {z[k].re * twiddle[0] - z[k].im * twiddle[1],
              z[k].re * twiddle[1] + z[k].im * twiddle[0]};
  };
  const auto column = [&](int64_t first, const float* twiddle) PELK_INLINE {
    Complex z[kRadix];
#pragma GCC unroll 10
    for (int k = 0; k < kRadix; ++k) z[k] = exchanged(from.load(first + k * step));
    if (kDirection == kInverse && twiddle) rotate(z, twiddle);
    butterfly<kRadix>(z);
    if (kDirection == kForward && twiddle) rotate(z, twiddle);
#pragma GCC unroll 10
    for (int k = 0; k < kRadix; ++k) to.store(first + k * step, exchanged(z[k]));
  };
  for (int64_t at = 0; at < length; at += run) column(at, nullptr);
  for (int64_t p = 1; p < step; ++p, twiddles += 2 * (kRadix - 1))
    for (int64_t at = p; at < length; at += run) column(at, twiddles);
}

template <Direction kDirection, class From, class To>
void run_pass(const Pass& pass, const From& from, const To& to, int64_t length) {
  switch (pass.radix) {
    case 2: return run_pass<2, kDirection>(pass, from, to, length);
    case 3: return run_pass<3, kDirection>(pass, from, to, length);
    case 4: return run_pass<4, kDirection>(pass, from, to, length);
    case 5: return run_pass<5, kDirection>(pass, from, to, length);
    case 6: return run_pass<6, kDirection>(pass, from, to, length);
    case 8: return run_pass<8, kDirection>(pass, from, to, length);
    case 10: return run_pass<10, kDirection>(pass, from, to, length);
  }
}

// The first pass reads `from`, the last writes `to`, those in between work on `points`.
template <Direction kDirection, class From, class To>
void transform(const Transform& t, const From& from, const Points& points, const To& to) {
  const Pass* pass = kDirection == kForward ? t.passes : t.passes + t.pass_count - 1;
  constexpr int kNext = kDirection == kForward ? 1 : -1;
  if (t.pass_count == 1) return run_pass<kDirection>(*pass, from, to, t.length);
  run_pass<kDirection>(*pass, from, points, t.length);
  for (int i = 2; i < t.pass_count; ++i)
    run_pass<kDirection>(*(pass += kNext), points, points, t.length);
  run_pass<kDirection>(*(pass + kNext), points, to, t.length);
}

}  // namespace
}  // namespace PELK_ISA
}  // namespace pelk
