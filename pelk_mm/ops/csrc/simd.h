// Vectors, element types and scratch memory for the files that are compiled once per
// instruction set. All of it has internal linkage, so that no instruction set can run the
// machine code of another.
#pragma once

#include "guards.h"
#include "kernels.h"

#include <cstring>
#include <utility>

#ifndef PELK_LANES
#error "PELK_LANES, PELK_REGISTERS and PELK_ISA come from setup.py"
#endif

#define PELK_INLINE __attribute__((always_inline))
#define PELK_NOINLINE __attribute__((noinline))

namespace pelk {
namespace PELK_ISA {
namespace {

constexpr int kLanes = PELK_LANES;

using Vec = float __attribute__((vector_size(kLanes * 4)));
using LooseVec = float __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

using Indices = int32_t __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }

// Keeps a vector in a register. GCC would load one that is used repeatedly for each use,
// which, where it straddles two cache lines, takes as long as the arithmetic.
inline Vec keep_in_register(Vec v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE__)
  asm("" : "+x"(v));
#endif
  return v;
}

// A number that is known at compile time.
template <int value>
struct Constant {
  constexpr operator int() const { return value; }
};

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Splits `count` into even parts of at most `most` and calls work(first, size) for each.
template <class Work>
PELK_INLINE inline void split(int64_t count, int64_t most, const Work& work) {
  const int64_t parts = (count + most - 1) / most;
  for (int64_t part = 0, first = 0; part < parts; ++part) {
    const int64_t size = (count - first + parts - part - 1) / (parts - part);
    work(first, size);
    first += size;
  }
}

// Calls work(Constant<n>()) for an n from 1 to kMost that is known at run time only.
template <int kMost, class Work>
PELK_INLINE inline void with_constant(int64_t n, const Work& work) {
  if constexpr (kMost > 1) {
    if (n < kMost) return with_constant<kMost - 1>(n, work);
  }
  work(Constant<kMost>());
}

// The taps of a kernel's axis that are valid (within [0, size)) for some of the outputs
// [first, last]: [begin, end).
struct ValidTaps {
  int64_t begin, end;

  ValidTaps(int64_t taps, int64_t first, int64_t last, int64_t size)
      : begin(smaller(taps, larger(0, taps / 2 - last))),
        end(larger(begin, smaller(taps, size + taps / 2 - first))) {}
};

// ---------------------------------------------------------------- transposition

#ifdef __clang__
#define PELK_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PELK_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Indices{__VA_ARGS__})
#endif

// Exchanges the off-diagonal blocks of a 2 x 2 matrix of kStep x kStep blocks.
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

// ---------------------------------------------------------------- element types

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float from_bfloat16(uint16_t h) { return bits_to_float(uint32_t(h) << 16); }

inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return value != value ? 0x7fc0 : uint16_t(rounded);
}

inline float from_float16(uint16_t h) {
  const uint32_t magnitude = h & 0x7fff;
  // Shifted into place the exponent is 112 too small; the product corrects that, for
  // subnormal numbers too. Infinities and NaNs keep the exponent of all ones.
  const float scaled = bits_to_float(magnitude << 13) * bits_to_float(239u << 23);
  const uint32_t bits =
      magnitude >= 0x7c00 ? 0x7f800000u | (magnitude << 13) : float_to_bits(scaled);
  return bits_to_float(bits | (uint32_t(h & 0x8000) << 16));
}

inline uint16_t to_float16(float value) {
  const uint32_t sign = (float_to_bits(value) >> 16) & 0x8000;
  const uint32_t bits = float_to_bits(value) & 0x7fffffff;
  // Below 2^-14 the result is subnormal: adding 0.5 makes the addition itself round
  // to a multiple of 2^-24.
  const uint32_t small = float_to_bits(bits_to_float(bits) + 0.5f) - 0x3f000000;
  const uint32_t normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
  uint32_t half = bits < (113u << 23) ? small : normal;
  half = bits >= 0x477ff000 ? 0x7c00 : half;  // 65520 and above rounds to infinity
  half = bits > 0x7f800000 ? 0x7e00 : half;
  return uint16_t(sign | half);
}

// to = from + bias. The last vector overlaps the one before: rows are short, and a loop
// over the remainder would take as long as all the vectors.
inline void copy(float* to, const float* from, int64_t n, float bias) {
  if (n < kLanes) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i] + bias;
    return;
  }
  for (int64_t i = 0; i < n - kLanes; i += kLanes) store(to + i, load(from + i) + bias);
  store(to + n - kLanes, load(from + n - kLanes) + bias);
}

// Sets n floats to zero. Rows are short: a loop beats a call into the C library.
inline void clear(float* to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, Vec{});
  for (; i < n; ++i) to[i] = 0.0f;
}

// Copies n elements of a plane, from element `at` on, to floats.
inline void read(float* to, const void* data, int64_t at, int64_t n, Type type) {
  if (type == kFloat32) {
    copy(to, static_cast<const float*>(data) + at, n, 0.0f);
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(data) + at;
  if (type == kBFloat16) {
    for (int64_t i = 0; i < n; ++i) to[i] = from_bfloat16(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = from_float16(from[i]);
  }
}

// Copies n floats, plus `bias`, to elements of a plane, from element `at` on.
inline void write(void* data, int64_t at, const float* from, int64_t n, float bias,
                  Type type) {
  if (type == kFloat32) {
    copy(static_cast<float*>(data) + at, from, n, bias);
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(data) + at;
  if (type == kBFloat16) {
    for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i] + bias);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = to_float16(from[i] + bias);
  }
}

inline Plane image(const Images& images, int64_t n) {
  return {static_cast<const char*>(images.first.data) + n * images.stride,
          images.first.height, images.first.width, images.first.type};
}

// Divides a thread's scratch memory into aligned pieces. With a null base it only adds up
// their sizes.
struct Arena {
  char* base;
  size_t used;
  template <class T>
  T* take(int64_t count) {
    const size_t bytes = count * sizeof(T), size = round_up(bytes, 64) + kGuard;
    char* piece = base ? base + used : nullptr;
    used += size;
    if (piece) {
      PELK_ALLOW(piece, bytes);
      PELK_FORBID(piece + bytes, size - bytes);
    }
    return reinterpret_cast<T*>(piece);
  }
};

// Bytes of the pieces that a structure takes; its first argument is the arena.
template <class Pieces, class... Arguments>
size_t bytes_of(const Arguments&... arguments) {
  Arena arena = {nullptr, 0};
  Pieces(arena, arguments...);
  return arena.used;
}

}  // namespace
}  // namespace PELK_ISA
}  // namespace pelk
