// What the noise kernels are given.
#pragma once

#include <cstdint>

namespace gradood {

struct NoisyBatch {
  const float* x;  // [inputs, channels, elements], contiguous
  int64_t channels, elements, copies;
  const int64_t *rows, *inputs, *samples;  // of every copy: row of x, and two words of its counters
  uint64_t seed;
  uint32_t tag;
  float sigma, low, high;
  const float *mean, *rstd;  // [channels], or both null
  void* out;                 // [copies, channels, elements], or channels last
  bool bfloat16, channels_last;
  // Of grid noise: steps of the grid in 1, and σ unrounded; levels is 0 for float32 noise.
  double levels = 0, exact_sigma = 0;
};

using NoiseKernel = bool (*)(const NoisyBatch&, int64_t threads);

extern const NoiseKernel kNoiseBaseline, kNoiseAvx2, kNoiseAvx512;

}  // namespace gradood
