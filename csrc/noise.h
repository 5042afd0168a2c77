// Noisy copies of inputs: out = cast(((clamp(x + σ·n) − mean) · rstd), n standard normal.
//
// n is Box and Muller's function of Philox4x32-10 words (Salmon et al., "Parallel random numbers:
// as easy as 1, 2, 3", 2011), keyed by seed, input, sample and element: no state, any order. All
// arithmetic is in float32, one rounded operation after the other; compile with -ffp-contract=off,
// so that every backend gives the same bits. Per element about 3 cycles and 4 bytes written.
#pragma once

#include "noisy_batch.h"
#include "parallel.h"
#include "vector.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace gradood {
namespace {

constexpr int kCounters = kLanes / 2;  // one 32-bit word in every 64 bits
constexpr int64_t kNormals = 512;      // of one channel at once; they stay in L1

using Ints = VectorOf<int32_t, kLanes>::Type;
using Wide = VectorOf<uint64_t, kCounters>::Type;

// Products of the lower words, 64 bits each.
GRADOOD_INLINE Wide multiply_words(Wide a, Wide b) {
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Wide)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

GRADOOD_INLINE Vector square_root(Vector v) {
#if defined(__AVX512F__)
  return (Vector)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (Vector)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (Vector)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

GRADOOD_INLINE Wide everywhere(uint64_t word) { return word - Wide{}; }

// Ten rounds over the counters (c[0], c[1], c[2], c[3]); what stands above 32 bits is garbage.
GRADOOD_INLINE void philox(Wide (&c)[4], uint64_t seed) {
  uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  const Wide first = everywhere(0xD2511F53u), third = everywhere(0xCD9E8D57u);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round, low += 0x9E3779B9u, high += 0xBB67AE85u) {
    const Wide a = multiply_words(first, c[0]), b = multiply_words(third, c[2]);
    c[0] = b >> 32 ^ c[1] ^ everywhere(low);
    c[2] = a >> 32 ^ c[3] ^ everywhere(high);
    c[1] = b;
    c[3] = a;
  }
}

// Lower words of two vectors, alternating.
GRADOOD_INLINE Words interleave_words(Wide even, Wide odd) {
  const Wide both = (even & 0xffffffffu) | odd << 32;
  return load_as<Words>(&both);
}

GRADOOD_INLINE Vector uniform(Words word) {
  return (__builtin_convertvector(word, Vector) + 0.5f) * 0x1p-32f;
}

// log u for u in (0, 1]: u = 2^k (1 + f), and a polynomial in s = f / (2 + f).
GRADOOD_INLINE Vector log_of(Vector u) {
  const Ints bits = load_as<Ints>(&u);
  const Ints exponent = (bits - 0x3F3504F3) >> 23;
  const Words mantissa = load_as<Words>(&bits) - (load_as<Words>(&exponent) << 23);
  const Vector f = as_floats(mantissa) - 1.0f, k = __builtin_convertvector(exponent, Vector);
  const Vector s = f / (2.0f + f), z = s * s, w = z * z;
  const Vector even = w * (0.40000972152f + w * 0.24279078841f);
  const Vector odd = z * (0.66666662693f + w * 0.28498786688f);
  const Vector r = odd + even, half = 0.5f * f * f;
  return s * (half + r) + k * 9.0580006145e-06f - half + f + k * 0.69313812256f;
}

// cos 2πu and sin 2πu: polynomials within an eighth of a turn, then the right quarter.
GRADOOD_INLINE void cos_sin(Vector u, Vector& cosine, Vector& sine) {
  const Vector quarters = 4.0f * u;
  const Ints k = __builtin_convertvector(quarters + 0.5f, Ints);
  const Vector y = (quarters - __builtin_convertvector(k, Vector)) * 1.57079637050628662109375f;
  const Vector z = y * y;
  const Vector s = y + y * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
  const Vector c =
      1.0f - 0.5f * z +
      z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
  const Ints odd = (k & 1) != 0;
  const Vector a = odd ? s : c, b = odd ? c : s;
  cosine = as_floats(load_as<Words>(&a) ^ (Words)(((k + 1) & 2) << 30));
  sine = as_floats(load_as<Words>(&b) ^ (Words)((k & 2) << 30));
}

template <int... I>
GRADOOD_INLINE Vector interleave(Vector a, Vector b, int, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (I / 2 + (I % 2 ? kLanes : 0))...);
}

template <int... I>
GRADOOD_INLINE Vector interleave_upper(Vector a, Vector b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + (I % 2 ? kLanes : 0))...);
}

struct Stream {
  uint64_t seed;
  uint32_t sample, input, tag;
};

// Normals of the counters first … first + kCounters − 1, four each, in order.
GRADOOD_INLINE void normals_of(const Stream& stream, uint32_t first, float* out) {
  Wide counter{};
#pragma GCC unroll 16
  for (int i = 0; i < kCounters; ++i) counter[i] = first + static_cast<uint32_t>(i);
  Wide c[4] = {counter, everywhere(stream.sample), everywhere(stream.input),
               everywhere(stream.tag)};
  philox(c, stream.seed);
  Vector cosine, sine;
  cos_sin(uniform(interleave_words(c[1], c[3])), cosine, sine);
  const Vector radius = square_root(-2.0f * log_of(uniform(interleave_words(c[0], c[2]))));
  cosine *= radius;
  sine *= radius;
  constexpr std::make_integer_sequence<int, kLanes> lanes;
  store(out, interleave(cosine, sine, 0, lanes));
  store(out + kLanes, interleave_upper(cosine, sine, lanes));
}

// Rounds to the nearest bfloat16, halves to even; NaN becomes the quiet one.
GRADOOD_INLINE Words round_bfloat16(Vector v) {
  const Words bits = load_as<Words>(&v);
  const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return (Words)((v == v) ? (Ints)rounded : Ints{} + 0x7fc0);
}

GRADOOD_INLINE Vector finish(Vector x, Vector normal, const NoisyBatch& b, int64_t channel) {
  Vector v = x + b.sigma * normal;
  v = v < b.low ? broadcast(b.low) : v;
  v = v > b.high ? broadcast(b.high) : v;
  return b.mean == nullptr ? v : (v - b.mean[channel]) * b.rstd[channel];
}

// Writes `count` ≤ lanes results at element `at` of the output.
GRADOOD_INLINE void write(Vector v, const NoisyBatch& b, int64_t at, int64_t stride, int count) {
  if (b.bfloat16) {
    const Halves halves = __builtin_convertvector(round_bfloat16(v), Halves);
    uint16_t* out = static_cast<uint16_t*>(b.out) + at;
    if (stride == 1 && count == kLanes)
      std::memcpy(out, &halves, sizeof halves);
    else
      for (int i = 0; i < count; ++i) out[i * stride] = halves[i];
    return;
  }
  float* out = static_cast<float*>(b.out) + at;
  if (stride != 1)
    for (int i = 0; i < count; ++i) out[i * stride] = v[i];
  else if (count == kLanes)
    store(out, v);
  else
    store_first(out, v, count);
}

// One channel of one copy. L1: the normals of a piece.
inline void noisy_channel(const NoisyBatch& b, int64_t copy, int64_t channel, float* normals) {
  const Stream stream{b.seed, static_cast<uint32_t>(b.samples[copy]),
                      static_cast<uint32_t>(b.inputs[copy]), b.tag};
  const float* x = b.x + (b.rows[copy] * b.channels + channel) * b.elements;
  const int64_t stride = b.channels_last ? b.channels : 1;
  const int64_t out = copy * b.channels * b.elements + channel * (b.channels_last ? 1 : b.elements);
  const int64_t counters = (b.elements + 3) / 4;
  for (int64_t start = 0; start < b.elements; start += kNormals) {
    const int64_t rest = b.elements - start, count = rest < kNormals ? rest : kNormals;
    const uint32_t first = static_cast<uint32_t>(channel * counters + start / 4);
    for (int64_t i = 0; i < count; i += 2 * kLanes)
      normals_of(stream, first + static_cast<uint32_t>(i / 4), normals + i);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int lanes = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
      const float* at = x + start + i;
      const Vector value = lanes == kLanes ? load(at) : load_first(at, lanes);
      write(finish(value, load(normals + i), b, channel), b, out + (start + i) * stride, stride,
            lanes);
    }
  }
}

bool noisy_batch(const NoisyBatch& b, int64_t threads) {
  return for_each_sample(b.copies, threads, kNormals, [&](int64_t copy, float* normals) {
    for (int64_t c = 0; c < b.channels; ++c) noisy_channel(b, copy, c, normals);
  });
}

}  // namespace
}  // namespace gradood
