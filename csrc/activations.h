// What a layer makes of a sample: sums of its channels and of their squares. One pass over memory,
// two multiply-adds a number; one more where the layer is scale and shift, and makes it here.
#pragma once

#include "columns.h"
#include "parallel.h"

namespace gradood {
namespace {

// Σ y and Σ y² of at most `kLongestSum` adjacent floats, y = scale · a + shift, which is written.
GRADOOD_INLINE Moments affine_piece(const float* a, float scale, float shift, int64_t count,
                                    float* to) {
  const Vector f = broadcast(scale), s = broadcast(shift);
  Vector square[2] = {}, total[2] = {};
  for (int64_t i = 0; i < count; i += 2 * kLanes)
    for (int u = 0; u < 2; ++u) {
      const int64_t at = i + u * kLanes, rest = count - at;
      if (rest <= 0) break;
      Vector v = f * (rest < kLanes ? load_first(a + at, rest) : load(a + at)) + s;
      if (rest < kLanes) {
        store_first(to + at, v, rest);
        v = load_first(to + at, rest);  // zeros beyond
      } else {
        store(to + at, v);
      }
      total[u] += v;
      square[u] += v * v;
    }
  return {add_lanes(square[0] + square[1]), add_lanes(total[0] + total[1])};
}

// The same of any number of them.
inline Moments affine_row(const float* a, float scale, float shift, int64_t count, float* to) {
  Moments total{0, 0};
  for (int64_t i = 0; i < count; i += kLongestSum) {
    const int64_t n = count - i < kLongestSum ? count - i : kLongestSum;
    const Moments piece = affine_piece(a + i, scale, shift, n, to + i);
    total.dx += piece.dx;
    total.d += piece.d;
  }
  return total;
}

// Σ_t y² and Σ_t y into either half of `sums`, for at most `kLanes · Vectors` adjacent channels.
//
// Registers: both sums, scale and shift of every channel. The rest streams.
template <int Vectors>
inline void affine_columns(const float* a, int64_t stride, int64_t positions, int64_t width,
                           const float* scale, const float* shift, float* to, float* sums) {
  Vector square[Vectors] = {}, total[Vectors] = {}, f[Vectors], s[Vectors];
  auto rest = [&](int v) { return width - v * kLanes; };
  auto read = [&](const float* p, int v) {
    return rest(v) < kLanes ? load_first(p + v * kLanes, rest(v)) : load(p + v * kLanes);
  };
  for (int v = 0; v < Vectors; ++v) {
    f[v] = read(scale, v);
    s[v] = read(shift, v);
  }
  for (int64_t t = 0; t < positions; ++t)
    for (int v = 0; v < Vectors; ++v) {
      const Vector y = f[v] * read(a + t * stride, v) + s[v];
      float* at = to + t * stride + v * kLanes;
      rest(v) < kLanes ? store_first(at, y, rest(v)) : store(at, y);
      total[v] += y;
      square[v] += y * y;
    }
  for (int v = 0; v < Vectors; ++v) {
    store(sums + v * kLanes, square[v]);
    store(sums + (Vectors + v) * kLanes, total[v]);
  }
}

// The same over any number of positions, each sum where it belongs.
template <int Vectors>
inline void channel_block(const Source& a, int64_t stride, int64_t positions, int64_t width,
                          const float* scale, const float* shift, float* to, float* sums,
                          float* squares) {
  constexpr int kWidth = kLanes * Vectors;
  alignas(64) static constexpr float kZeros[kWidth] = {};
  alignas(64) float ones[kWidth], piece[2 * kWidth];
  for (float& one : ones) one = 1;
  double total[2 * kWidth] = {};
  for (int64_t t = 0; t < positions; t += kLongestSum) {
    const int64_t count = positions - t < kLongestSum ? positions - t : kLongestSum;
    const Source from = a.at(t * stride);
    if (to == nullptr)
      sum_columns<Vectors>(from, stride, from, stride, count, width, kZeros, ones, false, piece);
    else
      affine_columns<Vectors>(reinterpret_cast<const float*>(from.data), stride, count, width,
                              scale, shift, to + t * stride, piece);
    for (int i = 0; i < 2 * kWidth; ++i) total[i] += piece[i];
  }
  for (int64_t i = 0; i < width; ++i) {
    squares[i] = static_cast<float>(total[i]);
    sums[i] = static_cast<float>(total[kWidth + i]);
  }
}

// Σ_t y and Σ_t y², [N, 2, C], for a [N, C, T] and y = a; or for the batch norm y of a, which is
// written. That wants floats, dense along the positions or along the channels.
bool channel_sums(const Tensor& a, const BatchNorm& layer, float* result, int64_t threads) {
  const int64_t channels = a.size[1], positions = a.size[2];
  const bool made = layer.to != nullptr;
  Arena size{nullptr};
  for (int64_t floats : {channels, channels}) size.take(made ? floats : 0);
  return for_each_sample(a.size[0], threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    float *scale = arena.take(made ? channels : 0), *shift = arena.take(made ? channels : 0);
    for (int64_t c = 0; made && c < channels; ++c) {
      scale[c] = layer.scale(c);
      shift[c] = layer.shift(c, scale[c]);
    }
    const Source from = a.sample(n);
    float *sum = result + 2 * n * channels, *square = sum + channels;
    float* to = made ? layer.to + n * a.stride[0] : nullptr;
    int64_t c = 0;
    auto block = [&](auto vectors, int64_t width) {
      channel_block<decltype(vectors)::value>(from.at(c), a.stride[2], positions, width, scale + c,
                                              shift + c, made ? to + c : nullptr, sum + c,
                                              square + c);
    };
    if (a.stride[1] == 1 && channels > 1) {
      for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
        block(std::integral_constant<int, 4>(), 4 * kLanes);
      for (; c < channels; c += kLanes)
        block(std::integral_constant<int, 1>(), channels - c < kLanes ? channels - c : kLanes);
      return;
    }
    for (; c < channels; ++c) {
      const Source row = from.at(c * a.stride[1]);
      const Moments m = made ? affine_row(reinterpret_cast<const float*>(row.data), scale[c],
                                          shift[c], positions, to + c * a.stride[1])
                             : moments(row, a.stride[2], row, a.stride[2], 0, positions);
      square[c] = static_cast<float>(m.dx);
      sum[c] = static_cast<float>(m.d);
    }
  });
}

}  // namespace
}  // namespace gradood
