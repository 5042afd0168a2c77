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
  float *d, *x, *planes, *partial, *bias;

  DirectBuffers(const DirectPlan& plan, Arena& arena) {
    const int64_t x_lanes = plan.pairs ? plan.x_vectors * plan.d_positions * kLanes
                                       : blocks_of_lanes(plan.inputs) * plan.x_positions * kLanes;
    d = arena.take(plan.d_vectors * plan.d_positions * kLanes);
    x = arena.take(x_lanes);
    planes = arena.take(plan.pairs ? plan.inputs * plan.x_positions : 0);
    partial =
        arena.take(plan.blocks.size() > 1 ? (plan.outputs + kRows) * plan.x_vectors * kLanes : 0);
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
    pack_row(x.at(plan.x_lanes[i]), b.x, to.planes + i * b.x_positions);
  const Source planes{reinterpret_cast<const char*>(to.planes), Dtype::float32};
  pack_lanes(planes, b.pairs.data(), static_cast<int64_t>(b.pairs.size()), b.corners, to.x);
}

// Squared norm of one group's gradient.
//
// Loop order: a group of columns of x stays put while all rows of d pass by it.
inline double direct_group(const DirectPlan& plan, const Source& d, const Source& x,
                           const DirectBuffers& buffers) {
  double total = 0;
  for (const Block& b : plan.blocks) {
    pack_block(plan, b, d, x, buffers);
    const bool first = &b == &plan.blocks.front(), last = &b == &plan.blocks.back();
    float* partial = buffers.partial;
    column_groups(plan.x_vectors, [&](int64_t column, auto width) {
      constexpr int kWidth = decltype(width)::value;
      for (int64_t p = 0; p < plan.outputs; p += kRows) {
        const float* rows = buffers.d + p / kLanes * b.d_positions * kLanes + p % kLanes;
        Tile<kWidth> tile;
        tile.clear();
        tile.accumulate(rows, buffers.x, b.columns.data() + column, {b.count, b.step});
        if (!first) tile.add(partial);
        last ? void(total += tile.squared()) : tile.write(partial);
        partial += kRows * kWidth * kLanes;
      }
    });
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
