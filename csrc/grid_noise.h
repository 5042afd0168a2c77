// Noisy copies on a fixed grid: out = cast(clamp(round((x + σ·n) levels) / levels)), n standard
// normal, all of it in float64; see gradood/ops/grid.py for the formulas and what they are for.
//
// Two words of Philox make one uniform number of 64 bits, one counter two normals. One rounded
// operation after the other and none fused, so that every backend gives the same bits. Per element
// about 12 cycles with AVX-512 and 4 bytes written.
#pragma once

#include "noise.h"

namespace gradood {
namespace {

using Doubles = VectorOf<double, kCounters>::Type;
using Longs = VectorOf<int64_t, kCounters>::Type;

GRADOOD_INLINE Doubles square_root(Doubles v) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_sqrt_pd((__m512d)v);
#elif defined(__AVX2__)
  return (Doubles)_mm256_sqrt_pd((__m256d)v);
#elif defined(__SSE2__)
  return (Doubles)_mm_sqrt_pd((__m128d)v);
#else
  for (int i = 0; i < kCounters; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// Words of 32 bits, and integers of at most 51, placed in the mantissa of 2^52: exact.
GRADOOD_INLINE Doubles of_words(Wide word) {
  const Wide bits = (word & 0xffffffffu) | everywhere(0x4330000000000000u);
  return load_as<Doubles>(&bits) - 0x1p52;
}

GRADOOD_INLINE Doubles of_longs(Longs v) {
  const Longs bits = v + 0x4338000000000000;
  return load_as<Doubles>(&bits) - 0x1.8p52;
}

// The nearest integer, ties to even; what is not below 2^51 is one anyway, or near enough.
GRADOOD_INLINE Doubles nearest(Doubles v) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_roundscale_pd((__m512d)v, 8);
#elif defined(__AVX2__)
  return (Doubles)_mm256_round_pd((__m256d)v, 8);
#else
  for (int i = 0; i < kCounters; ++i) v[i] = std::nearbyint(v[i]);
  return v;
#endif
}

// (high 2^32 + low + 1/2) 2^-64, rounded once.
GRADOOD_INLINE Doubles uniform(Wide high, Wide low) {
  return (of_words(high) * 0x1p32 + (of_words(low) + 0.5)) * 0x1p-64;
}

GRADOOD_INLINE Doubles log_of(Doubles u) {
  const Longs bits = load_as<Longs>(&u);
  const Longs exponent = (bits - 0x3FE6A09E00000000) >> 52;
  const Longs mantissa = bits - (Longs)((Wide)exponent << 52);
  const Doubles f = load_as<Doubles>(&mantissa) - 1.0, k = of_longs(exponent);
  const Doubles s = f / (f + 2.0), z = s * s, w = z * z;
  const Doubles even = w * (w * (w * 1.531383769920937332e-01 + 2.222219843214978396e-01) +
                            3.999999999940941908e-01);
  const Doubles odd = z * (w * (w * (w * 1.479819860511658591e-01 + 1.818357216161805012e-01) +
                                2.857142874366239149e-01) +
                           6.666666666666735130e-01);
  const Doubles half = f * 0.5 * f;
  return k * 6.93147180369123816490e-01 -
         ((half - (s * (half + (odd + even)) + k * 1.90821492927058770002e-10)) - f);
}

GRADOOD_INLINE void cos_sin(Doubles u, Doubles& cosine, Doubles& sine) {
  const Doubles quarters = u * 4.0;
  const auto k = __builtin_convertvector(quarters + 0.5, VectorOf<int32_t, kCounters>::Type);
  const Doubles whole = __builtin_convertvector(k, Doubles);
  const Longs quarter = __builtin_convertvector(k, Longs);
  const Doubles y = (quarters - whole) * 1.57079632679489655800;
  const Doubles z = y * y;
  Doubles s = z * 1.58969099521155010221e-10 + -2.50507602534068634195e-08;
  s = z * (z * (z * (z * s + 2.75573137070700676789e-06) + -1.98412698298579493134e-04) +
           8.33333333332248946124e-03) +
      -1.66666666666666324348e-01;
  s = y + y * z * s;
  Doubles c = z * -1.13596475577881948265e-11 + 2.08757232129817482790e-09;
  c = z * (z * (z * (z * c + -2.75573143513906633035e-07) + 2.48015872894767294178e-05) +
           -1.38888888888741095749e-03) +
      4.16666666666666019037e-02;
  c = 1.0 - z * 0.5 + z * z * c;
  const Longs odd = (quarter & 1) != 0;
  const Doubles a = odd ? s : c, b = odd ? c : s;
  const Longs turned = load_as<Longs>(&a) ^ (Longs)((Wide)((quarter + 1) & 2) << 62);
  const Longs other = load_as<Longs>(&b) ^ (Longs)((Wide)(quarter & 2) << 62);
  cosine = load_as<Doubles>(&turned);
  sine = load_as<Doubles>(&other);
}

template <int... I>
GRADOOD_INLINE void store_pairs(double* out, Doubles a, Doubles b,
                                std::integer_sequence<int, I...>) {
  const Doubles first = __builtin_shufflevector(a, b, (I / 2 + (I % 2 ? kCounters : 0))...);
  const Doubles second =
      __builtin_shufflevector(a, b, (kCounters / 2 + I / 2 + (I % 2 ? kCounters : 0))...);
  std::memcpy(out, &first, sizeof first);
  std::memcpy(out + kCounters, &second, sizeof second);
}

// Normals of the counters first … first + kCounters − 1, two each, in order.
GRADOOD_INLINE void normals_of(const Stream& stream, uint32_t first, double* out) {
  Wide counter{};
#pragma GCC unroll 16
  for (int i = 0; i < kCounters; ++i) counter[i] = first + static_cast<uint32_t>(i);
  Wide c[4] = {counter, everywhere(stream.sample), everywhere(stream.input),
               everywhere(stream.tag)};
  philox(c, stream.seed);
  Doubles cosine, sine;
  cos_sin(uniform(c[2], c[3]), cosine, sine);
  const Doubles radius = square_root(log_of(uniform(c[0], c[1])) * -2.0);
  store_pairs(out, radius * cosine, radius * sine, std::make_integer_sequence<int, kCounters>());
}

// One channel of one copy. L1: the normals of a piece, which the sums replace.
inline void grid_channel(const NoisyBatch& b, int64_t copy, int64_t channel, float* piece) {
  const Stream stream{b.seed, static_cast<uint32_t>(b.samples[copy]),
                      static_cast<uint32_t>(b.inputs[copy]), b.tag};
  const float* x = b.x + (b.rows[copy] * b.channels + channel) * b.elements;
  const int64_t stride = b.channels_last ? b.channels : 1;
  const int64_t out = copy * b.channels * b.elements + channel * (b.channels_last ? 1 : b.elements);
  const int64_t counters = (b.elements + 1) / 2;
  const double step = 1.0 / b.levels;
  alignas(64) double normal[kNormals];
  for (int64_t start = 0; start < b.elements; start += kNormals) {
    const int64_t rest = b.elements - start, count = rest < kNormals ? rest : kNormals;
    const uint32_t first = static_cast<uint32_t>(channel * counters + start / 2);
    for (int64_t i = 0; i < count; i += 2 * kCounters)
      normals_of(stream, first + static_cast<uint32_t>(i / 2), normal + i);
    for (int64_t i = 0; i < count; i += kCounters) {
      Doubles n = load_as<Doubles>(normal + i), clean{};
      const int lanes = count - i < kCounters ? static_cast<int>(count - i) : kCounters;
      for (int lane = 0; lane < lanes; ++lane) clean[lane] = x[start + i + lane];
      const Doubles sum = clean + n * b.exact_sigma;
      const auto value =
          __builtin_convertvector(nearest(sum * b.levels) * step, VectorOf<float, kCounters>::Type);
      std::memcpy(piece + i, &value, sizeof value);
    }
    for (int64_t i = 0; i < count; i += kLanes) {
      const int lanes = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
      Vector v = load(piece + i);
      v = v < b.low ? broadcast(b.low) : v;
      v = v > b.high ? broadcast(b.high) : v;
      write(v, b, out + (start + i) * stride, stride, lanes);
    }
  }
}

// Either kind of noise.
bool any_batch(const NoisyBatch& b, int64_t threads) {
  if (b.levels == 0) return noisy_batch(b, threads);
  return for_each_sample(b.copies, threads, kNormals, [&](int64_t copy, float* piece) {
    for (int64_t c = 0; c < b.channels; ++c) grid_channel(b, copy, c, piece);
  });
}

}  // namespace
}  // namespace gradood
