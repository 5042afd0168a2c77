#include "tile_plan.h"

#include <algorithm>

namespace gradood {
namespace {

constexpr int64_t kChunkNumbers = 600 << 10;  // bfloat16 numbers of a chunk of x and d: 1.2 MB

}  // namespace

TilePlan::TilePlan(const Convolution& c)
    : grid(c), x_exact(c.x.dtype == Dtype::bfloat16), d_exact(c.d.dtype == Dtype::bfloat16) {
  const int64_t channels = channel_rows(), phases = static_cast<int64_t>(grid.phases.size());
  depth = round_up(grid.output_end, kTileDepth);
  int64_t reach = 0, taps = 0;
  for (const Phase& phase : grid.phases) {
    taps += static_cast<int64_t>(phase.shifts.size());
    for (int64_t shift : phase.shifts) reach = std::max(reach, shift);
  }
  // An odd number of cache lines, so that the 16 rows of a tile do not compete for the same sets.
  pitch = round_up(depth + reach, 64) + kTileDepth;
  d_rows = round_up(grid.outputs, kTileRows);
  pairs = 4 * round_up(grid.inputs * taps, kTileRows) <= 3 * channels * taps;
  x_rows = pairs ? round_up(grid.inputs * taps, kTileRows) : channels * phases;
  for (int64_t row = 0; row < x_rows && pairs; row += kTileRows) columns.push_back(row * pitch);
  for (int64_t i = 0; i < phases && !pairs; ++i)
    for (int64_t row = 0; row < channels; row += kTileRows)
      for (int64_t shift : grid.phases[i].shifts)
        columns.push_back((i * channels + row) * pitch + shift);
  columns.insert(columns.end(), 3, x_rows * pitch);
  const int64_t parts = (x_exact ? 1 : 2) * x_rows + (d_exact ? 1 : 2) * d_rows;
  const int64_t fitting = std::max<int64_t>(8 * kTileDepth, kChunkNumbers / parts);
  const int64_t most = std::min(fitting, 4 * kLongestSum);
  const int64_t pieces = (depth + most - 1) / most;
  chunk = round_up((depth + pieces - 1) / pieces, kTileDepth);
}

TilePlan::~TilePlan() = default;

}  // namespace gradood
