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
template <int Columns, int Rows>
GRADOOD_INLINE void gram_tile(const float* a, int64_t depth, int64_t row, int64_t column,
                              Tile<Columns, Rows>& tile) {
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
    Tile<Columns, Rows> piece;
    piece.clear();
    piece.accumulate(rows + k * kLanes, a + k * kLanes, columns, {count, step});
    tile.each([&](Vector& v, int i) { v += piece.sum[i / Columns][i % Columns]; });
  }
}

template <int N>
using Constant = std::integral_constant<int, N>;

// Positions that fill no vector, at most Rows of them at a time beside every column.
template <int Rows, class Visit>
GRADOOD_INLINE void rest_tiles(int64_t row, int64_t count, Visit visit) {
  for (; row + Rows <= count; row += Rows)
    column_groups(blocks_of_lanes(count),
                  [&](int64_t column, auto width) { visit(row, column, width, Constant<Rows>()); });
  if constexpr (Rows > 1) rest_tiles<Rows / 2>(row, count, visit);
}

// Calls visit(row, column vector, constant number of vectors, constant number of rows) for tiles
// that hold every pair of `count` positions. Those of whole vectors of positions are a triangle of
// which each row begins at its own vector; the positions that are left over, often the one of a
// class token, are rows below it and no vector of columns that is mostly empty.
//
// Loop order: the rows of a tile stay in L1 while the columns to their right pass by.
template <class Visit>
GRADOOD_INLINE void upper_tiles(int64_t count, Visit visit) {
  const int64_t vectors = count / kLanes;
  for (int64_t row = 0; row < vectors * kLanes; row += kRows) {
    const int64_t first = row / kLanes;
    column_groups(vectors - first, [&](int64_t column, auto width) {
      visit(row, first + column, width, Constant<kRows>());
    });
  }
  if (count % kLanes != 0) rest_tiles<kRows>(vectors * kLanes, count, visit);
}

// Counts: each pair of positions once, in either order.
struct Steps {
  float of[2 * kLanes];  // zeros, `middle` in place kLanes, then `above`

  constexpr Steps(float middle, float above) : of() {
    for (int i = kLanes; i < 2 * kLanes; ++i) of[i] = i == kLanes ? middle : above;
  }
  // What the entries of a row count in the vector that holds its diagonal.
  GRADOOD_INLINE Vector at(int64_t row) const { return load(of + kLanes - row % kLanes); }
};
constexpr Steps kSymmetric{1, 2}, kDiagonal{1, 0};  // a pair stands for both of its orders

struct VectorProducts {
  static constexpr double kLeast = 0.05;
  // The gradient itself, whose sums round as they do everywhere.
  static constexpr auto again = direct;

  VectorProducts(const Convolution&, const PhasePlan&, Arena&) {}

  // L1: one tile of inner products of x while that of d is formed in registers.
  Products product(const float* x, int64_t inputs, const float* d, int64_t outputs,
                   int64_t count) const {
    Products total;
    upper_tiles(count, [&](int64_t row, int64_t column, auto width, auto rows) {
      constexpr int kWidth = decltype(width)::value, kHeight = decltype(rows)::value;
      alignas(64) float of_x[kHeight * kWidth * kLanes];
      Tile<kWidth, kHeight> tile;
      gram_tile(x, inputs, row, column, tile);
      tile.write(of_x);
      gram_tile(d, outputs, row, column, tile);
      Vector sums = {}, on_diagonal = {};
      const int64_t place = row / kLanes - column;  // of the diagonal among the tile's vectors
      tile.each([&](Vector& v, int i) {
        const Vector both = v * load(of_x + i * kLanes);
        if (i % kWidth != place) return void(sums += both + both);
        sums += both * kSymmetric.at(row + i / kWidth);
        on_diagonal += both * kDiagonal.at(row + i / kWidth);
      });
      const bool there = place >= 0 && place < kWidth;
      total += {add_lanes(sums), there ? add_lanes(on_diagonal) : 0};
    });
    return total;
  }

  void square(bool, const float* a, int64_t depth, int64_t count, float* to) const {
    const int64_t pitch = round_up(count, kSquareUnit);
    upper_tiles(count, [&](int64_t row, int64_t column, auto width, auto rows) {
      constexpr int kWidth = decltype(width)::value, kHeight = decltype(rows)::value;
      Tile<kWidth, kHeight> tile;
      gram_tile(a, depth, row, column, tile);
      tile.each([&](Vector& v, int i) {
        const int64_t r = row + i / kWidth, first = (column + i % kWidth) * kLanes;
        if (first + kLanes > r) return store(to + r * pitch + first, v);
        for (int lane = 0; lane < kLanes; ++lane) to[(first + lane) * pitch + r] = v[lane];
      });
    });
  }
};

bool gram(const Convolution& c, Result result, int64_t threads) {
  return gram_of<VectorProducts>(c, result, threads);
}

}  // namespace
}  // namespace gradood
