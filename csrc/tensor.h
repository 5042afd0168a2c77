// What the kernels are given: addresses, sizes and strides, and nothing of PyTorch.
#pragma once

#include <cmath>
#include <cstdint>

namespace gradood {

enum class Dtype : int64_t { float32, bfloat16, float16 };

// Numbers in memory. Offsets and strides count elements, so that they mean the same in any dtype.
struct Source {
  const char* data;
  Dtype dtype;

  Source at(int64_t offset) const {
    return {data + offset * (dtype == Dtype::float32 ? 4 : 2), dtype};
  }
};

// Dimension 0 runs over samples. Convolutions have [N, channels, 3 spatial], the rest [N, rows,
// columns].
struct Tensor : Source {
  int64_t size[5];
  int64_t stride[5];

  Source sample(int64_t n) const { return at(n * stride[0]); }
};

// Where the squared norms go, one float a sample; bias is null when it is not wanted.
struct Result {
  float* weight;
  float* bias;
};

// A batch norm layer; in `channel_sums` it is made while it is measured: `to = scale_c · a +
// shift_c` with scale = weight / √(variance + eps) and shift = bias − mean · scale.
struct BatchNorm {
  const float *mean, *variance, *weight, *bias;  // weight and bias may be null
  double eps;
  float* to;  // null: no layer, `a` itself is measured

  float rstd(int64_t c) const { return 1 / std::sqrt(variance[c] + static_cast<float>(eps)); }
  float scale(int64_t c) const { return weight == nullptr ? rstd(c) : rstd(c) * weight[c]; }
  float shift(int64_t c, float scale) const {
    return (bias == nullptr ? 0 : bias[c]) - mean[c] * scale;
  }
};

}  // namespace gradood
