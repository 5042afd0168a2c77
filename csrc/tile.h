// The inner loop of every matrix product: a tile of Rows × Columns vectors of sums in registers.
#pragma once

#include "vector.h"

namespace gradood {
namespace {

// The positions that are summed over: nested loops, and the vectors between neighbours in x. The
// other operand is walked without gaps, one vector a position.
struct Walk {
  const int64_t* count;
  const int64_t* step;
};

template <int Columns, int Rows = kRows>
struct Tile {
  Vector sum[Rows][Columns];

  // sum[r][c] += Σ_position d[position][r] · x[position + columns[c]], counted in vectors.
  //
  // Registers: all sums, a row of x, one broadcast of d. L1: the rows of x that neighbouring
  // columns share. d and x stream from L2, Rows + lanes × Columns floats for Rows × Columns
  // vector operations.
  GRADOOD_INLINE void accumulate(const float* d, const float* x, const int64_t* columns,
                                 Walk walk) {
    int64_t column[Columns];
    for (int c = 0; c < Columns; ++c) column[c] = columns[c] * kLanes;
    const int64_t step = walk.step[2] * kLanes;
    for (int64_t i = 0; i < walk.count[0]; ++i)
      for (int64_t j = 0; j < walk.count[1]; ++j) {
        const float* row = x + (i * walk.step[0] + j * walk.step[1]) * kLanes;
        for (int64_t k = 0; k < walk.count[2]; ++k) {
          Vector v[Columns];
#pragma GCC unroll 8
          for (int c = 0; c < Columns; ++c) v[c] = load(row + column[c]);
#pragma GCC unroll 16
          for (int r = 0; r < Rows; ++r) {
            Vector b = broadcast(d[r]);
            hold_in_registers(b, v);
#pragma GCC unroll 8
            for (int c = 0; c < Columns; ++c) sum[r][c] += b * v[c];
          }
          d += kLanes;
          row += step;
        }
      }
  }

  GRADOOD_INLINE void clear() {
    each([](Vector& v, int) { v = Vector{}; });
  }

  GRADOOD_INLINE void add(const float* from) {
    each([=](Vector& v, int i) { v += load(from + i * kLanes); });
  }

  GRADOOD_INLINE void write(float* to) {
    each([=](Vector& v, int i) { store(to + i * kLanes, v); });
  }

  GRADOOD_INLINE double squared() {
    Vector total[Columns] = {};
    each([&](Vector& v, int i) { total[i % Columns] += v * v; });
    for (int c = 1; c < Columns; ++c) total[0] += total[c];
    return add_lanes(total[0]);
  }

  // Calls visit(vector, index) for every vector of the tile.
  template <class Visit>
  GRADOOD_INLINE void each(Visit visit) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) visit(sum[r][c], r * Columns + c);
  }
};

// Calls visit(first column, constant number of columns) for groups of at most kColumns columns;
// a remainder of one is shared out over two groups.
template <class Visit>
GRADOOD_INLINE void column_groups(int64_t columns, Visit visit) {
  for (int64_t c = 0; c < columns;) {
    const int64_t rest = columns - c;
    if (rest >= 3 && kColumns >= 3 && rest != 4) {
      visit(c, std::integral_constant<int, 3>());
      c += 3;
    } else if (rest >= 2) {
      visit(c, std::integral_constant<int, 2>());
      c += 2;
    } else {
      visit(c, std::integral_constant<int, 1>());
      c += 1;
    }
  }
}

}  // namespace
}  // namespace gradood
