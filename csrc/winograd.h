// The gradients of 3 × 3 kernels of stride one by Winograd's algorithm F(3 × 3, 4 × 4): tiles of
// d and the windows of x that they see are transformed, multiplied number by number and summed over
// tiles, and the sums transformed back. Lavin and Gray, arXiv:1509.09308, of which this is the
// transposed kind: https://arxiv.org/abs/1509.09308.
//
// 36 multiply-adds a tile of 16 outputs and pair of channels, in place of 144.
#pragma once

#include "pack.h"
#include "parallel.h"
#include "tile.h"

namespace gradood {
namespace {

constexpr int kWindow = WinogradPlan::kWindow, kSide = WinogradPlan::kTile;
constexpr int64_t kProducts = WinogradPlan::kProducts;

// Polynomials through the points 0, 1, −1, 2, −2 and ∞. The values of d's:
GRADOOD_INLINE void transform_d(const Vector (&b)[kSide], Vector (&to)[kWindow]) {
  const Vector even = b[0] + b[2], odd = b[1] + b[3];
  const Vector far_even = b[0] + 4 * b[2], far_odd = b[1] + 4 * b[3];
  to[0] = b[0];
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = far_even + 2 * far_odd;
  to[4] = far_even - 2 * far_odd;
  to[5] = b[3];
}

// What the transposed interpolation makes of x, but for the factors in `transform_sums`:
GRADOOD_INLINE void transform_x(const Vector (&a)[kWindow], Vector (&to)[kWindow]) {
  const Vector even = a[4] - 4 * a[2], odd = a[3] - 4 * a[1];
  const Vector near_even = a[4] - a[2], near_odd = a[3] - a[1];
  to[0] = 4 * a[0] + (a[4] - 5 * a[2]);
  to[1] = even + odd;
  to[2] = even - odd;
  to[3] = near_even + 2 * near_odd;
  to[4] = near_even - 2 * near_odd;
  to[5] = 4 * a[1] + (a[5] - 5 * a[3]);
}

// And the three taps that the sums of products stand for:
GRADOOD_INLINE void transform_sums(const Vector (&m)[kWindow], Vector (&to)[3]) {
  const Vector even = (m[1] + m[2]) * (-1 / 6.0f), far_even = (m[3] + m[4]) * (1 / 24.0f);
  const Vector odd = (m[1] - m[2]) * (-1 / 6.0f), far_odd = (m[3] - m[4]) * (1 / 12.0f);
  to[0] = m[0] * 0.25f + even + far_even;
  to[1] = odd + far_odd;
  to[2] = even + 4 * far_even + m[5];
}

// to[i · Out + j] of From × From numbers, down the columns and then along the rows.
template <int From, int Out, class Transform, class Read, class Write>
GRADOOD_INLINE void transform_square(Transform transform, Read read, Write write) {
  Vector half[Out][From];
#pragma GCC unroll 8
  for (int j = 0; j < From; ++j) {
    Vector column[From], to[Out];
#pragma GCC unroll 8
    for (int i = 0; i < From; ++i) column[i] = read(i, j);
    transform(column, to);
#pragma GCC unroll 8
    for (int i = 0; i < Out; ++i) half[i][j] = to[i];
  }
#pragma GCC unroll 8
  for (int i = 0; i < Out; ++i) {
    Vector to[Out];
    transform(half[i], to);
#pragma GCC unroll 8
    for (int j = 0; j < Out; ++j) write(i, j, to[j]);
  }
}

struct WinogradBuffers {
  float *d_pixels, *x_pixels, *d, *x, *sums, *partial, *bias;
  int64_t pitch;  // vectors from one product to the next, odd: they do not compete for cache sets

  WinogradBuffers(const WinogradPlan& plan, Arena& arena) : pitch(plan.tiles | 1) {
    d_pixels = arena.take(plan.positions * kLanes);
    x_pixels = arena.take(plan.positions * kLanes);
    d = arena.take(plan.d_vectors * kProducts * pitch * kLanes);
    x = arena.take(plan.x_vectors * kProducts * pitch * kLanes);
    sums = arena.take(kProducts * 2 * kRows * kColumns * kLanes);
    const int64_t rows = (plan.outputs + kLanes) * plan.x_vectors;
    partial = arena.take(plan.strips.size() > 1 ? 9 * rows * kLanes : 0);
    bias = arena.take(plan.d_vectors * kLanes);
  }
};

// Transforms every tile of one vector of channels of a strip: windows of From × From pixels.
template <int From, class Transform>
inline void transform_tiles(const WinogradPlan& plan, int64_t rows, const float* pixels,
                            int64_t pitch, float* to, Transform transform) {
  const int64_t row = (plan.width * kSide + From - kSide) * kLanes;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < plan.width; ++j) {
      const float* from = pixels + i * kSide * row + j * kSide * kLanes;
      transform_square<From, kWindow>(
          transform, [=](int64_t a, int64_t b) { return load(from + a * row + b * kLanes); },
          [=](int64_t a, int64_t b, Vector v) {
            store(to + (a * kWindow + b) * pitch * kLanes, v);
          });
      to += kLanes;
    }
}

// Packs and transforms one strip, and adds d's sums to the bias where that is wanted.
inline void transform_strip(const WinogradPlan& plan, const WinogradPlan::Strip& strip,
                            const Source& d, const Source& x, bool bias, const WinogradBuffers& b) {
  auto width = [](int64_t channels, int64_t v) {
    return channels - v * kLanes < kLanes ? channels - v * kLanes : kLanes;
  };
  const int64_t step = kProducts * b.pitch * kLanes;
  if (plan.strips.size() > 1)  // each has its zeros elsewhere
    for (float* pixels : {b.d_pixels, b.x_pixels})
      std::memset(pixels, 0, plan.positions * kLanes * sizeof(float));
  for (int64_t v = 0; v < plan.d_vectors; ++v) {
    const int64_t* lanes = plan.d_lanes.data() + v * kLanes;
    pack_inside(d, lanes, width(plan.outputs, v), strip.d, b.d_pixels);
    if (bias)
      add_positions(b.d_pixels, strip.rows * plan.width * kSide * kSide, b.bias + v * kLanes);
    transform_tiles<kSide>(plan, strip.rows, b.d_pixels, b.pitch, b.d + v * step,
                           [](auto& from, auto& to) { transform_d(from, to); });
  }
  for (int64_t v = 0; v < plan.x_vectors; ++v) {
    const int64_t* lanes = plan.x_lanes.data() + v * kLanes;
    pack_inside(x, lanes, width(plan.inputs, v), strip.x, b.x_pixels);
    transform_tiles<kWindow>(plan, strip.rows, b.x_pixels, b.pitch, b.x + v * step,
                             [](auto& from, auto& to) { transform_x(from, to); });
  }
}

// Transforms `count` sums of each product back to nine taps, adds what `partial` holds unless it is
// the first strip, and writes it there, or returns the squares if it is the last.
inline double taps_of_sums(const float* sums, int64_t count, bool first, bool last,
                           float* partial) {
  Vector total = {};
  for (int64_t s = 0; s < count; ++s, sums += kLanes) {
    Vector square = {};
    transform_square<kWindow, 3>(
        [](auto& from, auto& to) { transform_sums(from, to); },
        [=](int64_t i, int64_t j) { return load(sums + (i * kWindow + j) * count * kLanes); },
        [&](int64_t i, int64_t j, Vector v) {
          float* at = partial + ((s * 3 + i) * 3 + j) * kLanes;
          if (!first) v += load(at);
          last ? void(square += v * v) : store(at, v);
        });
    total += square;
  }
  return add_lanes(total);
}

// What comes next in memory: a line of it is asked for with every tile that is multiplied.
struct UpcomingLines {
  const float* at[2];
  int64_t left[2];  // lines

  const float* take(int64_t lines, const float* otherwise) {
    for (int i = 0; i < 2; ++i)
      if (left[i] > 0) {
        const float* from = at[i];
        at[i] += 16 * lines;
        left[i] -= lines;
        return from;
      }
    return otherwise;
  }
};

// sum[r][c] += Σ_tile rows[tile][r] · lanes[c][tile], vectors c a number of floats apart.
template <int Columns, int Rows>
GRADOOD_INLINE void multiply_tiles(const float* rows, const float* lanes, int64_t apart,
                                   int64_t tiles, const float* next, Tile<Columns, Rows>& tile) {
  for (int64_t t = 0; t < tiles; ++t, rows += kLanes, lanes += kLanes) {
    Vector v[Columns];
    __builtin_prefetch(next + 16 * t);
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) v[c] = load(lanes + c * apart);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      Vector b = broadcast(rows[r]);
      hold_in_registers(b, v);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) tile.sum[r][c] += b * v[c];
    }
  }
}

inline double winograd_group(const WinogradPlan& plan, const Source& d, const Source& x, bool bias,
                             UpcomingLines next, const WinogradBuffers& b) {
  double total = 0;
  const int64_t step = kProducts * b.pitch;
  for (const WinogradPlan::Strip& strip : plan.strips) {
    transform_strip(plan, strip, d, x, bias, b);
    const bool first = &strip == &plan.strips.front(), last = &strip == &plan.strips.back();
    const int64_t tiles = strip.rows * plan.width;
    float* partial = b.partial;
    column_groups(plan.x_vectors, [&](int64_t column, auto width) {
      constexpr int kWidth = decltype(width)::value;
      constexpr int kTall = kWidth == 1 && 2 * kRows <= kLanes ? 2 * kRows : kRows;
      const float* lanes = b.x + column * step * kLanes;
      for (int64_t p = 0; p < plan.outputs; p += kTall) {
        const float* rows = b.d + p / kLanes * step * kLanes + p % kLanes;
        for (int64_t product = 0; product < kProducts; ++product) {
          const int64_t at = product * b.pitch * kLanes;
          Tile<kWidth, kTall> tile;
          tile.clear();
          multiply_tiles(rows + at, lanes + at, step * kLanes, tiles, next.take(tiles, rows + at),
                         tile);
          tile.write(b.sums + product * kTall * kWidth * kLanes);
        }
        total += taps_of_sums(b.sums, kTall * kWidth, first, last, partial);
        partial += 9 * kTall * kWidth * kLanes;
      }
    });
  }
  return total;
}

inline UpcomingLines upcoming_lines(const Convolution& c, int64_t n) {
  UpcomingLines next{};
  const Tensor* tensors[2] = {&c.x, &c.d};
  for (int i = 0; i < 2; ++i) {
    const Tensor& t = *tensors[i];
    const int64_t floats = t.size[1] * t.size[2] * t.size[3] * t.size[4];
    if (n >= t.size[0] || t.stride[0] != floats || t.dtype != Dtype::float32) continue;
    next.at[i] = reinterpret_cast<const float*>(t.sample(n).data);
    next.left[i] = floats / 16;
  }
  return next;
}

bool winograd(const Convolution& c, Result result, int64_t threads) {
  const WinogradPlan plan(c, kLanes, kBlockFloats);
  Arena size{nullptr};
  WinogradBuffers(plan, size);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    const WinogradBuffers buffers(plan, arena);
    double weight = 0, bias = 0;
    const UpcomingLines next = upcoming_lines(c, n + threads);
    for (int64_t g = 0; g < c.groups; ++g) {
      std::memset(buffers.bias, 0, plan.d_vectors * kLanes * sizeof(float));
      weight += winograd_group(plan, c.d.sample(n).at(g * plan.outputs * c.d.stride[1]),
                               c.x.sample(n).at(g * plan.inputs * c.x.stride[1]),
                               result.bias != nullptr, next, buffers);
      bias += squares(buffers.bias, plan.d_vectors * kLanes);
    }
    result.weight[n] = static_cast<float>(weight);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
  });
}

}  // namespace
}  // namespace gradood
