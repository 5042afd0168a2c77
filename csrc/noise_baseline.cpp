// The noise compiled for what every machine of this architecture runs.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 4, rows = 1, columns = 1;
};
}  // namespace

#include "noise.h"

namespace gradood {

const NoiseKernel kNoiseBaseline = noisy_batch;

}  // namespace gradood
