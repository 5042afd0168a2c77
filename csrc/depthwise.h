// Convolutions with one input channel a group: Σ_{p,tap} (Σ_t d[p,t] x[p / multiplier, t + tap])².
//
// P · T · taps multiply-adds a sample, and each number is read once: bound by memory. Lanes are
// output channels, so that no sum crosses lanes and channels_last needs no transposition.
#pragma once

#include "depthwise_rows.h"
#include "parallel.h"

namespace gradood {
namespace {

// sums[tap] += Σ_t d[t] x[t + tap] for `Taps` taps.
//
// Registers: the sums and one vector of d. L1: the rows of x under the kernel.
template <int Taps>
inline void accumulate_taps(const Block& b, const float* d, const float* x, const int64_t* taps,
                            float* sums) {
  Vector sum[Taps];
  for (int t = 0; t < Taps; ++t) sum[t] = Vector{};
  for (int64_t i = 0; i < b.count[0]; ++i)
    for (int64_t j = 0; j < b.count[1]; ++j) {
      const float* row = x + (i * b.step[0] + j * b.step[1]) * kLanes;
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

// Asks for the images of the channels after these: where several share a page, the hardware does
// not follow a transposition through them.
inline void prefetch_channels(const Tensor& t, const Source& s, int64_t first, int64_t count) {
  const int64_t pixels = t.size[2] * t.size[3] * t.size[4];
  constexpr int64_t kPage = 4096 / sizeof(float);
  if (t.dtype == Dtype::float32 && t.stride[1] == pixels && pixels < kPage)
    prefetch_row(reinterpret_cast<const float*>(s.data) + first * pixels, count * pixels);
}

// Adds the squared norms of the gradients of at most `kLanes` output channels.
inline void depthwise_lanes(const DirectPlan& plan, const Source& d, const Source& x, int64_t first,
                            int64_t width, const DepthwiseBuffers& to, double* weight,
                            double* bias) {
  const int64_t taps = static_cast<int64_t>(plan.blocks[0].taps.size());
  std::memset(to.sums, 0, taps * kLanes * sizeof(float));
  std::memset(to.bias, 0, kLanes * sizeof(float));
  for (const Block& b : plan.blocks) {
    pack_lanes(d, plan.d_lanes.data() + first, width, b.d, to.d);
    if (plan.blocks.size() > 1) std::memset(to.x, 0, b.x_positions * kLanes * sizeof(float));
    pack_inside(x, plan.x_lanes.data() + first, width, b.inside, to.x);
    if (bias != nullptr) add_positions(to.d, b.d_positions, to.bias);
    const int64_t* tap = b.taps.data();
    int64_t t = 0;
    for (; t + 9 <= taps; t += 9) accumulate_taps<9>(b, to.d, to.x, tap + t, to.sums + t * kLanes);
    for (; t + 3 <= taps; t += 3) accumulate_taps<3>(b, to.d, to.x, tap + t, to.sums + t * kLanes);
    for (; t < taps; ++t) accumulate_taps<1>(b, to.d, to.x, tap + t, to.sums + t * kLanes);
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
      const int64_t rest = c.d.size[1] - p, next = rest - kLanes < kLanes ? rest - kLanes : kLanes;
      prefetch_channels(c.d, c.d.sample(n), p + kLanes, next);
      prefetch_channels(c.x, c.x.sample(n), (p + kLanes) / c.outputs(), next / c.outputs());
      depthwise_lanes(plan, c.d.sample(n), c.x.sample(n), p, rest < kLanes ? rest : kLanes, buffers,
                      &weight, result.bias == nullptr ? nullptr : &bias);
    }
    result.weight[n] = static_cast<float>(weight);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
  });
}

}  // namespace
}  // namespace gradood
