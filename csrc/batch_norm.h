// Batch norm with fixed statistics: sums of d · x̂ and of d, and the gradient that flows on. One
// pass over memory.
#pragma once

#include "norms.h"

namespace gradood {
namespace {

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

// Lane l of the result is lane first + l / Count.
template <int Count, int First, int... L>
GRADOOD_INLINE Vector repeat_lanes(Vector v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, (First + L / Count)...);
}

// Lane l of the result is the lane of the row whose sum `add_tiny_rows` leaves in lane l: bits of l
// below Count tell the vector, and the others the row in it.
template <int Count, int... L>
GRADOOD_INLINE Vector order_of_sums(Vector v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, (L % Count * (kLanes / Count) + L / Count)...);
}

// Adds up groups of Count lanes of Count vectors.
template <int Count, int S = 1>
GRADOOD_INLINE Vector add_groups(Vector (&v)[Count]) {
#pragma GCC unroll 8
  for (int i = 0; i + S < Count; i += 2 * S) {
    exchange<S>(v[i], v[i + S], std::make_integer_sequence<int, kLanes>());
    v[i] += v[i + S];
  }
  if constexpr (2 * S < Count) return add_groups<Count, 2 * S>(v);
  return v[0];
}

// As `add_short_rows`, for rows of which several make a vector.
template <bool Scales, int Count, int... I>
inline void add_tiny_rows(const float* x, const float* d, const float* mean, const float* rstd,
                          const float* scale, float* to, Moments* total,
                          std::integer_sequence<int, I...>) {
  constexpr auto kAll = std::make_integer_sequence<int, kLanes>();
  constexpr int kRowsOf = kLanes / Count;
  const Vector centre = load(mean), factor = Scales ? load(scale) : Vector{};
  Vector sums[Count] = {load(d + I * kLanes)...}, dx[Count];
  if constexpr (Scales)
    (store(to + I * kLanes, sums[I] * repeat_lanes<Count, I * kRowsOf>(factor, kAll)), ...);
  ((dx[I] = sums[I] * (load(x + I * kLanes) - repeat_lanes<Count, I * kRowsOf>(centre, kAll))),
   ...);
  float lanes[2 * kLanes];
  store(lanes, add_groups(dx) * order_of_sums<Count>(load(rstd), kAll));
  store(lanes + kLanes, add_groups(sums));
  total->dx += squares(lanes, kLanes);
  total->d += squares(lanes + kLanes, kLanes);
}

// Rows of any length up to kShortRow, each kind as it is done fastest.
template <bool Scales>
inline void add_rows(const float* x, const float* d, int64_t count, const float* mean,
                     const float* rstd, const float* scale, float* to, Moments* total) {
  auto tiny = [&](auto width) {
    constexpr int kCount = decltype(width)::value;
    add_tiny_rows<Scales, kCount>(x, d, mean, rstd, scale, to, total,
                                  std::make_integer_sequence<int, kCount>());
  };
  if (count == 2) return tiny(std::integral_constant<int, 2>());
  if (count == 4) return tiny(std::integral_constant<int, 4>());
  if constexpr (kLanes > 8)
    if (count == 8) return tiny(std::integral_constant<int, 8>());
  add_short_rows<Scales>(x, d, count, mean, rstd, scale, to, total);
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
        add_rows<decltype(scales)::value>(x_rows + c * positions, d_rows + c * positions, positions,
                                          mean + c, rstd + c, scale + c, rows, &total);
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

}  // namespace
}  // namespace gradood
