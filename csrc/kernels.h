// The kernels of one instruction set.
#pragma once

#include "geometry.h"
#include "noisy_batch.h"

namespace gradood {

// Every kernel writes one norm a sample and returns false when there is no memory for its scratch.
struct Kernels {
  const char* isa;
  bool (*direct)(const Convolution&, Result, int64_t threads);
  bool (*gram)(const Convolution&, Result, int64_t threads);
  bool (*depthwise)(const Convolution&, Result, int64_t threads);
  bool (*outer)(const Tensor& x, const Tensor& d, Result, int64_t threads);
  bool (*batch_norm)(const Tensor& x, const Tensor& d, const float* mean, const float* rstd,
                     const float* scale, const Tensor& to, Result, int64_t threads);
  bool (*layer_norm)(const Tensor& x, const Tensor& d, double eps, bool rms, Result,
                     int64_t threads);
  bool (*layer_norm_backward)(const Tensor& x, const Tensor& d, const float* scale, double eps,
                              bool rms, const Tensor& to, Result, int64_t threads);
  bool (*group_norm)(const Tensor& x, const Tensor& d, int64_t groups, double eps, Result,
                     int64_t threads);
  bool (*embedding)(const int64_t* indices, const Tensor& d, int64_t padding, float* result,
                    int64_t threads);
  bool (*bias)(const Tensor& d, float* result, int64_t threads);
  bool (*channel_sums)(const Tensor& a, const BatchNorm& layer, float* result, int64_t threads);
  const NoiseKernel* noisy_batch;
};

extern const Kernels kBaseline, kAvx2, kAvx512;

// With the tile unit: convolutions and linear layers; the other operators are those of kAvx512.
bool amx_direct(const Convolution&, Result, int64_t threads);
bool amx_gram(const Convolution&, Result, int64_t threads);

// The best kernels for this machine, or those that `name` asks for; null, with the reason in
// `error`, if there are none.
const Kernels* choose_kernels(const char* name, const char** error);

}  // namespace gradood
