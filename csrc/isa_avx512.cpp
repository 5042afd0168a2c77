// The kernels compiled for AVX-512 F, BW, DQ and VL.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 16, rows = 8, columns = 3;
};
}  // namespace

#include "activations.h"
#include "batch_norm.h"
#include "depthwise.h"
#include "direct.h"
#include "gram.h"
#include "kernels.h"
#include "layer_norm.h"
#include "norms.h"
#include "sums.h"

namespace gradood {

const Kernels kAvx512 = {"avx512",     direct,     gram,       depthwise,
                         outer,        batch_norm, layer_norm, layer_norm_backward,
                         group_norm,   embedding,  bias,       channel_sums,
                         &kNoiseAvx512};

}  // namespace gradood
