// Which elements a convolution multiplies, as tables that are built once a call and that every
// kernel follows. Strides, padding, dilation and memory layout are dealt with here and nowhere
// else.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor.h"

namespace gradood {

// x is [N, C, *S] and d [N, P, *T], both with three spatial axes; missing ones have size one.
struct Convolution {
  Tensor x, d;
  int64_t kernel[3], stride[3], padding[3], dilation[3];
  int64_t groups;

  int64_t samples() const { return d.size[0]; }
  int64_t inputs() const { return x.size[1] / groups; }   // channels a group
  int64_t outputs() const { return d.size[1] / groups; }  // channels a group
  int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
};

// Consecutive packed positions that lie `step` elements apart in memory; zeros if `offset` < 0.
struct Run {
  int64_t offset, step, count;
};

using Runs = std::vector<Run>;
using Offsets = std::vector<int64_t>;

// Pixels inside of an image, in the order of memory, and the packed position of each among zeros.
struct Inside {
  Runs runs;
  Offsets cells;
};

// Output positions that are packed and multiplied at once, and the padded input under them.
struct Block {
  int64_t count[3];  // output positions along each axis
  int64_t step[3];   // packed vectors of x between neighbouring outputs along each axis
  int64_t d_positions, x_positions;
  Runs d, x;
  Inside inside;    // x without the zeros around it
  Offsets taps;     // packed positions from an output's first tap to each of its taps
  Offsets columns;  // packed vectors from an output's first to each column of its row of x
  Offsets pairs;    // of packed planes of x: the first tap of every (channel, tap) pair …
  Runs corners;     // … and how it moves from output to output
};

// Terms that are added one after the other in float32. Rounding grows with their number, or with
// its root: longer sums are cut into pieces, which are added in float64, or among themselves.
constexpr int64_t kLongestSum = 1024;

// How the direct algorithm walks a convolution. Vector lanes hold channels of d and of x; with few
// input channels a group, rows are (channel, tap) pairs instead, and lanes channels of d. Large
// images are cut into blocks along their first axis, each of which is summed on its own.
struct DirectPlan {
  int64_t inputs, outputs, taps;  // channels a group
  bool pairs;
  int64_t d_vectors, x_vectors;      // of channels of d, and of a row of the gradient without pairs
  int64_t d_positions, x_positions;  // of the largest block
  Offsets d_lanes, x_lanes;          // elements from the first channel to each
  std::vector<Block> blocks;

  // A block packs at most `limit` floats, if one slice of the image does. Depthwise convolutions
  // pack one vector of output channels at a time, each beside the input channel that it reads.
  DirectPlan(const Convolution& c, bool depthwise, int64_t lanes, int64_t limit);
  ~DirectPlan();
};

// How many steps of one vector take the place of `T · P · Q` of the direct algorithm, and which
// elements they read, in Winograd's algorithm for 3 × 3 kernels of stride one (winograd.h). Outputs
// are cut into tiles of 4 × 4, whose taps see 6 × 6 inputs, zeros beyond the image; a strip holds
// rows of tiles of one plane, which are packed and multiplied at once.
struct WinogradPlan {
  static constexpr int64_t kTile = 4, kWindow = 6, kProducts = kWindow * kWindow;

  struct Strip {
    int64_t rows;  // of tiles
    Inside d, x;
  };

  int64_t inputs, outputs;       // channels a group
  int64_t d_vectors, x_vectors;  // lanes of a row of the gradient
  int64_t width, tiles;          // tiles of a row, and of the largest strip
  int64_t positions;             // inputs under the largest strip
  Offsets d_lanes, x_lanes;      // elements from the first channel to each
  std::vector<Strip> strips;

  // Whether it serves a convolution, and sooner than the direct algorithm.
  static bool pays(const Convolution& c, int64_t lanes);

  // A strip takes at most `limit` floats, if one row of tiles does.
  WinogradPlan(const Convolution& c, int64_t lanes, int64_t limit);
  ~WinogradPlan();
};

// Neighbouring pixels of a row of packed ones that are neighbouring cells of a grid as well.
struct Stretch {
  int64_t pixel, cell, count;
};

using Stretches = std::vector<Stretch>;

// Input pixels whose padded coordinates leave the same remainders when divided by the stride. Two
// outputs see them under the same tap at the same distance, whatever the tap. Cells number the
// coordinates after the division, on a grid that all phases and the output share, so that
// neighbours in memory mostly are neighbours on the grid.
struct Phase {
  Offsets pixels;  // elements of x
  Runs runs;       // the same
  Stretches cells;
  Offsets shifts;  // cells from an output's own cell to each tap in this phase
};

struct PhasePlan {
  int64_t inputs, outputs;      // channels a group
  int64_t cells;                // of the grid
  int64_t output_count;         // outputs on it
  int64_t output_end;           // one more than the last output's cell
  int64_t pixel_count;          // of the largest phase
  Runs d_channels, x_channels;  // the walk over a group's channels
  Offsets d_pixels;             // elements of d
  Runs d_runs;                  // the same
  Stretches d_cells;
  std::vector<Phase> phases;

  explicit PhasePlan(const Convolution& c);
  ~PhasePlan();
};

}  // namespace gradood
