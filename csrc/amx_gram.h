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
      Vector high[kTileRows], low[kTileRows];
      for (int r = 0; r < kTileRows; ++r) {
        const int64_t channel = k + 2 * r;
        const bool there = t * kTileRows < count;
        const float* at = a + (t * depth + channel) * kLanes;
        split_pair(there && channel < depth ? load(at) : Vector{},
                   there && channel + 1 < depth ? load(at + kLanes) : Vector{}, high[r], low[r]);
      }
      auto keep = [&](Vector(&words)[kTileRows], uint16_t* pairs, uint16_t* planes) {
        for (int r = 0; r < kTileRows; ++r) std::memcpy(pairs + r * kTileDepth, &words[r], 64);
        transpose(words);
        for (int r = 0; r < kTileRows; ++r) std::memcpy(planes + r * kTileDepth, &words[r], 64);
      };
      keep(high, to.pairs.high + piece, to.planes.high + piece);
      if (to.pairs.low != nullptr) keep(low, to.pairs.low + piece, to.planes.low + piece);
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
