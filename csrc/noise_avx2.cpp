// The noise compiled for AVX2, without fused multiply-adds.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 8, rows = 1, columns = 1;
};
}  // namespace

#include "noise.h"

namespace gradood {

const NoiseKernel kNoiseAvx2 = noisy_batch;

}  // namespace gradood
