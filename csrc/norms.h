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

// Short rows leave most time to sums across lanes: here those of kLanes rows are done at once.
// Adds Σ_c (rstd_c Σ_t d (x − mean_c))² and Σ_c (Σ_t d)² of kLanes adjacent rows of floats, and
// writes to = scale_c · d where there is a `to`.
template <bool Scales>
inline void add_short_rows(const float* x, const float* d, int64_t count, const float* mean,
                           const float* rstd, const float* scale, float* to, Moments* total) {
  Vector dx[kLanes], sums[kLanes];
  for (int c = 0; c < kLanes; ++c) {
    const Vector centre = broadcast(mean[c]), factor = broadcast(Scales ? scale[c] : 0.0f);
    dx[c] = sums[c] = Vector{};
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t at = c * count + i, rest = count - i;
      const Vector v = rest < kLanes ? load_first(d + at, rest) : load(d + at);
      const Vector w = rest < kLanes ? load_first(x + at, rest) : load(x + at);
      sums[c] += v;
      dx[c] += v * (w - centre);
      if constexpr (Scales)
        rest < kLanes ? store_first(to + at, v * factor, rest) : store(to + at, v * factor);
    }
  }
  transpose(dx);
  transpose(sums);
  for (int c = 1; c < kLanes; ++c) {
    dx[0] += dx[c];
    sums[0] += sums[c];
  }
  float lanes[2 * kLanes];
  store(lanes, dx[0] * load(rstd));
  store(lanes + kLanes, sums[0]);
  total->dx += squares(lanes, kLanes);
  total->d += squares(lanes + kLanes, kLanes);
}

constexpr int64_t kShortRow = 8 * kLanes;

inline bool dense_rows(const Tensor& t) {
  return t.dtype == Dtype::float32 && t.stride[2] == 1 && t.stride[1] == t.size[2];
}

// to[i] = factor[i] · d[i] over one row; a step of 0 has one factor for all of it.
inline void scale_row(const Source& d, int64_t d_stride, const float* factor, int64_t factor_step,
                      int64_t count, const Sink& to) {
  float buffer[kPiece];
  for (int64_t i = 0; i < count; i += kPiece) {
    const int64_t n = count - i < kPiece ? count - i : kPiece;
    const float* row = row_of(d.at(i * d_stride), d_stride, n, buffer);
    for (int64_t j = 0; j < n; j += kLanes) {
      const int64_t rest = n - j < kLanes ? n - j : kLanes;
      const bool full = rest == kLanes;
      const float* f = factor + (i + j) * factor_step;
      const Vector scale = factor_step == 0 ? broadcast(*f) : full ? load(f) : load_first(f, rest);
      to.at(i + j).put(scale * (full ? load(row + j) : load_first(row + j, rest)), rest);
    }
  }
}

// to = scale_c · d for channels c from `first` on: what flows on through a batch norm layer. Rows
// of `to` are adjacent numbers along the channels or along the positions.
inline void scale_channels(const Tensor& d, int64_t n, int64_t first, int64_t count,
                           const float* scale, const Tensor& to) {
  const Source from = d.sample(n);
  const Sink sink = sink_of(to, n);
  if (to.stride[2] == 1) {
    for (int64_t c = first; c < first + count; ++c)
      scale_row(from.at(c * d.stride[1]), d.stride[2], scale + c, 0, d.size[2],
                sink.at(c * to.stride[1]));
    return;
  }
  for (int64_t t = 0; t < d.size[2]; ++t)
    scale_row(from.at(t * d.stride[2] + first * d.stride[1]), d.stride[1], scale + first, 1, count,
              sink.at(t * to.stride[2] + first));
}

// x and d are [N, C, T]; mean, rstd and scale [C]. Also writes to = scale_c · d, where there is a
// `to`, while d is still in the L1 or L2 cache.
bool batch_norm(const Tensor& x, const Tensor& d, const float* mean, const float* rstd,
                const float* scale, const Tensor& to, Result result, int64_t threads) {
  const int64_t channels = x.size[1], positions = x.size[2];
  const bool channels_last = x.stride[1] == 1 && d.stride[1] == 1 && channels > 1;
  const bool dense = dense_rows(x) && dense_rows(d);
  return for_each_sample(x.size[0], threads, 0, [&](int64_t n, float*) {
    auto pass_on = [&](int64_t first, int64_t count) {
      if (to.data != nullptr) scale_channels(d, n, first, count, scale, to);
    };
    const bool by_rows = to.stride[2] == 1;
    if (!by_rows) pass_on(0, channels);
    if (channels_last) {
      const View xs = view_of(x, n, true), ds = view_of(d, n, true);
      return finish(column_squares(xs, ds, positions, channels, mean, rstd, false), result, n);
    }
    Moments total{0, 0};
    int64_t c = 0;
    const float* x_rows = reinterpret_cast<const float*>(x.sample(n).data);
    const float* d_rows = reinterpret_cast<const float*>(d.sample(n).data);
    for (; dense && positions <= kShortRow && c + kLanes <= channels; c += kLanes) {
      auto add = [&](auto scales, float* rows) {
        add_short_rows<decltype(scales)::value>(x_rows + c * positions, d_rows + c * positions,
                                                positions, mean + c, rstd + c, scale + c, rows,
                                                &total);
      };
      if (dense_rows(to) && to.data != nullptr) {
        add(std::true_type(), reinterpret_cast<float*>(sink_of(to, n).data) + c * positions);
      } else {
        add(std::false_type(), nullptr);
        if (by_rows) pass_on(c, kLanes);
      }
    }
    for (; c < channels; ++c) {
      if (dense && c + 1 < channels) {
        prefetch_row(x_rows + (c + 1) * positions, positions);
        prefetch_row(d_rows + (c + 1) * positions, positions);
      }
      const Moments m = moments(x.sample(n).at(c * x.stride[1]), x.stride[2],
                                d.sample(n).at(c * d.stride[1]), d.stride[2], mean[c], positions);
      total.dx += m.dx * rstd[c] * m.dx * rstd[c];
      total.d += m.d * m.d;
      if (by_rows) pass_on(c, 1);
    }
    finish(total, result, n);
  });
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
