// The direct algorithm on the tile unit.
#pragma once

#include "amx.h"
#include "kernels.h"
#include "moments.h"
#include "parallel.h"

namespace gradood {
namespace {

struct TileBuffers {
  Split x, d, rows;
  float *floats, *partial;

  TileBuffers(const TilePlan& plan, Arena& arena) {
    const int64_t x_planes = (plan.x_rows + kTileRows) * plan.pitch;
    const int64_t row_planes = (plan.pairs ? plan.channel_rows() : kTileRows) * plan.pitch;
    x = take_split(arena, x_planes, plan.x_exact);
    d = take_split(arena, plan.d_rows * plan.depth, plan.d_exact);
    rows = take_split(arena, row_planes, plan.x_exact && plan.d_exact);
    const int64_t pixels = plan.grid.pixel_count > plan.grid.output_count ? plan.grid.pixel_count
                                                                          : plan.grid.output_count;
    floats = arena.take(kTileRows * pixels);
    const int64_t tiles = (plan.column_count() + 3) * (plan.d_rows / kTileRows + 3);
    partial = arena.take(plan.chunk < plan.depth ? tiles * 2 * kTileFloats : 4 * kTileFloats);
  }
};

inline void zero(Split to, int64_t numbers) {
  std::memset(to.high, 0, numbers * sizeof(uint16_t));
  if (to.low != nullptr) std::memset(to.low, 0, numbers * sizeof(uint16_t));
}

// d as pairs; returns Σ_p (Σ_t d)².
inline double pack_pairs(const TilePlan& plan, const Source& d, int64_t stride,
                         const TileBuffers& to) {
  const PhasePlan& grid = plan.grid;
  const Split planes{to.rows.high, plan.d_exact ? nullptr : to.rows.low};
  double bias = 0;
  for (int64_t p = 0; p < plan.d_rows; p += kTileRows) {
    const int64_t rest = grid.outputs - p, width = rest < kTileRows ? rest : kTileRows;
    const float* rows[kTileRows];
    pixel_rows(d.at(p * stride), stride, width, grid.d_runs, to.floats, grid.output_count, rows);
    for (int64_t r = 0; r < kTileRows; ++r) {
      const Split plane = planes.at(r * plan.depth);
      if (r >= width) {
        zero(plane, plan.depth);
        continue;
      }
      split_row(rows[r], grid.d_cells, plan.depth, plane);
      const double s = moments_of_floats(rows[r], rows[r], 0, grid.output_count).d;
      bias += s * s;
    }
    const Split pairs = to.d.at(p * plan.depth);
    planes_to_pairs(planes.high, plan.depth, plan.depth, pairs.high);
    if (pairs.low != nullptr) planes_to_pairs(planes.low, plan.depth, plan.depth, pairs.low);
  }
  return bias;
}

// x as planes: one for every channel and phase, or copies for every channel and tap.
inline void pack_planes(const TilePlan& plan, const Source& x, int64_t stride,
                        const TileBuffers& to) {
  const PhasePlan& grid = plan.grid;
  int64_t plane = 0;
  for (const Phase& phase : grid.phases) {
    const Split planes = plan.pairs ? to.rows : to.x.at(plane * plan.pitch);
    for (int64_t c = 0; c < grid.inputs; c += kTileRows) {
      const int64_t rest = grid.inputs - c, width = rest < kTileRows ? rest : kTileRows;
      const float* rows[kTileRows];
      pixel_rows(x.at(c * stride), stride, width, phase.runs, to.floats, grid.pixel_count, rows);
      for (int64_t r = 0; r < width; ++r)
        split_row(rows[r], phase.cells, plan.pitch, planes.at((c + r) * plan.pitch));
    }
    if (!plan.pairs) {
      const int64_t unused = plan.channel_rows() - grid.inputs;
      zero(planes.at(grid.inputs * plan.pitch), unused * plan.pitch);
      plane += plan.channel_rows();
      continue;
    }
    for (int64_t c = 0; c < grid.inputs; ++c)
      for (int64_t shift : phase.shifts) {
        const Split from = planes.at(c * plan.pitch + shift), copy = to.x.at(plane++ * plan.pitch);
        std::memcpy(copy.high, from.high, plan.depth * sizeof(uint16_t));
        if (copy.low != nullptr) std::memcpy(copy.low, from.low, plan.depth * sizeof(uint16_t));
      }
  }
  zero(to.x.at(plane * plan.pitch), (plan.x_rows + kTileRows - plane) * plan.pitch);
}

// ‖G‖² of packed planes and pairs.
//
// L2: one chunk of x and d. Two (three) tiles of rows of x stay put while all of d passes by; with
// several chunks, sums wait in `partial` for the next.
inline double tile_products(const TilePlan& plan, const TileBuffers& b) {
  const int64_t columns = plan.column_count(), d_tiles = plan.d_rows / kTileRows;
  double total = 0;
  for (int64_t start = 0; start < plan.depth; start += plan.chunk) {
    const bool last = start + plan.chunk >= plan.depth;
    const int64_t depth = last ? plan.depth - start : plan.chunk;
    float* partial = b.partial;
    auto block = [&](int64_t column, int64_t d_tile, auto multiply) {
      Operands o{{}, plan.pitch, kTileDepth, {}};
      for (int i = 0; i < 3; ++i) o.planes[i] = b.x.at(plan.columns[column + i] + start);
      for (int i = 0; i < 2; ++i)
        o.pairs[i] = b.d.at((d_tile + i) * kTileRows * plan.depth + start * kTileRows);
      start == 0 ? clear_tiles() : read_tiles(partial);
      multiply(o, depth);
      write_tiles(partial);
      if (last) total += sum_of_squares(partial, 4 * kTileFloats);
      if (plan.chunk < plan.depth) partial += 4 * kTileFloats;
    };
    for (int64_t column = 0; column < columns; column += 2)
      for (int64_t t = 0; t + 1 < d_tiles; t += 2)
        block(column, t, [](const Operands& o, int64_t n) { multiply_2x2(o, n); });
    for (int64_t column = 0; column < columns && d_tiles % 2 == 1; column += 3)
      block(column, d_tiles - 1, [](const Operands& o, int64_t n) { multiply_3x1(o, n); });
  }
  return total;
}

// Products that fill less than this share of their tiles are left to vector instructions.
bool fills_tiles(const Convolution& c, const TilePlan& plan) {
  const double outputs = static_cast<double>(plan.grid.output_count) * plan.grid.outputs;
  const double useful = outputs * plan.grid.inputs * c.taps();
  const double rows = static_cast<double>(plan.column_count()) * kTileRows;
  return useful > 0.25 * rows * plan.d_rows * plan.depth;
}

}  // namespace

bool amx_direct(const Convolution& c, Result result, int64_t threads) {
  const TilePlan plan(c);
  if (!fills_tiles(c, plan)) return kAvx512.direct(c, result, threads);
  Arena size{nullptr};
  TileBuffers(plan, size);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    const TileScope tiles;
    Arena arena{memory};
    const TileBuffers buffers(plan, arena);
    double weight = 0, bias = 0;
    for (int64_t g = 0; g < c.groups; ++g) {
      const Source d = c.d.sample(n).at(g * plan.grid.outputs * c.d.stride[1]);
      const Source x = c.x.sample(n).at(g * plan.grid.inputs * c.x.stride[1]);
      bias += pack_pairs(plan, d, c.d.stride[1], buffers);
      pack_planes(plan, x, c.x.stride[1], buffers);
      weight += tile_products(plan, buffers);
    }
    result.weight[n] = static_cast<float>(weight);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
  });
}

}  // namespace gradood
