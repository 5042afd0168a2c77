// The kernels compiled for which every machine of this architecture runs.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 4, rows = 4, columns = 2;
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

const Kernels kBaseline = {
    "baseline",          direct,     gram,      depthwise, outer,        batch_norm,     layer_norm,
    layer_norm_backward, group_norm, embedding, bias,      channel_sums, &kNoiseBaseline};

}  // namespace gradood
