// Gram matrices on the tile unit; see gram_grid.h for what they are good for.
#pragma once

#include "amx.h"
#include "gram_grid.h"
#include "kernels.h"

namespace gradood {
namespace {

// Positions as both operands of a tile product: [position / 16][channel / 32] pieces.
struct Positions {
  Split planes, pairs;
  int64_t depth;  // channels, in whole tiles

  Split plane(int64_t tile) const { return planes.at(tile * kTileRows * depth); }
  Split pair(int64_t tile) const { return pairs.at(tile * kTileRows * depth); }
};

// Packed floats, positions in lanes, to both layouts; an even number of tiles of positions.
inline void split_positions(const float* a, int64_t depth, int64_t count, const Positions& to) {
  const int64_t tiles = round_up(count, kSquareUnit) / kTileRows;
  int64_t piece = 0;
  for (int64_t t = 0; t < tiles; ++t)
    for (int64_t k = 0; k < to.depth; k += kTileDepth, piece += kTileWords) {
      const int64_t there = t * kTileRows < count ? depth - k : 0;
      const float* at = a + (t * depth + k) * kLanes;
      const Split pairs = to.pairs.at(piece), planes = to.planes.at(piece);
#pragma GCC unroll 4
      for (int64_t c = 0; c < kTileDepth; c += 2) {
        Vector high, low;
        split<alternate>(c < there ? load(at + c * kLanes) : Vector{},
                         c + 1 < there ? load(at + (c + 1) * kLanes) : Vector{}, high, low);
        std::memcpy(pairs.high + c * kTileRows, &high, sizeof high);
        if (pairs.low != nullptr) std::memcpy(pairs.low + c * kTileRows, &low, sizeof low);
      }
      transpose_piece(pairs.high, kTileDepth, kTileRows, planes.high);
      if (pairs.low != nullptr) transpose_piece(pairs.low, kTileDepth, kTileRows, planes.low);
    }
}

// Leaves four tiles of aᵀa in the tile registers: rows i and i + 1, columns j and j + 1.
inline void gram_tiles(const Positions& a, int64_t i, int64_t j) {
  const Operands o{
      {a.plane(i), a.plane(i + 1), {}}, kTileDepth, kTileWords, {a.pair(j), a.pair(j + 1)}};
  clear_tiles();
  multiply_2x2<true>(o, a.depth);
}

struct TileProducts {
  TileScope scope;
  Positions x, d;

  TileProducts(const Convolution& c, const PhasePlan& plan, Arena& arena) {
    auto take = [&](int64_t channels, int64_t positions, Dtype dtype) {
      const int64_t depth = round_up(channels, kTileDepth);
      const int64_t numbers = round_up(positions, kSquareUnit) * depth;
      const bool exact = dtype == Dtype::bfloat16;
      const Split planes = take_split(arena, numbers, exact);
      return Positions{planes, take_split(arena, numbers, exact), depth};
    };
    x = take(plan.inputs, plan.pixel_count, c.x.dtype);
    d = take(plan.outputs, plan.output_count, c.d.dtype);
  }

  // L1: four tiles of inner products of x while those of d are formed.
  double product(const float* x_packed, int64_t inputs, const float* d_packed, int64_t outputs,
                 int64_t count) const {
    split_positions(x_packed, inputs, count, x);
    split_positions(d_packed, outputs, count, d);
    const int64_t tiles = round_up(count, kSquareUnit) / kTileRows;
    alignas(64) float of_x[4 * kTileFloats], of_d[4 * kTileFloats];
    double total = 0;
    for (int64_t i = 0; i < tiles; i += 2)
      for (int64_t j = i; j < tiles; j += 2) {
        gram_tiles(x, i, j);
        write_tiles(of_x);
        gram_tiles(d, i, j);
        write_tiles(of_d);
        Vector sums[2] = {};
        for (int64_t k = 0; k < 4 * kTileFloats; k += 2 * kLanes)
          for (int u = 0; u < 2; ++u)
            sums[u] += load(of_x + k + u * kLanes) * load(of_d + k + u * kLanes);
        total += (i == j ? 1.0 : 2.0) * add_lanes(sums[0] + sums[1]);
      }
    return total;
  }

  void square(bool of_d, const float* a, int64_t depth, int64_t count, float* to) const {
    const Positions& split = of_d ? d : x;
    split_positions(a, depth, count, split);
    const int64_t width = round_up(count, kSquareUnit), bytes = width * sizeof(float);
    for (int64_t i = 0; i < width / kTileRows; i += 2)
      for (int64_t j = i; j < width / kTileRows; j += 2) {
        gram_tiles(split, i, j);
        float* corner = to + (i * width + j) * kTileRows;
        _tile_stored(0, corner, bytes);
        _tile_stored(1, corner + kTileRows, bytes);
        _tile_stored(2, corner + kTileRows * width, bytes);
        _tile_stored(3, corner + kTileRows * width + kTileRows, bytes);
      }
  }
};

// Fewer pixels than this leave tiles half empty, or do not repay the splitting.
constexpr int64_t kFewestPositions = 128;

}  // namespace

bool amx_gram(const Convolution& c, Result result, int64_t threads) {
  if (c.d.size[2] * c.d.size[3] * c.d.size[4] < kFewestPositions)
    return kAvx512.gram(c, result, threads);
  return gram_of<TileProducts>(c, result, threads);
}

}  // namespace gradood
