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

// 32 channels of one position as floats; zeros beyond `count`.
GRADOOD_INLINE void load_channels(const Source& s, int64_t count, Vector& first, Vector& second) {
  float buffer[kTileDepth];
  const float* from = row_of(s, 1, count, buffer);
  first = count >= kLanes ? load(from) : load_first(from, count);
  second = count >= 2 * kLanes ? load(from + kLanes)
           : count > kLanes    ? load_first(from + kLanes, count - kLanes)
                               : Vector{};
}

// The same as split_positions of positions in memory whose channels are adjacent; also adds every
// channel's numbers to its place in `sums`.
//
// Registers: 16 rows on their way through a transposition. L1: one piece of either layout.
inline void split_rows(const Source& s, const Offsets& rows, int64_t channels, const Positions& to,
                       float* sums) {
  const int64_t count = static_cast<int64_t>(rows.size());
  int64_t piece = 0;
  for (int64_t t = 0; t < round_up(count, kSquareUnit); t += kTileRows)
    for (int64_t k = 0; k < to.depth; k += kTileDepth, piece += kTileWords) {
      const Split planes = to.planes.at(piece), pairs = to.pairs.at(piece);
      const int64_t width = channels - k < kTileDepth ? channels - k : kTileDepth;
      Vector sum[2] = {load(sums + k), load(sums + k + kLanes)};
      for (int64_t r = 0; r < kTileRows; ++r) {
        Vector first{}, second{}, high, low;
        if (t + r < count) load_channels(s.at(rows[t + r] + k), width, first, second);
        sum[0] += first;
        sum[1] += second;
        split<concatenate>(first, second, high, low);
        std::memcpy(planes.high + r * kTileDepth, &high, sizeof high);
        if (planes.low != nullptr) std::memcpy(planes.low + r * kTileDepth, &low, sizeof low);
      }
      store(sums + k, sum[0]);
      store(sums + k + kLanes, sum[1]);
      transpose_piece(planes.high, kTileDepth, kTileRows, pairs.high);
      if (planes.low != nullptr) transpose_piece(planes.low, kTileDepth, kTileRows, pairs.low);
    }
}

// Writes four tiles of aᵀa: rows i and i + 1, columns j and j + 1.
inline void gram_tiles(const Positions& a, int64_t i, int64_t j, float* to) {
  for (int64_t k = 0; k < a.depth; k += kLongestSum) {
    const int64_t shift = k * kTileRows, rest = a.depth - k;
    const Operands o{{a.plane(i).at(shift), a.plane(i + 1).at(shift), {}},
                     kTileDepth,
                     kTileWords,
                     {a.pair(j).at(shift), a.pair(j + 1).at(shift)}};
    clear_tiles();
    multiply_2x2<true>(o, rest < kLongestSum ? rest : kLongestSum);
    k == 0 ? write_tiles(to) : add_tiles(to);
  }
}

struct TileProducts {
  // Two bfloat16 numbers hold 16 bits of a float32's 24, which are multiplied again where needed.
  static constexpr double kLeast = 0.4;
  static bool again(const Convolution& c, Result result, int64_t threads) {
    return kAvx512.gram(c, result, threads);
  }

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
  Products product(const float* x_packed, int64_t inputs, const float* d_packed, int64_t outputs,
                   int64_t count) const {
    split_positions(x_packed, inputs, count, x);
    split_positions(d_packed, outputs, count, d);
    return product_of_split(count);
  }

  Products product_of_split(int64_t count) const {
    const int64_t tiles = round_up(count, kSquareUnit) / kTileRows;
    alignas(64) float of_x[4 * kTileFloats], of_d[4 * kTileFloats];
    Products total;
    for (int64_t i = 0; i < tiles; i += 2)
      for (int64_t j = i; j < tiles; j += 2) {
        gram_tiles(x, i, j, of_x);
        gram_tiles(d, i, j, of_d);
        Vector sums[2] = {};
        for (int64_t k = 0; k < 4 * kTileFloats; k += 2 * kLanes)
          for (int u = 0; u < 2; ++u)
            sums[u] += load(of_x + k + u * kLanes) * load(of_d + k + u * kLanes);
        total.norm += (i == j ? 1.0 : 2.0) * add_lanes(sums[0] + sums[1]);
        for (int64_t r = 0; i == j && r < kTileRows; ++r)  // in the first tile and in the last
          for (const int64_t k : {r * (kTileRows + 1), 3 * kTileFloats + r * (kTileRows + 1)})
            total.diagonal += static_cast<double>(of_x[k]) * of_d[k];
      }
    return total;
  }

  void square(bool of_d, const float* a, int64_t depth, int64_t count, float* to) const {
    const Positions& split = of_d ? d : x;
    split_positions(a, depth, count, split);
    const int64_t width = round_up(count, kSquareUnit);
    alignas(64) float tiles[4 * kTileFloats];
    for (int64_t i = 0; i < width / kTileRows; i += 2)
      for (int64_t j = i; j < width / kTileRows; j += 2) {
        gram_tiles(split, i, j, tiles);
        for (int t = 0; t < 4; ++t)
          for (int64_t r = 0; r < kTileRows; ++r)
            store(to + ((i + t / 2) * kTileRows + r) * width + (j + t % 2) * kTileRows,
                  load(tiles + (t * kTileRows + r) * kTileRows));
      }
  }
};

// A matrix product's operands as they mostly come: tokens, or pixels of channels_last images, whose
// channels are adjacent. Nothing is packed as floats on the way to the tiles.
bool gram_of_rows(const Convolution& c, const PhasePlan& plan, Result result, int64_t threads) {
  Arena size{nullptr};
  const TileProducts sizes(c, plan, size);
  size.take(sizes.x.depth + sizes.d.depth);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    const TileProducts products(c, plan, arena);
    float* sums = arena.take(products.x.depth + products.d.depth);
    std::memset(sums, 0, (products.x.depth + products.d.depth) * sizeof(float));
    split_rows(c.d.sample(n), plan.d_pixels, plan.outputs, products.d, sums);
    split_rows(c.x.sample(n), plan.phases[0].pixels, plan.inputs, products.x,
               sums + products.d.depth);
    const Products weight = products.product_of_split(plan.output_count);
    if (!(std::fabs(weight.norm) >= 1e-30 && std::fabs(weight.norm) <= 1e30)) {
      // Inner products may have left the range of a float although the norm does not.
      if (!gram_of<TileProducts>(sample_of(c, n), result_of(result, n), 1)) result.weight[n] = NAN;
      return;
    }
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(squares(sums, plan.outputs));
    write_norm<TileProducts>(c, n, weight, result);
  });
}

// Fewer pixels than this leave tiles half empty, or do not repay the splitting.
constexpr int64_t kFewestPositions = 128;

}  // namespace

bool amx_gram(const Convolution& c, Result result, int64_t threads) {
  if (is_plain(c) && c.groups == 1 && c.x.stride[1] == 1 && c.d.stride[1] == 1) {
    const PhasePlan plan(c);
    return gram_of_rows(c, plan, result, threads);
  }
  if (c.d.size[2] * c.d.size[3] * c.d.size[4] < kFewestPositions)
    return kAvx512.gram(c, result, threads);
  return gram_of<TileProducts>(c, result, threads);
}

}  // namespace gradood
