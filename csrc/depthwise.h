// Convolutions with one input channel a group: Σ_{p,tap} (Σ_t d[p,t] x[p / multiplier, t + tap])².
//
// P · T · taps multiply-adds a sample, and each number is read once: bound by memory. Lanes are
// output channels, so that no sum crosses lanes and channels_last needs no transposition.
#pragma once

#include "depthwise_rows.h"
#include "parallel.h"

namespace gradood {
namespace {

// What the channels after these hold in memory: asked for on the way, as much of it as is being
// used up, since the hardware does not follow a transposition.
struct NextImages {
  const float *d, *x;
  int64_t x_part;  // numbers of x for each of d

  GRADOOD_INLINE void fetch(int64_t positions) {
    if (d == nullptr) return;
    prefetch_row(d, positions * kLanes);
    prefetch_row(x, positions * kLanes * x_part);
    d += positions * kLanes;
    x += positions * kLanes * x_part;
  }
};

// sums[tap] += Σ_t d[t] x[t + tap] for `Taps` taps.
//
// Registers: the sums and one vector of d. L1: the rows of x under the kernel.
template <int Taps>
inline void accumulate_taps(const Block& b, const float* d, const float* x, const int64_t* taps,
                            NextImages ahead, float* sums) {
  Vector sum[Taps];
  for (int t = 0; t < Taps; ++t) sum[t] = Vector{};
  for (int64_t i = 0; i < b.count[0]; ++i)
    for (int64_t j = 0; j < b.count[1]; ++j) {
      const float* row = x + (i * b.step[0] + j * b.step[1]) * kLanes;
      ahead.fetch(b.count[2]);
      for (int64_t k = 0; k < b.count[2]; ++k) {
        const Vector v = load(d);
#pragma GCC unroll 16
        for (int t = 0; t < Taps; ++t) sum[t] += v * load(row + taps[t] * kLanes);
        d += kLanes;
        row += b.step[2] * kLanes;
      }
    }
  for (int t = 0; t < Taps; ++t) store(sums + t * kLanes, load(sums + t * kLanes) + sum[t]);
}

struct DepthwiseBuffers {
  float *d, *x, *sums, *bias;

  DepthwiseBuffers(const DirectPlan& plan, int64_t taps, Arena& arena) {
    d = arena.take(plan.d_positions * kLanes);
    x = arena.take(plan.x_positions * kLanes);
    sums = arena.take(taps * kLanes);
    bias = arena.take(kLanes);
  }
};

inline bool dense_images(const Tensor& t) {
  return t.dtype == Dtype::float32 && t.stride[4] == 1 && t.stride[3] == t.size[4] &&
         t.stride[2] == t.size[3] * t.stride[3] && t.stride[1] == t.size[2] * t.stride[2];
}

// Of the channels from `first` on, where images lie one behind the other.
inline NextImages images_after(const Convolution& c, int64_t n, int64_t first) {
  constexpr int64_t kPage = 4096 / sizeof(float);  // larger images it does follow
  if (!dense_images(c.x) || !dense_images(c.d) || c.x.stride[1] >= kPage)
    return {nullptr, nullptr, 0};
  const Source d = c.d.sample(n).at(first * c.d.stride[1]);
  const Source x = c.x.sample(n).at(first / c.outputs() * c.x.stride[1]);
  return {reinterpret_cast<const float*>(d.data), reinterpret_cast<const float*>(x.data),
          (c.x.stride[1] + c.d.stride[1] - 1) / c.d.stride[1]};
}

// Adds the squared norms of the gradients of at most `kLanes` output channels.
inline void depthwise_lanes(const DirectPlan& plan, const Source& d, const Source& x, int64_t first,
                            int64_t width, NextImages ahead, const DepthwiseBuffers& to,
                            double* weight, double* bias) {
  const int64_t taps = static_cast<int64_t>(plan.blocks[0].taps.size());
  std::memset(to.sums, 0, taps * kLanes * sizeof(float));
  std::memset(to.bias, 0, kLanes * sizeof(float));
  for (const Block& b : plan.blocks) {
    pack_lanes(d, plan.d_lanes.data() + first, width, b.d, to.d);
    if (plan.blocks.size() > 1) std::memset(to.x, 0, b.x_positions * kLanes * sizeof(float));
    pack_inside(x, plan.x_lanes.data() + first, width, b.inside, to.x);
    if (bias != nullptr) add_positions(to.d, b.d_positions, to.bias);
    int64_t t = 0;
    auto add = [&](auto count) {
      constexpr int kTaps = decltype(count)::value;
      for (; t + kTaps <= taps; t += kTaps, ahead = {nullptr, nullptr, 0})
        accumulate_taps<kTaps>(b, to.d, to.x, b.taps.data() + t, ahead, to.sums + t * kLanes);
    };
    add(std::integral_constant<int, 9>());
    add(std::integral_constant<int, 3>());
    add(std::integral_constant<int, 1>());
  }
  *weight += squares(to.sums, taps * kLanes);
  if (bias != nullptr) *bias += squares(to.bias, kLanes);
}

// The norms of every sample by the rows of its planes.
inline bool depthwise_by_rows(const Convolution& c, Result result, int64_t threads) {
  const RowsPlan plan(c);
  return for_each_sample(c.samples(), threads, plan.floats(), [&](int64_t n, float* memory) {
    double weight = 0, bias = 0;
    depthwise_rows(plan, c.d.sample(n), c.x.sample(n), c.d.size[1], memory, &weight,
                   result.bias == nullptr ? nullptr : &bias);
    result.weight[n] = static_cast<float>(weight);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
  });
}

bool depthwise(const Convolution& c, Result result, int64_t threads) {
  if (RowsPlan::serves(c)) return depthwise_by_rows(c, result, threads);
  const DirectPlan plan(c, true, kLanes, kBlockFloats);
  Arena size{nullptr};
  DepthwiseBuffers(plan, c.taps(), size);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    const DepthwiseBuffers buffers(plan, c.taps(), arena);
    double weight = 0, bias = 0;
    for (int64_t p = 0; p < c.d.size[1]; p += kLanes) {
      const int64_t rest = c.d.size[1] - p;
      depthwise_lanes(plan, c.d.sample(n), c.x.sample(n), p, rest < kLanes ? rest : kLanes,
                      images_after(c, n, p + kLanes), buffers, &weight,
                      result.bias == nullptr ? nullptr : &bias);
    }
    result.weight[n] = static_cast<float>(weight);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
  });
}

}  // namespace
}  // namespace gradood
