// Gram matrices with vector instructions; see gram_grid.h for what they are good for.
#pragma once

#include "direct.h"
#include "gram_grid.h"
#include "tile.h"

namespace gradood {
namespace {

// Terms of an inner product that are added one after the other: on the diagonal all have one sign,
// and so has their rounding.
constexpr int64_t kLongestProduct = 1024;

// A tile of aᵀa; `a` holds positions in lanes, `depth` vectors each block of them.
template <int Columns>
GRADOOD_INLINE void gram_tile(const float* a, int64_t depth, int64_t row, int64_t column,
                              Tile<Columns>& tile) {
  int64_t columns[Columns];
  for (int c = 0; c < Columns; ++c) columns[c] = (column + c) * depth;
  const float* rows = a + row / kLanes * depth * kLanes + row % kLanes;
  const int64_t step[3] = {0, 0, 1};
  tile.clear();
  for (int64_t k = 0; k < depth; k += kLongestProduct) {
    const int64_t count[3] = {1, 1, depth - k < kLongestProduct ? depth - k : kLongestProduct};
    if (k == 0) {
      tile.accumulate(rows, a, columns, {count, step});
      continue;
    }
    Tile<Columns> piece;
    piece.clear();
    piece.accumulate(rows + k * kLanes, a + k * kLanes, columns, {count, step});
    tile.each([&](Vector& v, int i) { v += piece.sum[i / Columns][i % Columns]; });
  }
}

// Calls visit(row, column vector, constant number of vectors) for the tiles of an upper triangle.
//
// Loop order: a group of columns stays in L1 while the rows above the diagonal pass by it.
template <class Visit>
GRADOOD_INLINE void upper_tiles(int64_t count, Visit visit) {
  column_groups(blocks_of_lanes(count), [&](int64_t column, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const int64_t end = (column + kWidth) * kLanes;
    for (int64_t row = 0; row < end && row < count; row += kRows) visit(row, column, width);
  });
}

// 2 above the diagonal, 1 on it, 0 below: what an entry of a symmetric matrix counts.
GRADOOD_INLINE Vector symmetric_weight(int64_t row, int64_t first_column) {
  Vector weight;
  for (int i = 0; i < kLanes; ++i) {
    const int64_t column = first_column + i;
    weight[i] = column > row ? 2.0f : column == row ? 1.0f : 0.0f;
  }
  return weight;
}

// 1 on the diagonal, else 0.
GRADOOD_INLINE Vector diagonal_weight(int64_t row, int64_t first_column) {
  Vector weight = {};
  if (row >= first_column && row < first_column + kLanes) weight[row - first_column] = 1.0f;
  return weight;
}

struct VectorProducts {
  static constexpr double kLeast = 0.05;
  // The gradient itself, whose sums round as they do everywhere.
  static constexpr auto again = direct;

  VectorProducts(const Convolution&, const PhasePlan&, Arena&) {}

  // L1: one tile of inner products of x while that of d is formed in registers.
  Products product(const float* x, int64_t inputs, const float* d, int64_t outputs,
                   int64_t count) const {
    Products total;
    upper_tiles(count, [&](int64_t row, int64_t column, auto width) {
      constexpr int kWidth = decltype(width)::value;
      alignas(64) float of_x[kRows * kWidth * kLanes];
      Tile<kWidth> tile;
      gram_tile(x, inputs, row, column, tile);
      tile.write(of_x);
      gram_tile(d, outputs, row, column, tile);
      Vector sums = {}, diagonal = {};
      const bool above = row + kRows <= column * kLanes;
      tile.each([&](Vector& v, int i) {
        const Vector both = v * load(of_x + i * kLanes);
        const int64_t first = (column + i % kWidth) * kLanes;
        sums += above ? both + both : both * symmetric_weight(row + i / kWidth, first);
        if (!above) diagonal += both * diagonal_weight(row + i / kWidth, first);
      });
      total += {add_lanes(sums), above ? 0 : add_lanes(diagonal)};
    });
    return total;
  }

  void square(bool, const float* a, int64_t depth, int64_t count, float* to) const {
    const int64_t width = round_up(count, kSquareUnit);
    upper_tiles(count, [&](int64_t row, int64_t column, auto columns) {
      constexpr int kWidth = decltype(columns)::value;
      Tile<kWidth> tile;
      gram_tile(a, depth, row, column, tile);
      tile.each([&](Vector& v, int i) {
        store(to + (row + i / kWidth) * width + (column + i % kWidth) * kLanes, v);
      });
    });
  }
};

bool gram(const Convolution& c, Result result, int64_t threads) {
  return gram_of<VectorProducts>(c, result, threads);
}

}  // namespace
}  // namespace gradood
