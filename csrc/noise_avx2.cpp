// The noise compiled for AVX2, without fused multiply-adds.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 8, rows = 1, columns = 1;
};
}  // namespace

#include "grid_noise.h"

namespace gradood {

const NoiseKernel kNoiseAvx2 = any_batch;

}  // namespace gradood
