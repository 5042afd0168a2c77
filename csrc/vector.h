// The vector type of the instruction set that a unit is compiled for, and all that is done with it
// beyond + − × (which compilers provide for vectors, and contract to fused multiply-adds).
//
// Each unit defines `struct Isa { lanes, rows, columns }` before it includes the kernels: a tile of
// rows × columns vectors of sums, one row of vectors and a broadcast fill the registers. Everything
// is in an anonymous namespace, so that the linker cannot mix code of different units.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define GRADOOD_INLINE inline __attribute__((always_inline))

namespace gradood {
namespace {

constexpr int kLanes = Isa::lanes;
constexpr int kRows = Isa::rows;
constexpr int kColumns = Isa::columns;

template <class T, int N>
struct VectorOf {
  using Type [[gnu::vector_size(sizeof(T) * N)]] = T;
};
using Vector = VectorOf<float, kLanes>::Type;
using Words = VectorOf<uint32_t, kLanes>::Type;
using Halves = VectorOf<uint16_t, kLanes>::Type;

template <class V>
GRADOOD_INLINE V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

GRADOOD_INLINE Vector load(const float* p) { return load_as<Vector>(p); }

GRADOOD_INLINE void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

GRADOOD_INLINE Vector broadcast(float s) { return s - Vector{}; }

// A broadcast beside a row of vectors, all in registers, made after what came before: where sums,
// row and broadcast take every register there is, compilers would rather make two broadcasts at
// once, and pay with a row that lives in memory.
template <int Columns>
GRADOOD_INLINE void hold_in_registers(Vector& broadcast, const Vector (&row)[Columns]) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (Columns == 3)
    asm volatile("" : "+x"(broadcast) : "x"(row[0]), "x"(row[1]), "x"(row[2]));
#else
  (void)broadcast, (void)row;
#endif
}

// The first `count` < lanes numbers, then zeros; reads nothing beyond them.
GRADOOD_INLINE Vector load_first(const float* p, int64_t count) {
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Vector)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)count), lane));
#else
  Vector v{};
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
#endif
}

// Lanes of a vector, and a load of those alone, with zeros for the others; nothing else is read.
#if defined(__AVX512F__)
using Lanes = __mmask16;
GRADOOD_INLINE Lanes lanes_below(int64_t i) {
  return (Lanes)(i <= 0 ? 0 : i >= kLanes ? 0xffff : (1u << i) - 1);
}
GRADOOD_INLINE Lanes lanes_between(int64_t begin, int64_t end) {
  return lanes_below(end) & ~lanes_below(begin);
}
GRADOOD_INLINE Vector load_lanes(const float* p, Lanes lanes) {
  return (Vector)_mm512_maskz_loadu_ps(lanes, p);
}
#else
using Lanes = VectorOf<int32_t, kLanes>::Type;
GRADOOD_INLINE Lanes lanes_between(int64_t begin, int64_t end) {
  Lanes lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i >= begin && i < end ? -1 : 0;
  return lanes;
}
GRADOOD_INLINE Vector load_lanes(const float* p, Lanes lanes) {
#if defined(__AVX2__)
  return (Vector)_mm256_maskload_ps(p, (__m256i)lanes);
#else
  Vector v{};
  for (int i = 0; i < kLanes; ++i)
    if (lanes[i]) v[i] = p[i];
  return v;
#endif
}
#endif

GRADOOD_INLINE void store_first(float* p, Vector v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
#else
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
#endif
}

template <int N>
GRADOOD_INLINE float sum_of(typename VectorOf<float, N>::Type v) {
  if constexpr (N == 2) {
    return v[0] + v[1];
  } else {
    using Half = typename VectorOf<float, N / 2>::Type;
    Half half[2];
    std::memcpy(half, &v, sizeof v);
    return sum_of<N / 2>(half[0] + half[1]);
  }
}

GRADOOD_INLINE float add_lanes(Vector v) { return sum_of<kLanes>(v); }

// One stage of a transposition: exchanges the off-diagonal S × S blocks of rows r and r + S.
template <int S, int... I>
GRADOOD_INLINE void exchange(Vector& a, Vector& b, std::integer_sequence<int, I...>) {
  const Vector low = a, high = b;
  a = __builtin_shufflevector(low, high, (I & S ? kLanes + I - S : I)...);
  b = __builtin_shufflevector(low, high, (I & S ? kLanes + I : I + S)...);
}

template <int S>
GRADOOD_INLINE void transpose_stage(Vector (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int r = 0; r < kLanes; ++r)
    if (!(r & S)) exchange<S>(rows[r], rows[r + S], std::make_integer_sequence<int, kLanes>());
  if constexpr (S > 1) transpose_stage<S / 2>(rows);
}

GRADOOD_INLINE void transpose(Vector (&rows)[kLanes]) { transpose_stage<kLanes / 2>(rows); }

// Lane i of the result is the sum of the lanes of rows[i].
template <int S = kLanes / 2>
GRADOOD_INLINE Vector add_all_lanes(Vector (&rows)[kLanes]) {
#pragma GCC unroll 8
  for (int r = 0; r < S; ++r) {
    exchange<S>(rows[r], rows[r + S], std::make_integer_sequence<int, kLanes>());
    rows[r] += rows[r + S];
  }
  if constexpr (S > 1) return add_all_lanes<S / 2>(rows);
  return rows[0];
}

GRADOOD_INLINE Vector as_floats(Words bits) { return load_as<Vector>(&bits); }

GRADOOD_INLINE Vector widen_bfloat16(Halves h) {
  return as_floats(__builtin_convertvector(h, Words) << 16);
}

// Rounded to nearest, ties to even; NaN stays NaN.
GRADOOD_INLINE Halves narrow_bfloat16(Vector v) {
  const Words bits = load_as<Words>(&v);
  const Words nan = (Words)((bits & 0x7fffffffu) > 0x7f800000u);
  const Words finite = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return __builtin_convertvector((finite & ~nan) | ((bits >> 16 | 0x40) & nan), Halves);
}

// Exponent and mantissa move to their places and are rebiased by a product, which also normalises
// subnormal numbers; infinities and NaN keep an exponent of all ones.
GRADOOD_INLINE Vector widen_float16(Halves h) {
  const Words bits = __builtin_convertvector(h, Words);
  const Words magnitude = (bits & 0x7fff) << 13;
  const Vector finite = as_floats(magnitude) * 0x1p112f;
  const Words special = (Words)(magnitude >= 0x0f800000u);
  const Words value = (load_as<Words>(&finite) & ~special) | ((magnitude | 0x7f800000u) & special);
  return as_floats(value | (bits & 0x8000) << 16);
}

}  // namespace
}  // namespace gradood
