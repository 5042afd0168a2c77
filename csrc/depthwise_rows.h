// Depthwise convolutions of stride one over rows as long as a vector: lanes are neighbouring
// outputs of one channel, and taps of a row are loads from one number further on. Nothing is
// packed.
#pragma once

#include <algorithm>

#include "moments.h"

namespace gradood {
namespace {

// Rows of adjacent floats, `row` apart; channels `channel` apart.
struct Planes {
  int64_t height, width, channel, row;
};

struct RowsPlan {
  Planes d, x;  // x as far as outputs see it
  int64_t kernel[2], padding[2];
  int64_t multiplier;  // outputs an input channel

  explicit RowsPlan(const Convolution& c)
      : d{c.d.size[3], c.d.size[4], c.d.stride[1], c.d.stride[3]},
        x{c.x.size[3], c.x.size[4], c.x.stride[1], c.x.stride[3]},
        kernel{c.kernel[1], c.kernel[2]},
        padding{c.padding[1], c.padding[2]},
        multiplier(c.outputs()) {
    x.height = std::min(x.height, d.height + kernel[0] - 1 - padding[0]);
    x.width = std::min(x.width, d.width + kernel[1] - 1 - padding[1]);
  }

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t padded_taps() const { return blocks_of_lanes(taps()) * kLanes; }
  int64_t floats() const { return 2 * padded_taps() * kLanes; }

  static bool serves(const Convolution& c) {
    bool even = c.d.size[2] == 1 && c.kernel[0] == 1 && c.padding[0] == 0;
    for (int a = 1; a < 3; ++a) even = even && c.stride[a] == 1 && c.dilation[a] == 1;
    for (const Tensor* t : {&c.x, &c.d})
      even = even && t->dtype == Dtype::float32 && t->stride[4] == 1;
    const int64_t width = c.d.size[4], lanes = blocks_of_lanes(width) * kLanes;
    const bool rows = c.kernel[1] == 3 || c.kernel[1] == 5 || c.kernel[1] == 7;
    return even && rows && width >= 12 && 4 * width >= 3 * lanes && c.d.size[3] <= kLongestSum;
  }
};

// As many columns of a kernel of `Taps` rows at once as registers have room for sums, beside one
// vector of d for every row and one of x.
template <int Taps>
constexpr int kShifts = std::min(Taps, ((kLanes >= 16 ? 31 : 15) - Taps) / Taps);

// sums[tap] += Σ_i d[i][j …] x[i + tap row][j … + tap column] for `Shifts` columns of taps from
// `shift` on, over all rows i and one vector of outputs from j on.
//
// Registers: all sums, the rows of d that a row of x meets.
template <int Taps, int Shifts>
inline void accumulate_shifts(const RowsPlan& plan, const float* d, const float* x, int64_t j,
                              int64_t shift, float* sums) {
  const int64_t width = plan.d.width - j, begin = j + shift - plan.padding[1];
  const bool full = width >= kLanes;
  Lanes inside[Shifts];
  for (int s = 0; s < Shifts; ++s) inside[s] = lanes_between(-begin - s, plan.x.width - begin - s);
  Vector sum[Shifts][Taps] = {}, row[Taps] = {};
  auto next_row = [&](int64_t i) {
#pragma GCC unroll 8
    for (int a = Taps - 1; a > 0; --a) row[a] = row[a - 1];
    const float* at = d + i * plan.d.row + j;
    row[0] = i < 0 || i >= plan.d.height ? Vector{} : full ? load(at) : load_first(at, width);
  };
  for (int64_t i = plan.padding[0] - Taps + 1; i < plan.padding[0]; ++i) next_row(i);
  for (int64_t r = 0; r < plan.x.height; ++r) {
    next_row(r + plan.padding[0]);
    const float* at = x + r * plan.x.row + begin;
#pragma GCC unroll 8
    for (int s = 0; s < Shifts; ++s) {
      const Vector v = load_lanes(at + s, inside[s]);
#pragma GCC unroll 8
      for (int a = 0; a < Taps; ++a) sum[s][a] += v * row[a];
    }
  }
#pragma GCC unroll 8
  for (int s = 0; s < Shifts; ++s)
#pragma GCC unroll 8
    for (int a = 0; a < Taps; ++a) {
      float* to = sums + (s * Taps + a) * kLanes;
      store(to, load(to) + sum[s][a]);
    }
}

// Columns of taps from `shift` on, `Shifts` of them at once, then what is left.
template <int Taps, int Shifts>
inline void accumulate_columns(const RowsPlan& plan, const float* d, const float* x, int64_t shift,
                               float* sums) {
  for (; shift + Shifts <= plan.kernel[1]; shift += Shifts)
    for (int64_t j = 0; j < plan.d.width; j += kLanes)
      accumulate_shifts<Taps, Shifts>(plan, d, x, j, shift, sums + shift * Taps * kLanes);
  if constexpr (Shifts > 1)
    if (shift < plan.kernel[1]) accumulate_columns<Taps, Shifts - 1>(plan, d, x, shift, sums);
}

// Σ_t d of one channel.
inline double plane_sum(const Planes& d, const float* plane) {
  if (d.row == d.width) return moments_of_floats(plane, plane, 0, d.height * d.width).d;
  double sum = 0;
  for (int64_t i = 0; i < d.height; ++i)
    sum += moments_of_floats(plane + i * d.row, plane + i * d.row, 0, d.width).d;
  return sum;
}

// The gradient of one channel into lanes of `gradient`; `sums` holds a vector a tap.
inline void channel_gradient(const RowsPlan& plan, const float* d, const float* x, float* sums,
                             float* gradient) {
  const int64_t taps = plan.taps();
  std::memset(sums, 0, taps * kLanes * sizeof(float));
  if (plan.kernel[0] == 3) accumulate_columns<3, kShifts<3>>(plan, d, x, 0, sums);
  if (plan.kernel[0] == 5) accumulate_columns<5, kShifts<5>>(plan, d, x, 0, sums);
  if (plan.kernel[0] == 7) accumulate_columns<7, kShifts<7>>(plan, d, x, 0, sums);
  for (int64_t t = 0; t < taps; t += kLanes) {
    Vector rows[kLanes];
    for (int i = 0; i < kLanes; ++i)
      rows[i] = t + i < taps ? load(sums + (t + i) * kLanes) : Vector{};
    store(gradient + t, add_all_lanes(rows));
  }
}

// Squared norms of one sample's gradients; `memory` of as many floats as the plan says.
inline void depthwise_rows(const RowsPlan& plan, const Source& d, const Source& x, int64_t channels,
                           float* memory, double* weight, double* bias) {
  float *sums = memory, *gradients = memory + plan.padded_taps() * kLanes;
  for (int64_t p = 0; p < channels; p += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, channels - p);
    for (int64_t i = p; i < p + count; ++i) {
      const float* plane = reinterpret_cast<const float*>(d.at(i * plan.d.channel).data);
      const Source under = x.at(i / plan.multiplier * plan.x.channel);
      channel_gradient(plan, plane, reinterpret_cast<const float*>(under.data), sums,
                       gradients + (i - p) * plan.padded_taps());
      if (bias == nullptr) continue;
      const double sum = plane_sum(plan.d, plane);
      *bias += sum * sum;
    }
    *weight += squares(gradients, count * plan.padded_taps());
  }
}

}  // namespace
}  // namespace gradood
