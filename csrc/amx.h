// The tile unit: sums of products of bfloat16 pairs in 16 × 16 tiles of float32.
#pragma once

#include <immintrin.h>

#include "bfloat16.h"

namespace gradood {
namespace {

// Tile registers for the time of one task; whoever used them before gets its shapes back.
class TileScope {
 public:
  TileScope() {
    _tile_storeconfig(before_);
    __asm__ volatile("" : : "r"(before_) : "memory");
    alignas(64) uint8_t shapes[64] = {1};
    for (int t = 0; t < 8; ++t) {
      shapes[16 + 2 * t] = 64;  // bytes a row
      shapes[48 + t] = kTileRows;
    }
    // The compiler believes that the instruction reads no more than its first eight bytes.
    __asm__ volatile("" : : "r"(shapes) : "memory");
    _tile_loadconfig(shapes);
  }
  ~TileScope() { before_[0] == 0 ? _tile_release() : _tile_loadconfig(before_); }

 private:
  alignas(64) uint8_t before_[64];
};

// Where a block of products begins: up to three pieces of planes, up to two of pairs.
struct Operands {
  Split planes[3];
  int64_t pitch, step;  // numbers from a plane to the next, and from 32 positions to the next
  Split pairs[2];
};

// Asks for the rows of planes two steps ahead: 16 streams are more than the hardware follows.
GRADOOD_INLINE void prefetch_rows(const uint16_t* planes, const Operands& o) {
  for (int r = 0; r < kTileRows; ++r) __builtin_prefetch(planes + r * o.pitch + 2 * o.step);
}

// Tiles 0 … 3 += planes · pairs over `depth` positions, for 2 × 2 pieces of 16 rows.
//
// Registers: four sums, two pieces of either operand; eight loads for twelve products. Products of
// two low parts (2⁻¹⁸ relative) are left out, except for those that are `Squares`: there they all
// have one sign, and add up. Planes and pairs stream from L2.
template <bool Squares = false>
inline void multiply_2x2(const Operands& o, int64_t depth) {
  const int64_t pitch = o.pitch * 2;
  const bool planes_low = o.planes[0].low != nullptr, pairs_low = o.pairs[0].low != nullptr;
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    const int64_t p = k * kTileRows, q = k / kTileDepth * o.step;
    prefetch_rows(o.planes[0].high + q, o);
    if (planes_low) prefetch_rows(o.planes[0].low + q, o);
    _tile_loadd(4, o.planes[0].high + q, pitch);
    _tile_loadd(5, o.planes[1].high + q, pitch);
    if (pairs_low) {
      _tile_loadd(6, o.pairs[0].low + p, 64);
      _tile_loadd(7, o.pairs[1].low + p, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(6, o.pairs[0].high + p, 64);
    _tile_loadd(7, o.pairs[1].high + p, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (!planes_low) continue;
    _tile_loadd(4, o.planes[0].low + q, pitch);
    _tile_loadd(5, o.planes[1].low + q, pitch);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    if (!Squares) continue;
    _tile_loadd(6, o.pairs[0].low + p, 64);
    _tile_loadd(7, o.pairs[1].low + p, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Tiles 0 … 2 += planes · pairs for 3 × 1 pieces of 16 rows.
inline void multiply_3x1(const Operands& o, int64_t depth) {
  const int64_t pitch = o.pitch * 2;
  const bool planes_low = o.planes[0].low != nullptr, pairs_low = o.pairs[0].low != nullptr;
  for (int64_t k = 0; k < depth; k += kTileDepth) {
    const int64_t p = k * kTileRows, q = k / kTileDepth * o.step;
    prefetch_rows(o.planes[0].high + q, o);
    if (planes_low) prefetch_rows(o.planes[0].low + q, o);
    _tile_loadd(4, o.planes[0].high + q, pitch);
    _tile_loadd(5, o.planes[1].high + q, pitch);
    _tile_loadd(6, o.planes[2].high + q, pitch);
    if (pairs_low) {
      _tile_loadd(7, o.pairs[0].low + p, 64);
      _tile_dpbf16ps(0, 4, 7);
      _tile_dpbf16ps(1, 5, 7);
      _tile_dpbf16ps(2, 6, 7);
    }
    _tile_loadd(7, o.pairs[0].high + p, 64);
    _tile_dpbf16ps(0, 4, 7);
    _tile_dpbf16ps(1, 5, 7);
    _tile_dpbf16ps(2, 6, 7);
    if (!planes_low) continue;
    _tile_loadd(4, o.planes[0].low + q, pitch);
    _tile_loadd(5, o.planes[1].low + q, pitch);
    _tile_loadd(6, o.planes[2].low + q, pitch);
    _tile_dpbf16ps(0, 4, 7);
    _tile_dpbf16ps(1, 5, 7);
    _tile_dpbf16ps(2, 6, 7);
  }
}

inline void clear_tiles() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

constexpr int64_t kTileFloats = kTileRows * kTileRows;

inline void write_tiles(float* to) {
  _tile_stored(0, to, 64);
  _tile_stored(1, to + kTileFloats, 64);
  _tile_stored(2, to + 2 * kTileFloats, 64);
  _tile_stored(3, to + 3 * kTileFloats, 64);
}

inline void add_tiles(float* to) {
  alignas(64) float tiles[4 * kTileFloats];
  write_tiles(tiles);
  for (int64_t i = 0; i < 4 * kTileFloats; i += kLanes)
    store(to + i, load(to + i) + load(tiles + i));
}

// Σ a² of tiles that were written to memory.
inline float sum_of_squares(const float* a, int64_t count) {
  Vector total[4] = {};
  for (int64_t i = 0; i < count; i += 4 * kLanes)
    for (int u = 0; u < 4; ++u) {
      const Vector v = load(a + i + u * kLanes);
      total[u] += v * v;
    }
  return add_lanes((total[0] + total[1]) + (total[2] + total[3]));
}

}  // namespace
}  // namespace gradood
