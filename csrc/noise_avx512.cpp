// The noise compiled for AVX-512 F, BW, DQ and VL, without fused multiply-adds.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 16, rows = 1, columns = 1;
};
}  // namespace

#include "grid_noise.h"

namespace gradood {

const NoiseKernel kNoiseAvx512 = any_batch;

}  // namespace gradood
