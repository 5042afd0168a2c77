// Packs float32 as pairs of bfloat16 for the tile unit: a = high + low to 16 bits of mantissa.
//
// Two layouts of a matrix of rows × positions, both in pieces of 16 rows × 32 positions:
//   planes  [row][position]                  the left operand of a tile product
//   pairs   [position / 2][row][2]           the right operand; a transposition of 32-bit words
#pragma once

#include "pack.h"
#include "parallel.h"
#include "tile_plan.h"

namespace gradood {
namespace {

constexpr int64_t kTileWords = kTileRows * kTileDepth;  // bfloat16 numbers of a tile

// A packed matrix; `low` is null where the input was bfloat16 and high is exact.
struct Split {
  uint16_t *high, *low;

  Split at(int64_t offset) const { return {high + offset, low == nullptr ? low : low + offset}; }
};

inline Split take_split(Arena& arena, int64_t numbers, bool exact) {
  uint16_t* high = reinterpret_cast<uint16_t*>(arena.take(numbers / 2));
  return {high, exact ? nullptr : reinterpret_cast<uint16_t*>(arena.take(numbers / 2))};
}

GRADOOD_INLINE Words round_to_bfloat16(Vector v) {  // in the low half of each word
  return __builtin_convertvector((Halves)_mm512_cvtneps_pbh((__m512)v), Words);
}

// Words of two bfloat16 numbers each, the high and the low parts of two neighbours.
GRADOOD_INLINE void split_pair(Vector first, Vector second, Vector& high, Vector& low) {
  const Words a = round_to_bfloat16(first), b = round_to_bfloat16(second);
  high = as_floats(a | b << 16);
  const Vector a_rest = first - as_floats(a << 16), b_rest = second - as_floats(b << 16);
  low = as_floats(round_to_bfloat16(a_rest) | round_to_bfloat16(b_rest) << 16);
}

GRADOOD_INLINE void store_split(Vector v, int64_t count, Split to) {
  const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
  const __m256i high = (__m256i)_mm512_cvtneps_pbh((__m512)v);
  _mm256_mask_storeu_epi16(to.high, mask, high);
  if (to.low == nullptr) return;
  const Vector rest = v - widen_bfloat16((Halves)high);
  _mm256_mask_storeu_epi16(to.low, mask, (__m256i)_mm512_cvtneps_pbh((__m512)rest));
}

// Floats of up to 16 channels at a list of pixels, one row a channel: in place where they are
// adjacent in memory, else copied to `buffer`, 16 rows of `pitch`.
inline void pixel_rows(const Source& s, int64_t stride, int64_t width, const Runs& pixels,
                       float* buffer, int64_t pitch, const float** rows) {
  const bool in_place = s.dtype == Dtype::float32 && pixels.size() == 1 && pixels[0].step == 1;
  for (int64_t i = 0; i < width; ++i) {
    rows[i] = in_place ? reinterpret_cast<const float*>(s.at(i * stride + pixels[0].offset).data)
                       : buffer + i * pitch;
    if (!in_place && stride != 1) pack_row(s.at(i * stride), pixels, buffer + i * pitch);
  }
  if (in_place || stride != 1) return;
  int64_t position = 0;
  float row[kLanes];
  for (const Run& run : pixels)
    for (int64_t i = 0; i < run.count; i += kLanes) {
      const int64_t count = run.count - i < kLanes ? run.count - i : kLanes;
      Vector block[kLanes] = {};
      for (int64_t p = 0; p < count; ++p) {
        const float* at = row_of(s.at(run.offset + (i + p) * run.step), 1, width, row);
        block[p] = width == kLanes ? load(at) : load_first(at, width);
      }
      transpose(block);
      for (int64_t c = 0; c < width; ++c)
        store_first(buffer + c * pitch + position, block[c], count);
      position += count;
    }
}

// to[cell] = row[pixel], zeros between the stretches and up to `length`.
inline void split_row(const float* row, const Stretches& stretches, int64_t length, Split to) {
  std::memset(to.high, 0, length * sizeof(uint16_t));
  if (to.low != nullptr) std::memset(to.low, 0, length * sizeof(uint16_t));
  for (const Stretch& s : stretches)
    for (int64_t i = 0; i < s.count; i += kLanes) {
      const int64_t rest = s.count - i < kLanes ? s.count - i : kLanes;
      const float* from = row + s.pixel + i;
      store_split(rest == kLanes ? load(from) : load_first(from, rest), rest, to.at(s.cell + i));
    }
}

// Exchanges planes and pairs of 16 rows: 32-bit words [16][depth / 2] to tiles of [16][16].
inline void planes_to_pairs(const uint16_t* planes, int64_t pitch, int64_t depth, uint16_t* pairs) {
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    Vector words[kTileRows];
    for (int r = 0; r < kTileRows; ++r) words[r] = load_as<Vector>(planes + r * pitch + k);
    transpose(words);
    for (int r = 0; r < kTileRows; ++r) std::memcpy(pairs + (r * kTileDepth), &words[r], 64);
    pairs += kTileWords;
  }
}

}  // namespace
}  // namespace gradood
