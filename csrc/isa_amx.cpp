// The kernels compiled for AVX-512 with bfloat16 and the AMX tile unit.
#include <cstdint>

namespace {
struct Isa {
  static constexpr int lanes = 16, rows = 8, columns = 3;
};
}  // namespace

#include "amx_direct.h"
#include "amx_gram.h"
#include "kernels.h"
