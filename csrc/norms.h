// Norm layers: the gradient of scale and shift are sums of d · x̂ and of d. One pass over memory.
#pragma once

#include "columns.h"
#include "parallel.h"

namespace gradood {
namespace {

struct Statistics {
  float mean, rstd;
};

// Mean (zero for rms) and reciprocal root of the variance + eps over `rows` × `columns` numbers.
// Two passes; a third with scaled numbers where their squares leave the range of a float.
inline Statistics statistics(const View& x, int64_t rows, int64_t columns, double eps, bool rms,
                             float scale = 1) {
  float buffer[kPiece];
  double mean = 0, variance = 0;
  const double count = static_cast<double>(rows) * columns;
  for (int pass = rms ? 1 : 0; pass < 2; ++pass) {
    const Vector m = broadcast(static_cast<float>(mean)), s = broadcast(scale);
    double sums = 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < columns; i += kPiece) {
        const int64_t n = columns - i < kPiece ? columns - i : kPiece;
        const float* row =
            row_of(x.source.at(r * x.row_stride + i * x.column_stride), x.column_stride, n, buffer);
        Vector total[2] = {};
        float rest = 0;
        int64_t j = 0;
        for (; j + kLanes <= n; j += kLanes) {
          const Vector v = load(row + j) * s - m;
          total[j / kLanes % 2] += pass == 0 ? v : v * v;
        }
        for (; j < n; ++j) {
          const float v = row[j] * scale - static_cast<float>(mean);
          rest += pass == 0 ? v : v * v;
        }
        sums += static_cast<double>(add_lanes(total[0] + total[1])) + rest;
      }
    (pass == 0 ? mean : variance) = sums / count;
  }
  if (!std::isfinite(variance) && scale == 1)
    return statistics(x, rows, columns, eps, rms, 0x1p-70f);
  const double rstd = scale / std::sqrt(variance + eps * scale * scale);
  return {static_cast<float>(mean / scale), static_cast<float>(rstd)};
}

inline void finish(const Moments& m, Result result, int64_t n) {
  result.weight[n] = static_cast<float>(m.dx);
  result.bias[n] = static_cast<float>(m.d);
}

// x and d are [N, T, Q], normalised over Q.
bool layer_norm(const Tensor& x, const Tensor& d, double eps, bool rms, Result result,
                int64_t threads) {
  const int64_t rows = x.size[1], columns = x.size[2];
  const bool x_copy = x.stride[2] != 1, d_copy = d.stride[2] != 1;
  Arena size{nullptr};
  for (int64_t floats : {rows, rows, x_copy * rows * columns, d_copy * rows * columns})
    size.take(floats);
  return for_each_sample(x.size[0], threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    float *mean = arena.take(rows), *rstd = arena.take(rows);
    auto adjacent = [&](View v, bool copy) {
      if (!copy) return v;
      float* to = arena.take(rows * columns);
      for (int64_t q = 0; q < columns; ++q)  // the layout at hand has rows close together
        for (int64_t t = 0; t < rows; ++t)
          to[t * columns + q] = widen_one(v.source.at(t * v.row_stride + q * v.column_stride));
      return View{{reinterpret_cast<const char*>(to), Dtype::float32}, columns, 1};
    };
    const View xs = adjacent(view_of(x, n, false), x_copy);
    const View ds = adjacent(view_of(d, n, false), d_copy);
    for (int64_t t = 0; t < rows; ++t) {
      const View row{xs.source.at(t * xs.row_stride), 0, 1};
      const Statistics s = statistics(row, 1, columns, eps, rms);
      mean[t] = s.mean;
      rstd[t] = s.rstd;
    }
    finish(column_squares(xs, ds, rows, columns, mean, rstd, true), result, n);
  });
}

// x and d are [N, C, T], normalised over each group of channels.
bool group_norm(const Tensor& x, const Tensor& d, int64_t groups, double eps, Result result,
                int64_t threads) {
  const int64_t channels = x.size[1] / groups, positions = x.size[2];
  return for_each_sample(x.size[0], threads, 0, [&](int64_t n, float*) {
    Moments total{0, 0};
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * channels;
      const Statistics s =
          statistics({x.sample(n).at(first * x.stride[1]), x.stride[1], x.stride[2]}, channels,
                     positions, eps, false);
      for (int64_t c = first; c < first + channels; ++c) {
        const Moments m = moments(x.sample(n).at(c * x.stride[1]), x.stride[2],
                                  d.sample(n).at(c * d.stride[1]), d.stride[2], s.mean, positions);
        total.dx += m.dx * s.rstd * m.dx * s.rstd;
        total.d += m.d * m.d;
      }
    }
    finish(total, result, n);
  });
}

}  // namespace
}  // namespace gradood
