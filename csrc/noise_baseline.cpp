// The noise compiled for what every machine of this architecture runs.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 4, rows = 1, columns = 1;
};
}  // namespace

#include "grid_noise.h"

namespace gradood {

const NoiseKernel kNoiseBaseline = any_batch;

}  // namespace gradood
