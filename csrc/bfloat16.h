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

// A float whose upper half is `v` rounded to bfloat16 (half away from zero), its lower half not
// cleared. The converting instructions take several times as long.
GRADOOD_INLINE Words rounded(Vector v) { return load_as<Words>(&v) + 0x8000; }

constexpr uint32_t kUpper = 0xffff0000;

// The upper halves of two vectors, alternating.
GRADOOD_INLINE Words alternate(Words even, Words odd) { return even >> 16 | (odd & kUpper); }

// The upper halves of two vectors, one after the other.
GRADOOD_INLINE Words concatenate(Words first, Words second) {
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  const __m512i packed = _mm512_packus_epi32((__m512i)(first >> 16), (__m512i)(second >> 16));
  return (Words)_mm512_permutexvar_epi64(order, packed);
}

// The high and low parts of two vectors, brought together by `join`.
template <Words (*join)(Words, Words)>
GRADOOD_INLINE void split(Vector a, Vector b, Vector& high, Vector& low) {
  const Words a_high = rounded(a), b_high = rounded(b);
  high = as_floats(join(a_high, b_high));
  low = as_floats(
      join(rounded(a - as_floats(a_high & kUpper)), rounded(b - as_floats(b_high & kUpper))));
}

// Floats of up to 16 channels at a list of pixels, one row a channel: in place where they are
// adjacent in memory (then it returns true), else copied to `buffer`, 16 rows of `pitch`.
inline bool pixel_rows(const Source& s, int64_t stride, int64_t width, const Runs& pixels,
                       float* buffer, int64_t pitch, const float** rows) {
  const bool in_place = s.dtype == Dtype::float32 && pixels.size() == 1 && pixels[0].step == 1;
  for (int64_t i = 0; i < width; ++i) {
    rows[i] = in_place ? reinterpret_cast<const float*>(s.at(i * stride + pixels[0].offset).data)
                       : buffer + i * pitch;
    if (!in_place && stride != 1) pack_row(s.at(i * stride), pixels, buffer + i * pitch);
  }
  if (in_place || stride != 1) return in_place;
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
  return false;
}

// to[cell] = row[pixel]; what lies between the stretches is left alone.
inline void split_row(const float* row, const Stretches& stretches, Split to) {
  for (const Stretch& s : stretches)
    for (int64_t i = 0; i < s.count; i += 2 * kLanes) {
      const int64_t rest = s.count - i;
      const float* from = row + s.pixel + i;
      const Split at = to.at(s.cell + i);
      Vector high, low;
      if (rest >= 2 * kLanes) {
        split<concatenate>(load(from), load(from + kLanes), high, low);
        std::memcpy(at.high, &high, sizeof high);
        if (at.low != nullptr) std::memcpy(at.low, &low, sizeof low);
        continue;
      }
      const Vector first = rest >= kLanes ? load(from) : load_first(from, rest);
      const Vector second = rest > kLanes ? load_first(from + kLanes, rest - kLanes) : Vector{};
      split<concatenate>(first, second, high, low);
      const __mmask32 mask = static_cast<__mmask32>((1ull << rest) - 1);
      _mm512_mask_storeu_epi16(at.high, mask, (__m512i)high);
      if (at.low != nullptr) _mm512_mask_storeu_epi16(at.low, mask, (__m512i)low);
    }
}

// Exchanges planes and pairs of 16 rows × 32 positions: a transposition of 32-bit words. Rows from
// `width` on are zero.
inline void transpose_piece(const uint16_t* from, int64_t pitch, int64_t width, uint16_t* to) {
  Vector words[kTileRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
    words[r] = r < width ? load_as<Vector>(from + r * pitch) : Vector{};
  transpose(words);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) std::memcpy(to + r * kTileDepth, &words[r], sizeof words[r]);
}

inline void planes_to_pairs(const uint16_t* planes, int64_t depth, int64_t width, uint16_t* pairs) {
  for (int64_t k = 0; k < depth; k += kTileDepth, pairs += kTileWords)
    transpose_piece(planes + k, depth, width, pairs);
}

}  // namespace
}  // namespace gradood
