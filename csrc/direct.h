// ‖Σ_t d_t x_tᵀ‖² for linear layers and convolutions: the gradient is formed tile by tile in
// registers, squared there, and never stored (for images beyond L2 its partial sums are, in L2).
//
// P · Q · T multiply-adds a sample with Q = C · taps.
#pragma once

#include "product.h"
#include "sums.h"
#include "winograd.h"

namespace gradood {
namespace {

struct DirectBuffers {
  float *d, *x, *partial, *bias;

  DirectBuffers(const DirectPlan& plan, Arena& arena) {
    const int64_t inputs = plan.pairs ? plan.inputs : blocks_of_lanes(plan.inputs) * kLanes;
    const int64_t sums = plan.pairs ? plan.inputs * plan.taps * plan.d_vectors
                                    : (plan.outputs + kRows) * plan.x_vectors;
    d = arena.take(plan.d_vectors * plan.d_positions * kLanes);
    x = arena.take(inputs * plan.x_positions);
    partial = arena.take(plan.blocks.size() > 1 ? sums * kLanes : 0);
    bias = arena.take(plan.d_vectors * kLanes);
  }
};

// Packs one block of a group's d and x, and adds d's sums to the bias.
inline void pack_block(const DirectPlan& plan, const Block& b, const Source& d, const Source& x,
                       const DirectBuffers& to) {
  pack_lanes(d, plan.d_lanes.data(), plan.outputs, b.d, to.d);
  for (int64_t v = 0; v < plan.d_vectors; ++v)
    add_positions(to.d + v * b.d_positions * kLanes, b.d_positions, to.bias + v * kLanes);
  if (!plan.pairs) return pack_lanes(x, plan.x_lanes.data(), plan.inputs, b.x, to.x);
  for (int64_t i = 0; i < plan.inputs; ++i)
    pack_row(x.at(plan.x_lanes[i]), b.x, to.x + i * b.x_positions);
}

// sum[r][c] += Σ_t d[c][t] · planes[pairs[r] + corner of t].
//
// Registers: all sums, a row of vectors of d, one broadcast.
template <int Columns, int Rows>
GRADOOD_INLINE void accumulate_pairs(const float* planes, const int64_t* pairs, const Runs& corners,
                                     const float* d, int64_t pitch, Tile<Columns, Rows>& tile) {
  const float* row[Rows];
  for (int r = 0; r < Rows; ++r) row[r] = planes + pairs[r];
  for (const Run& run : corners)
    for (int64_t i = 0, at = run.offset; i < run.count; ++i, at += run.step, d += kLanes) {
      Vector v[Columns];
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) v[c] = load(d + c * pitch);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        Vector b = broadcast(row[r][at]);
        hold_in_registers(b, v);
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) tile.sum[r][c] += b * v[c];
      }
    }
}

// Calls each(vectors, rows, tile of sums) for the whole of a block's gradient.
//
// Loop order: a group of vectors of lanes stays put while all rows pass by it.
template <class Each>
inline void each_tile(const DirectPlan& plan, const Block& b, const DirectBuffers& buffers,
                      Each each) {
  const int64_t pitch = b.d_positions * kLanes;
  column_groups(plan.pairs ? plan.d_vectors : plan.x_vectors, [&](int64_t column, auto width) {
    constexpr int kWidth = decltype(width)::value;
    if (plan.pairs)
      return row_groups<kRows>(plan.inputs * plan.taps, [&](int64_t row, auto tall) {
        Tile<kWidth, decltype(tall)::value> tile;
        tile.clear();
        accumulate_pairs(buffers.x, b.pairs.data() + row, b.corners, buffers.d + column * pitch,
                         pitch, tile);
        each(tile);
      });
    for (int64_t p = 0; p < plan.outputs; p += kRows) {
      Tile<kWidth> tile;
      tile.clear();
      tile.accumulate(buffers.d + p / kLanes * pitch + p % kLanes, buffers.x,
                      b.columns.data() + column, {b.count, b.step});
      each(tile);
    }
  });
}

// Squared norm of one group's gradient.
inline double direct_group(const DirectPlan& plan, const Source& d, const Source& x,
                           const DirectBuffers& buffers) {
  double total = 0;
  for (const Block& b : plan.blocks) {
    pack_block(plan, b, d, x, buffers);
    ChunkSums sums{buffers.partial, &b == &plan.blocks.front(), &b == &plan.blocks.back()};
    each_tile(plan, b, buffers, [&](auto& tile) { sums.take(tile); });
    total += sums.total;
  }
  return total;
}

// A kernel of size one that sees one position: x and d as `outer` takes them.
inline Tensor as_row(Tensor t) {
  t.size[2] = t.size[1];
  t.stride[2] = t.stride[1];
  return t;
}

inline bool sees_one_position(const Convolution& c) {
  bool one = c.groups == 1;
  for (int a = 0; a < 3; ++a)
    one = one && c.d.size[2 + a] == 1 && c.kernel[a] == 1 && c.padding[a] == 0;
  return one;
}

bool direct(const Convolution& c, Result result, int64_t threads) {
  if (sees_one_position(c)) return outer(as_row(c.x), as_row(c.d), result, threads);
  if (WinogradPlan::pays(c, kLanes)) return winograd(c, result, threads);
  const DirectPlan plan(c, false, kLanes, kBlockFloats);
  const ProductPlan side_by_side(c, plan);
  if (side_by_side.form != ProductPlan::none) return product(c, side_by_side, result, threads);
  Arena size{nullptr};
  DirectBuffers(plan, size);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    const DirectBuffers buffers(plan, arena);
    double weight = 0, bias = 0;
    for (int64_t g = 0; g < c.groups; ++g) {
      std::memset(buffers.bias, 0, plan.d_vectors * kLanes * sizeof(float));
      weight += direct_group(plan, c.d.sample(n).at(g * plan.outputs * c.d.stride[1]),
                             c.x.sample(n).at(g * plan.inputs * c.x.stride[1]), buffers);
      bias += squares(buffers.bias, plan.d_vectors * kLanes);
    }
    result.weight[n] = static_cast<float>(weight);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
  });
}

}  // namespace
}  // namespace gradood
