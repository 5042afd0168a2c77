// The direct algorithm on the tile unit.
#pragma once

#include "amx.h"
#include "kernels.h"
#include "moments.h"
#include "parallel.h"

namespace gradood {
namespace {

// Every task writes the same places of its scratch: what stays zero pads images, rows and channels.
struct TileBuffers {
  Split x, d, x_planes, d_planes;
  float *floats, *partial;

  TileBuffers(const TilePlan& plan, Arena& arena) {
    const int64_t phases = static_cast<int64_t>(plan.grid.phases.size());
    x = take_split(arena, (plan.x_rows + kTileRows) * plan.pitch, plan.x_exact);
    d = take_split(arena, plan.d_rows * plan.depth, plan.d_exact);
    x_planes =
        plan.pairs ? take_split(arena, phases * plan.channel_rows() * plan.pitch, plan.x_exact) : x;
    d_planes = take_split(arena, kTileRows * plan.depth, plan.d_exact);
    const int64_t pixels = plan.grid.pixel_count > plan.grid.output_count ? plan.grid.pixel_count
                                                                          : plan.grid.output_count;
    floats = arena.take(kTileRows * pixels);
    const int64_t tiles = (plan.column_count() + 3) * (plan.d_rows / kTileRows + 3);
    partial = arena.take(plan.chunk < plan.depth ? tiles * 2 * kTileFloats : 4 * kTileFloats);
  }
};

// d as pairs; returns Σ_p (Σ_t d)².
inline double pack_pairs(const TilePlan& plan, const Source& d, int64_t stride,
                         const TileBuffers& to) {
  const PhasePlan& grid = plan.grid;
  double bias = 0;
  for (int64_t p = 0; p < grid.outputs; p += kTileRows) {
    const int64_t rest = grid.outputs - p, width = rest < kTileRows ? rest : kTileRows;
    const float* rows[kTileRows];
    const bool in_place = pixel_rows(d.at(p * stride), stride, width, grid.d_runs, to.floats,
                                     grid.output_count, rows);
    for (int64_t r = 0; r < width; ++r) {
      if (in_place && r + 2 < width) prefetch_row(rows[r + 2], grid.output_count);
      split_row(rows[r], grid.d_cells, to.d_planes.at(r * plan.depth));
      const double s = moments_of_floats(rows[r], rows[r], 0, grid.output_count).d;
      bias += s * s;
    }
    const Split pairs = to.d.at(p * plan.depth);
    planes_to_pairs(to.d_planes.high, plan.depth, width, pairs.high);
    if (!plan.d_exact) planes_to_pairs(to.d_planes.low, plan.depth, width, pairs.low);
  }
  return bias;
}

// x as planes: one for every channel and phase, or copies for every channel and tap.
inline void pack_planes(const TilePlan& plan, const Source& x, int64_t stride,
                        const TileBuffers& to) {
  const PhasePlan& grid = plan.grid;
  int64_t plane = 0, copies = 0;
  for (const Phase& phase : grid.phases) {
    for (int64_t c = 0; c < grid.inputs; c += kTileRows) {
      const int64_t rest = grid.inputs - c, width = rest < kTileRows ? rest : kTileRows;
      const float* rows[kTileRows];
      const bool in_place = pixel_rows(x.at(c * stride), stride, width, phase.runs, to.floats,
                                       grid.pixel_count, rows);
      for (int64_t r = 0; r < width; ++r) {
        if (in_place && r + 2 < width) prefetch_row(rows[r + 2], grid.pixel_count);
        split_row(rows[r], phase.cells, to.x_planes.at((plane + c + r) * plan.pitch));
      }
    }
    for (int64_t c = 0; c < grid.inputs && plan.pairs; ++c)
      for (int64_t shift : phase.shifts) {
        const Split from = to.x_planes.at((plane + c) * plan.pitch + shift);
        const Split copy = to.x.at(copies++ * plan.pitch);
        std::memcpy(copy.high, from.high, plan.depth * sizeof(uint16_t));
        if (!plan.x_exact) std::memcpy(copy.low, from.low, plan.depth * sizeof(uint16_t));
      }
    plane += plan.channel_rows();
  }
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
      clear_tiles();
      multiply(o, depth);
      start == 0 ? write_tiles(partial) : add_tiles(partial);
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
