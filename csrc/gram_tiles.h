// The upper triangle of a matrix of inner products, as tiles of sums that grow piece by piece of
// the depth, one after the other in memory.
#pragma once

#include "gram_grid.h"
#include "tile.h"

namespace gradood {
namespace {

constexpr int kHalf = kLanes / 2;
using HalfVector = VectorOf<float, kHalf>::Type;

// Whether tiles leave out the half of a diagonal block that repeats what lies above the diagonal.
// Half a vector costs half as much only where vectors are wide; sixteen registers cannot hold it.
constexpr bool kHalves = kLanes == 16;

struct UpperTwice {
  float of[kLanes];

  constexpr UpperTwice() : of() {
    for (int i = 0; i < kLanes; ++i) of[i] = i < kHalf ? 1 : 2;
  }
};
constexpr UpperTwice kUpperTwice;

// Some rows of inner products: `Columns` vectors of positions from `column` on and, with `Half`,
// the upper half of the vector that the rows themselves lie in.
template <int Columns, int Rows, bool Half = false>
struct Strip {
  static constexpr int columns = Columns, rows = Rows, halves = Half ? Rows : 0;
  static constexpr bool half = Half;
  static constexpr int64_t floats = Columns * Rows * kLanes + halves * kHalf;

  int64_t row, column;
  bool halved = false;  // the strip below leaves out half of the block on the diagonal

  // Writes inner products over `depth` channels of packed positions, or adds them to what there is;
  // `pitch` channels are packed in all.
  //
  // Registers: all sums, a row of vectors, one broadcast. L1: the packed positions.
  template <bool Adds>
  GRADOOD_INLINE void multiply(const float* a, int64_t pitch, int64_t depth, float* to) const {
    Vector sum[Rows][Columns] = {};
    HalfVector part[Half ? Rows : 1] = {};
    const float* rows_at = a + row / kLanes * pitch * kLanes;
    const float* columns_at = a + column * pitch * kLanes;
    const int64_t first = row % kLanes;
    for (int64_t k = 0; k < depth; ++k, rows_at += kLanes, columns_at += kLanes) {
      Vector v[Columns];
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) v[c] = load(columns_at + c * pitch * kLanes);
      [[maybe_unused]] const HalfVector w = load_as<HalfVector>(rows_at + kHalf);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        Vector b = broadcast(rows_at[first + r]);
        hold_in_registers(b, v);
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) sum[r][c] += b * v[c];
        if constexpr (Half) part[r] += load_as<HalfVector>(&b) * w;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) {
        float* at = to + (r * Columns + c) * kLanes;
        store(at, Adds ? load(at) + sum[r][c] : sum[r][c]);
      }
#pragma GCC unroll 8
    for (int r = 0; r < halves; ++r) {
      float* at = to + Columns * Rows * kLanes + r * kHalf;
      const HalfVector all = Adds ? load_as<HalfVector>(at) + part[r] : part[r];
      std::memcpy(at, &all, sizeof all);
    }
  }

  // Σ x d over all ordered pairs of positions that this strip stands for, and over those of equal
  // positions, from where the strips of two matrices were written.
  //
  // The block on the diagonal is there in both orders, but for what the next strip leaves out.
  GRADOOD_INLINE Products products(const float* x, const float* d) const {
    const int64_t place = row / kLanes - column;  // of the diagonal among the columns
    Vector right = {}, own = {};
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) {
      Vector sum = {};
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const int64_t at = (r * Columns + c) * kLanes;
        sum += load(x + at) * load(d + at);
      }
      (c == place ? own : right) += sum;
    }
    double diagonal = 0;
    for (int64_t r = 0; r < Rows && place >= 0 && place < Columns; ++r) {
      const int64_t at = (r * Columns + place) * kLanes + (row + r) % kLanes;
      diagonal += static_cast<double>(x[at]) * d[at];
    }
    if (halved) own *= load(kUpperTwice.of);
    double norm = add_lanes(right + right + own);
    HalfVector part = {};
    for (int64_t r = 0; r < halves; ++r) {
      const int64_t at = Columns * Rows * kLanes + r * kHalf;
      part += load_as<HalfVector>(x + at) * load_as<HalfVector>(d + at);
      diagonal += static_cast<double>(x[at + r]) * d[at + r];
    }
    if constexpr (Half) norm += sum_of<kHalf>(part);
    return {norm, diagonal};
  }

  // Calls visit(row, number of the vector of columns, read) for every vector of entries, which
  // read(…) takes from where the strip was written.
  template <class Visit>
  GRADOOD_INLINE void each(Visit visit) const {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c)
        visit(row + r, column + c,
              [=](const float* from) { return load(from + (r * Columns + c) * kLanes); });
    for (int r = 0; r < halves; ++r)
      visit(row + r, row / kLanes, [=](const float* from) {
        alignas(64) float whole[kLanes] = {};
        std::memcpy(whole + kHalf, from + Columns * Rows * kLanes + r * kHalf, sizeof whole / 2);
        return load(whole);
      });
  }
};

// Positions that fill no vector, at most Rows of them at a time beside every column; a single one
// beside many columns, whose sums would else wait for each other.
template <int Rows, class Visit>
GRADOOD_INLINE void rest_strips(int64_t row, int64_t count, Visit visit) {
  for (; row + Rows <= count; row += Rows) {
    int64_t column = 0;
    const int64_t columns = blocks_of_lanes(count);
    if constexpr (Rows == 1) {
      for (; columns - column >= 6; column += 6) visit(Strip<6, 1>{row, column});
      if (columns - column == 5) return visit(Strip<5, 1>{row, column});
      if (columns - column == 4) return visit(Strip<4, 1>{row, column});
    }
    column_groups(columns - column, [&](int64_t c, auto width) {
      visit(Strip<decltype(width)::value, Rows>{row, column + c});
    });
  }
  if constexpr (Rows > 1) rest_strips<Rows / 2>(row, count, visit);
}

// Calls visit(strip) for strips that hold every pair of `count` positions. Those of whole vectors
// of positions are a triangle of which each row begins at its own vector; the positions that are
// left over, often the one of a class token, are rows below it and no vector of columns that is
// mostly empty.
//
// Loop order: the rows of a strip stay in L1 while the columns to their right pass by.
template <class Visit>
GRADOOD_INLINE void upper_strips(int64_t count, Visit visit) {
  const int64_t vectors = count / kLanes;
  for (int64_t row = 0; row < vectors * kLanes; row += kRows) {
    int64_t first = row / kLanes;
    const bool halved = kHalves && first + 1 < vectors;
    if (halved && row % kLanes == kHalf) {
      if (first + 2 < vectors) {
        visit(Strip<2, kRows, kHalves>{row, first + 1});
        first += 3;
      } else {
        visit(Strip<1, kRows, kHalves>{row, first + 1});
        first += 2;
      }
    }
    column_groups(vectors - first, [&](int64_t column, auto width) {
      visit(Strip<decltype(width)::value, kRows>{row, first + column, halved});
    });
  }
  if (count % kLanes != 0) rest_strips<kRows>(vectors * kLanes, count, visit);
}

// Floats that hold all strips.
inline int64_t triangle_floats(int64_t count) {
  int64_t floats = 0;
  upper_strips(count, [&](auto strip) { floats += strip.floats; });
  return floats;
}

}  // namespace
}  // namespace gradood
