// How the tile unit walks a convolution: G[row of x][p] = Σ_cell x[row][cell + shift] d[p][cell].
//
// x and d lie on one grid of cells (see Phase), d with zeros between the rows of the image, so that
// a tap is nothing but another first cell.
#pragma once

#include "geometry.h"

namespace gradood {

constexpr int kTileRows = 16, kTileDepth = 32;  // rows of a tile; bfloat16 numbers of a row

inline int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

struct TilePlan {
  PhasePlan grid;
  bool x_exact, d_exact;   // bfloat16 already: no low part
  bool pairs;              // rows of G are (channel, tap) pairs, which few channels waste less of
  int64_t depth;           // cells that are summed over
  int64_t chunk;           // cells of it that fit L2
  int64_t pitch;           // cells from one plane of x to the next
  int64_t x_rows, d_rows;  // planes of x and of d, in whole tiles
  Offsets columns;         // cells from the first plane to each tile of 16 rows of G, followed by
                           // three of planes of zeros

  explicit TilePlan(const Convolution& c);
  ~TilePlan();

  int64_t column_count() const { return static_cast<int64_t>(columns.size()) - 3; }
  int64_t channel_rows() const { return round_up(grid.inputs, kTileRows); }
};

}  // namespace gradood
