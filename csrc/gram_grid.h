// What both Gram algorithms share: norms from inner products between positions,
// Σ_{t,s} (x_t·x_s)(d_t·d_s), which never form the gradient.
//
// Convolutions: Σ_{t,s} D[t,s] Σ_δ X[t+δ, s+δ] with pixel Grams X = xᵀx and D = dᵀd, one X for each
// phase of the stride: (Σ_phase S² C + T² P + T² taps) / 2 multiply-adds a sample.
#pragma once

#include "pack.h"
#include "parallel.h"
#include "tile_plan.h"

namespace gradood {
namespace {

// Σ_{t,s} (x_t·x_s)(d_t·d_s), and the part of it with t = s.
struct Products {
  double norm = 0, diagonal = 0;

  Products scaled(double factor) const { return {norm * factor, diagonal * factor}; }
  void operator+=(const Products& p) {
    norm += p.norm;
    diagonal += p.diagonal;
  }
};

inline Convolution sample_of(const Convolution& c, int64_t n) {
  Convolution one = c;
  static_cast<Source&>(one.x) = c.x.sample(n);
  static_cast<Source&>(one.d) = c.d.sample(n);
  one.x.size[0] = one.d.size[0] = 1;
  return one;
}

inline Result result_of(const Result& r, int64_t n) {
  return {r.weight + n, r.bias == nullptr ? nullptr : r.bias + n};
}

// What the gradients of single positions leave when they cancel is small beside the inner products,
// and so lost in their rounding: `Algorithm::kLeast` is the share of the diagonal below which the
// sample is done `Algorithm::again`, by a more accurate algorithm.
template <class Algorithm>
void write_norm(const Convolution& c, int64_t n, const Products& p, Result result) {
  result.weight[n] = static_cast<float>(p.norm);
  if (p.norm < Algorithm::kLeast * p.diagonal &&
      !Algorithm::again(sample_of(c, n), result_of(result, n), 1))
    result.weight[n] = NAN;  // there is no memory for it
}

constexpr int64_t kSquareUnit = 32;  // rows and columns of a Gram matrix are padded to this

struct GramBuffers {
  float *d, *x, *row;               // packed, positions in lanes; pixels of one channel
  float *square, *d_grid, *x_grid;  // a Gram matrix, and both spread out on the grid of cells
  int64_t pitch;                    // of a grid

  GramBuffers(const PhasePlan& plan, bool plain, Arena& arena) {
    const int64_t outputs = round_up(plan.output_count, kSquareUnit);
    const int64_t pixels = round_up(plan.pixel_count, kSquareUnit);
    const int64_t larger = outputs > pixels ? outputs : pixels;
    d = arena.take(outputs * plan.outputs);
    x = arena.take(pixels * plan.inputs);
    row = arena.take(larger);
    pitch = plan.cells + kLanes;
    square = arena.take(plain ? 0 : larger * larger);
    d_grid = arena.take(plain ? 0 : plan.cells * pitch + kLanes);
    x_grid = arena.take(plain ? 0 : plan.cells * pitch + kLanes);
  }
};

// Spreads the upper triangle of a Gram matrix of pixels over pairs of cells.
inline void to_grid(const float* square, int64_t count, const Stretches& cells, int64_t pitch,
                    float* grid) {
  const int64_t width = round_up(count, kSquareUnit);
  for (size_t i = 0; i < cells.size(); ++i)
    for (int64_t r = 0; r < cells[i].count; ++r)
      for (size_t j = i; j < cells.size(); ++j)
        copy_floats(square + (cells[i].pixel + r) * width + cells[j].pixel, cells[j].count,
                    grid + (cells[i].cell + r) * pitch + cells[j].cell);
}

// What the next sample reads, where its numbers lie without gaps: asked for part by part while this
// one's are multiplied.
struct NextSample {
  const char* data[2];
  int64_t bytes[2], parts, part = 0;

  NextSample(const Convolution& c, int64_t n, int64_t parts) : data{}, bytes{}, parts(parts) {
    if (n + 1 == c.samples()) return;
    for (const Tensor* t : {&c.d, &c.x}) {
      const int64_t numbers = t->size[1] * t->size[2] * t->size[3] * t->size[4];
      if (t->stride[0] != numbers) continue;
      const int i = t == &c.x;
      data[i] = t->sample(n + 1).data;
      bytes[i] = t->at(numbers).data - t->data;
    }
  }

  void ask() {
    for (int i = 0; i < 2; ++i) {
      const int64_t end = bytes[i] * (part + 1) / parts;
      for (int64_t at = bytes[i] * part / parts / 64 * 64; at < end; at += 64)
        __builtin_prefetch(data[i] + at, 0, 2);
    }
    ++part;
  }
};

// Σ_{t,s} D[t, s] Σ_shift X[t + shift, s + shift] over the cells of the grid, from upper triangles.
//
// Registers: one vector of sums. L1: a row of D and the rows of X under its taps.
inline Products shifted_product(const PhasePlan& plan, const Phase& phase, const float* x_grid,
                                const float* d_grid, int64_t pitch, NextSample& next) {
  Products total;
  for (const Stretch& s : plan.d_cells)
    for (int64_t cell = s.cell; cell < s.cell + s.count; ++cell) {
      next.ask();
      const float* d_row = d_grid + cell * pitch;
      const float* x_row = x_grid + cell * pitch;
      Vector product = {};
      for (int64_t j = cell; j < plan.output_end; j += kLanes) {
        Vector shifted = {};
        for (int64_t shift : phase.shifts) shifted += load(x_row + shift * (pitch + 1) + j);
        product += shifted * load(d_row + j);
      }
      double diagonal = 0;  // a pair of different cells counts twice
      for (int64_t shift : phase.shifts) diagonal += x_row[shift * (pitch + 1) + cell];
      diagonal *= d_row[cell];
      total += {2.0 * add_lanes(product) - diagonal, diagonal};
    }
  return total;
}

// Whether there is a number other than zero among whole vectors of them.
inline bool any_of(const float* a, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Words bits = load_as<Words>(a + i) << 1;  // −0 is none
    uint32_t found = 0;
    for (int lane = 0; lane < kLanes; ++lane) found |= bits[lane];
    if (found != 0) return true;
  }
  return false;
}

// Makes the largest magnitude about one and returns the power of two that it divided by.
inline double normalise(float* a, int64_t count) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::fmax(largest, std::fabs(a[i]));
  if (largest == 0 || !std::isfinite(largest)) return 1;
  const int exponent = std::ilogb(largest);
  for (int64_t i = 0; i < count; ++i) a[i] = std::scalbn(a[i], -exponent);
  return std::scalbn(1.0, exponent);
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

// Packs pixels at gaps into lanes one by one: faster than short runs of them.
inline void gather_pixels(const float* from, const Offsets& pixels, int64_t step, int64_t depth,
                          float* out) {
  const int64_t count = static_cast<int64_t>(pixels.size());
  for (int64_t p = 0; p < count; p += kLanes) {
    const int64_t width = count - p < kLanes ? count - p : kLanes;
    int64_t at[kLanes];
    for (int64_t lane = 0; lane < width; ++lane) at[lane] = pixels[p + lane];
    for (int64_t c = 0; c < depth; ++c, out += kLanes) {
      if (width < kLanes) store(out, Vector{});
      for (int64_t lane = 0; lane < width; ++lane) out[lane] = from[c * step + at[lane]];
    }
  }
}

constexpr int64_t kShortRun = 16;  // pixels on average

// Packs pixels into lanes, channels one after the other.
inline void pack_pixels(const Source& s, const Offsets& pixels, const Runs& runs,
                        const Runs& channels, float* row, float* out) {
  const Run& walk = channels[0];
  const int64_t count = static_cast<int64_t>(pixels.size()), depth = walk.count;
  if (walk.step == 1 || (runs.size() == 1 && runs[0].step == 1))
    return pack_lanes(s, pixels.data(), count, channels, out);
  if (s.dtype == Dtype::float32 && count < kShortRun * static_cast<int64_t>(runs.size()))
    return gather_pixels(reinterpret_cast<const float*>(s.data), pixels, walk.step, depth, out);
  // Pixels are brought together first.
  std::memset(row, 0, round_up(count, kLanes) * sizeof(float));
  for (int64_t c = 0; c < depth; ++c) {
    pack_row(s.at(c * walk.step), runs, row);
    for (int64_t v = 0; v < blocks_of_lanes(count); ++v)
      store(out + (v * depth + c) * kLanes, load(row + v * kLanes));
  }
}

// One group's products. `Algorithm` multiplies the packed positions:
//   product(x, inputs, d, outputs, count)   of a kernel of size one
//   square(of_d, a, depth, count, to)       the upper triangle of aᵀa, rows padded to kSquareUnit
template <class Algorithm>
Products gram_group(const PhasePlan& plan, bool plain, const Algorithm& algorithm, const Source& d,
                    const Source& x, const GramBuffers& b, NextSample& next, double* bias) {
  const int64_t d_vectors = blocks_of_lanes(plan.output_count);
  pack_pixels(d, plan.d_pixels, plan.d_runs, plan.d_channels, b.row, b.d);
  if (bias != nullptr) *bias += bias_of_packed(b.d, plan.outputs, d_vectors);
  Products total;
  double d_scale = 1;
  bool d_on_grid = plain;
  for (const Phase& phase : plan.phases) {
    const int64_t pixels = static_cast<int64_t>(phase.pixels.size());
    pack_pixels(x, phase.pixels, phase.runs, plan.x_channels, b.row, b.x);
    if (!plain && plan.phases.size() > 1)  // else it holds zeros, or the last sample's numbers
      std::memset(b.x_grid, 0, plan.cells * b.pitch * sizeof(float));
    auto products_of_packed = [&] {
      if (plain) return algorithm.product(b.x, plan.inputs, b.d, plan.outputs, plan.output_count);
      if (!d_on_grid) {
        algorithm.square(true, b.d, plan.outputs, plan.output_count, b.square);
        to_grid(b.square, plan.output_count, plan.d_cells, b.pitch, b.d_grid);
        d_on_grid = true;
      }
      algorithm.square(false, b.x, plan.inputs, pixels, b.square);
      to_grid(b.square, pixels, phase.cells, b.pitch, b.x_grid);
      return shifted_product(plan, phase, b.x_grid, b.d_grid, b.pitch, next);
    };
    Products products = products_of_packed();
    const bool in_range = std::fabs(products.norm) >= 1e-30 && std::fabs(products.norm) <= 1e30;
    if (!in_range && (products.norm != 0 || any_of(b.d, d_vectors * kLanes * plan.outputs))) {
      // Inner products may have left the range of a float although the norm does not.
      d_scale *= normalise(b.d, d_vectors * kLanes * plan.outputs);
      d_on_grid = plain;
      const double scale = normalise(b.x, blocks_of_lanes(pixels) * kLanes * plan.inputs);
      products = products_of_packed().scaled(scale * scale);
    }
    total += products.scaled(d_scale * d_scale);
  }
  return total;
}

// A matrix product of pixels: a kernel of size one and no padding.
inline bool is_plain(const Convolution& c) {
  return c.taps() == 1 && c.padding[0] == 0 && c.padding[1] == 0 && c.padding[2] == 0;
}

template <class Algorithm>
bool gram_of(const Convolution& c, Result result, int64_t threads) {
  const PhasePlan plan(c);
  const bool plain = is_plain(c);
  Arena size{nullptr};
  GramBuffers(plan, plain, size);
  Algorithm(c, plan, size);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    const GramBuffers buffers(plan, plain, arena);
    const Algorithm algorithm(c, plan, arena);
    const int64_t parts = c.groups * static_cast<int64_t>(plan.phases.size());
    NextSample next(c, n, parts * plan.output_count);
    Products weight;
    double bias = 0;
    for (int64_t g = 0; g < c.groups; ++g)
      weight +=
          gram_group(plan, plain, algorithm, c.d.sample(n).at(g * plan.outputs * c.d.stride[1]),
                     c.x.sample(n).at(g * plan.inputs * c.x.stride[1]), buffers, next,
                     result.bias == nullptr ? nullptr : &bias);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
    write_norm<Algorithm>(c, n, weight, result);
  });
}

}  // namespace
}  // namespace gradood
