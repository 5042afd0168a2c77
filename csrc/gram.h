// The same norms from inner products between positions: Σ_{t,s} (x_t·x_s)(d_t·d_s), which never
// forms the gradient. Upper triangles only.
//
// Convolutions: Σ_{t,s} D[t,s] Σ_δ X[t+δ, s+δ] with pixel Grams X = xᵀx and D = dᵀd, one X for each
// phase of the stride. (Σ_phase S² C + T² P) / 2 + T² taps / 2 multiply-adds a sample.
#pragma once

#include "pack.h"
#include "parallel.h"
#include "tile.h"

namespace gradood {
namespace {

// Calls visit(tile, row, column vector) for the tiles of the upper triangle of aᵀa; `a` holds
// `count` positions in lanes, `depth` vectors each block of them.
//
// Loop order: a group of columns stays in L1 while the rows above the diagonal pass by it.
template <int Columns>
GRADOOD_INLINE void gram_tile(const float* a, int64_t depth, int64_t row, int64_t column,
                              Tile<Columns>& tile) {
  int64_t columns[Columns];
  for (int c = 0; c < Columns; ++c) columns[c] = (column + c) * depth;
  const int64_t count[3] = {1, 1, depth}, step[3] = {0, 0, 1};
  tile.clear();
  tile.accumulate(a + row / kLanes * depth * kLanes + row % kLanes, a, columns, {count, step});
}

template <class Visit>
GRADOOD_INLINE void upper_tiles(int64_t count, Visit visit) {
  column_groups(blocks_of_lanes(count), [&](int64_t column, auto width) {
    constexpr int kWidth = decltype(width)::value;
    const int64_t end = (column + kWidth) * kLanes;
    for (int64_t row = 0; row < end && row < count; row += kRows) visit(row, column, width);
  });
}

// 2 above the diagonal, 1 on it, 0 below: what an entry of a symmetric matrix counts.
GRADOOD_INLINE Vector symmetric_weight(int64_t row, int64_t first_column) {
  Vector weight;
  for (int i = 0; i < kLanes; ++i) {
    const int64_t column = first_column + i;
    weight[i] = column > row ? 2.0f : column == row ? 1.0f : 0.0f;
  }
  return weight;
}

// Σ_{t,s} (x_t·x_s)(d_t·d_s) for one token or pixel a position.
//
// L1: one tile of inner products of x while that of d is formed in registers.
inline double gram_product(const float* x, int64_t inputs, const float* d, int64_t outputs,
                           int64_t count) {
  double total = 0;
  upper_tiles(count, [&](int64_t row, int64_t column, auto width) {
    constexpr int kWidth = decltype(width)::value;
    alignas(64) float of_x[kRows * kWidth * kLanes];
    Tile<kWidth> tile;
    gram_tile(x, inputs, row, column, tile);
    tile.write(of_x);
    gram_tile(d, outputs, row, column, tile);
    Vector product = {};
    const bool above = row + kRows <= column * kLanes;
    tile.each([&](Vector& v, int i) {
      const Vector both = v * load(of_x + i * kLanes);
      const int64_t first = (column + i % kWidth) * kLanes;
      product += above ? both + both : both * symmetric_weight(row + i / kWidth, first);
    });
    total += add_lanes(product);
  });
  return total;
}

// Stores the upper triangle of aᵀa on the grid, to[cell · pitch + other cell]; with weights, what a
// pair of different cells counts twice is doubled.
inline void gram_on_grid(const float* a, int64_t depth, int64_t count, const Stretches& cells,
                         float* square, int64_t pitch, bool weighted, float* to) {
  const int64_t width = blocks_of_lanes(count) * kLanes;
  upper_tiles(count, [&](int64_t row, int64_t column, auto columns) {
    constexpr int kWidth = decltype(columns)::value;
    Tile<kWidth> tile;
    gram_tile(a, depth, row, column, tile);
    tile.each([&](Vector& v, int i) {
      const int64_t first = (column + i % kWidth) * kLanes;
      if (weighted)
        v = row + kRows <= first ? v + v : v * symmetric_weight(row + i / kWidth, first);
      store(square + (row + i / kWidth) * width + first, v);
    });
  });
  for (size_t i = 0; i < cells.size(); ++i)
    for (int64_t r = 0; r < cells[i].count; ++r)
      for (size_t j = i; j < cells.size(); ++j)
        copy_floats(square + (cells[i].pixel + r) * width + cells[j].pixel, cells[j].count,
                    to + (cells[i].cell + r) * pitch + cells[j].cell);
}

// Σ_{t ≤ s} D[t, s] Σ_shift X[t + shift, s + shift] over the cells of the grid.
//
// Registers: one vector of sums. L1: a row of D and the rows of X under its taps.
inline double shifted_product(const PhasePlan& plan, const Phase& phase, const float* x_grid,
                              const float* d_grid, int64_t pitch) {
  double total = 0;
  for (const Stretch& s : plan.d_cells)
    for (int64_t cell = s.cell; cell < s.cell + s.count; ++cell) {
      Vector product = {};
      for (int64_t j = cell; j < plan.output_end; j += kLanes) {
        Vector shifted = {};
        for (int64_t shift : phase.shifts)
          shifted += load(x_grid + (cell + shift) * pitch + j + shift);
        product += shifted * load(d_grid + cell * pitch + j);
      }
      total += add_lanes(product);
    }
  return total;
}

struct GramBuffers {
  float *d, *x, *square, *d_grid, *x_grid;
  int64_t pitch;

  GramBuffers(const PhasePlan& plan, bool plain, Arena& arena) {
    const int64_t outputs = blocks_of_lanes(plan.output_count) * kLanes;
    const int64_t pixels = blocks_of_lanes(plan.pixel_count) * kLanes;
    d = arena.take(outputs * plan.outputs);
    x = arena.take(pixels * plan.inputs);
    const int64_t larger = outputs > pixels ? outputs : pixels;
    pitch = plan.cells + kLanes;
    square = arena.take(plain ? 0 : (larger + kRows) * larger);
    d_grid = arena.take(plain ? 0 : plan.cells * pitch + kLanes);
    x_grid = arena.take(plain ? 0 : plan.cells * pitch + kLanes);
  }
};

// Makes the largest magnitude about one and returns the power of two that it divided by.
inline double normalise(float* a, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(a[i]));
  if (largest == 0 || !std::isfinite(largest)) return 1;
  const int exponent = std::ilogb(largest);
  for (int64_t i = 0; i < count; ++i) a[i] = std::scalbn(a[i], -exponent);
  return std::scalbn(1.0, exponent);
}

inline double gram_of_packed(const PhasePlan& plan, bool plain, const Phase& phase,
                             const GramBuffers& b) {
  if (plain) return gram_product(b.x, plan.inputs, b.d, plan.outputs, plan.output_count);
  const int64_t grid = (plan.cells * b.pitch + kLanes) * sizeof(float);
  std::memset(b.d_grid, 0, grid);
  std::memset(b.x_grid, 0, grid);
  gram_on_grid(b.d, plan.outputs, plan.output_count, plan.d_cells, b.square, b.pitch, true,
               b.d_grid);
  gram_on_grid(b.x, plan.inputs, static_cast<int64_t>(phase.pixels.size()), phase.cells, b.square,
               b.pitch, false, b.x_grid);
  return shifted_product(plan, phase, b.x_grid, b.d_grid, b.pitch);
}

// Σ_p (Σ_t d)² of d packed with positions in lanes.
inline double bias_of_packed(const float* d, int64_t depth, int64_t vectors) {
  double total = 0;
  for (int64_t p = 0; p < depth; ++p) {
    Vector row = {};
    for (int64_t v = 0; v < vectors; ++v) row += load(d + (v * depth + p) * kLanes);
    const double s = add_lanes(row);
    total += s * s;
  }
  return total;
}

inline double gram_group(const PhasePlan& plan, bool plain, const Source& d, const Source& x,
                         const GramBuffers& b, double* bias) {
  const int64_t d_vectors = blocks_of_lanes(plan.output_count);
  const int64_t d_count = d_vectors * kLanes * plan.outputs;
  pack_lanes(d, plan.d_pixels.data(), plan.output_count, plan.d_channels, b.d);
  if (bias != nullptr) *bias += bias_of_packed(b.d, plan.outputs, d_vectors);
  double total = 0, d_scale = 1;
  for (const Phase& phase : plan.phases) {
    const int64_t pixels = static_cast<int64_t>(phase.pixels.size());
    pack_lanes(x, phase.pixels.data(), pixels, plan.x_channels, b.x);
    double norm = gram_of_packed(plan, plain, phase, b);
    if (!(std::fabs(norm) >= 1e-30 && std::fabs(norm) <= 1e30)) {
      // Inner products may have left the range of a float although the norm does not.
      d_scale *= normalise(b.d, d_count);
      const double scale = normalise(b.x, blocks_of_lanes(pixels) * kLanes * plan.inputs);
      norm = gram_of_packed(plan, plain, phase, b) * scale * scale;
    }
    total += norm * d_scale * d_scale;
  }
  return total;
}

bool gram(const Convolution& c, Result result, int64_t threads) {
  const PhasePlan plan(c);
  const bool plain = c.taps() == 1 && c.padding[0] == 0 && c.padding[1] == 0 && c.padding[2] == 0;
  Arena size{nullptr};
  GramBuffers(plan, plain, size);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    const GramBuffers buffers(plan, plain, arena);
    double weight = 0, bias = 0;
    for (int64_t g = 0; g < c.groups; ++g)
      weight += gram_group(plan, plain, c.d.sample(n).at(g * plan.outputs * c.d.stride[1]),
                           c.x.sample(n).at(g * plan.inputs * c.x.stride[1]), buffers,
                           result.bias == nullptr ? nullptr : &bias);
    result.weight[n] = static_cast<float>(weight);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
  });
}

}  // namespace
}  // namespace gradood
