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
};

using NoiseKernel = bool (*)(const NoisyBatch&, int64_t threads);

extern const NoiseKernel kNoiseBaseline, kNoiseAvx2, kNoiseAvx512;

}  // namespace gradood
