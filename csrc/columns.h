// Sums down the columns of rows of adjacent channels: of d, and of d · x̂.
#pragma once

#include "moments.h"

namespace gradood {
namespace {

// Σ_t d x̂ and Σ_t d of at most `kLanes · Vectors` adjacent channels into either half of `sums`,
// with x̂ = (x − centre) · factor; centre and factor belong to the channel, or to the position t if
// they are `by_position`. Without a centre, only the second half is meant.
//
// Registers: both sums of every channel. The rest streams.
template <int Vectors>
inline void sum_columns(const Source& x, int64_t x_stride, const Source& d, int64_t d_stride,
                        int64_t positions, int64_t width, const float* centre, const float* factor,
                        bool by_position, float* sums) {
  alignas(64) float x_buffer[kLanes * Vectors] = {}, d_buffer[kLanes * Vectors] = {};
  Vector dx[Vectors] = {}, total[Vectors] = {}, c[Vectors], f[Vectors];
  const bool full = width == kLanes * Vectors;
  for (int v = 0; v < Vectors && centre == nullptr; ++v) c[v] = f[v] = Vector{};
  for (int v = 0; v < Vectors && centre != nullptr && !by_position; ++v) {
    const int64_t rest = width - v * kLanes;
    c[v] = rest >= kLanes ? load(centre + v * kLanes) : load_first(centre + v * kLanes, rest);
    f[v] = rest >= kLanes ? load(factor + v * kLanes) : load_first(factor + v * kLanes, rest);
  }
  for (int64_t t = 0; t < positions; ++t) {
    const float* x_row = row_of(x.at(t * x_stride), 1, width, x_buffer);
    const float* d_row = row_of(d.at(t * d_stride), 1, width, d_buffer);
    if (!full && x_row != x_buffer) {
      std::memcpy(x_buffer, x_row, width * sizeof(float));
      x_row = x_buffer;
    }
    if (!full && d_row != d_buffer) {
      std::memcpy(d_buffer, d_row, width * sizeof(float));
      d_row = d_buffer;
    }
    for (int v = 0; v < Vectors; ++v) {
      const Vector w = load(d_row + v * kLanes);
      total[v] += w;
      if (by_position)
        dx[v] += w * ((load(x_row + v * kLanes) - broadcast(centre[t])) * broadcast(factor[t]));
      else
        dx[v] += w * (load(x_row + v * kLanes) - c[v]);
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    store(sums + v * kLanes, by_position ? dx[v] : dx[v] * f[v]);
    store(sums + (Vectors + v) * kLanes, total[v]);
  }
}

// Adds the squares of both sums.
template <int Vectors>
inline void add_columns(const Source& x, int64_t x_stride, const Source& d, int64_t d_stride,
                        int64_t positions, int64_t width, const float* centre, const float* factor,
                        bool by_position, double* weight, double* bias) {
  constexpr int kWidth = kLanes * Vectors;
  float sums[2 * kWidth];
  if (positions <= kLongestSum) {
    sum_columns<Vectors>(x, x_stride, d, d_stride, positions, width, centre, factor, by_position,
                         sums);
    *weight += squares(sums, width);
    *bias += squares(sums + kWidth, width);
    return;
  }
  double total[2 * kWidth] = {};
  for (int64_t t = 0; t < positions; t += kLongestSum) {
    const int64_t count = positions - t < kLongestSum ? positions - t : kLongestSum;
    const int64_t shift = by_position ? t : 0;
    sum_columns<Vectors>(x.at(t * x_stride), x_stride, d.at(t * d_stride), d_stride, count, width,
                         centre + shift, factor + shift, by_position, sums);
    for (int i = 0; i < 2 * kWidth; ++i) total[i] += sums[i];
  }
  for (int64_t i = 0; i < width; ++i) {
    *weight += total[i] * total[i];
    *bias += total[kWidth + i] * total[kWidth + i];
  }
}

struct View {
  Source source;
  int64_t row_stride, column_stride;
};

inline View view_of(const Tensor& t, int64_t n, bool transposed) {
  return {t.sample(n), t.stride[transposed ? 2 : 1], t.stride[transposed ? 1 : 2]};
}

// add_columns over all channels of one sample; x and d have channels in adjacent columns.
inline Moments column_squares(const View& x, const View& d, int64_t positions, int64_t channels,
                              const float* centre, const float* factor, bool by_position) {
  Moments total{0, 0};
  auto add = [&](auto vectors, int64_t c, int64_t width) {
    const int64_t shift = by_position || centre == nullptr ? 0 : c;
    add_columns<decltype(vectors)::value>(x.source.at(c), x.row_stride, d.source.at(c),
                                          d.row_stride, positions, width, centre + shift,
                                          factor + shift, by_position, &total.dx, &total.d);
  };
  int64_t c = 0;
  for (; c + 4 * kLanes <= channels; c += 4 * kLanes)
    add(std::integral_constant<int, 4>(), c, 4 * kLanes);
  for (; c < channels; c += kLanes)
    add(std::integral_constant<int, 1>(), c, channels - c < kLanes ? channels - c : kLanes);
  return total;
}

// Σ_p (Σ_t d)² over rows of positions.
inline double sum_squares(const View& d, int64_t rows, int64_t positions) {
  if (d.row_stride == 1 && rows > 1) {
    const View columns{d.source, d.column_stride, 1};
    return column_squares(columns, columns, positions, rows, nullptr, nullptr, false).d;
  }
  double total = 0;
  for (int64_t p = 0; p < rows; ++p) {
    const Source row = d.source.at(p * d.row_stride);
    const double s = moments(row, d.column_stride, row, d.column_stride, 0, positions).d;
    total += s * s;
  }
  return total;
}

}  // namespace
}  // namespace gradood
