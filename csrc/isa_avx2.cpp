// The kernels compiled for AVX2 and FMA.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 8, rows = 4, columns = 3;
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

const Kernels kAvx2 = {"avx2",     direct,     gram,       depthwise,
                       outer,      batch_norm, layer_norm, layer_norm_backward,
                       group_norm, embedding,  bias,       channel_sums,
                       &kNoiseAvx2};

}  // namespace gradood
