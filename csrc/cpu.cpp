// Which of the compiled kernels this machine can run.
#include <cstring>

#if defined(GRADOOD_X86) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace gradood {
namespace {

struct Choice {
  const Kernels* kernels;
  bool supported;
};

// The processor has the tile unit and bfloat16 vectors, and Linux lets this process use them.
bool tiles_allowed() {
#if defined(GRADOOD_X86) && defined(__linux__)
  constexpr unsigned kTilesAndBfloat16 = 1u << 24 | 1u << 22, kVectorBfloat16 = 1u << 5;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & kTilesAndBfloat16) != kTilesAndBfloat16) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kVectorBfloat16)) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#ifdef GRADOOD_X86
Kernels with_tiles() {
  Kernels kernels = kAvx512;
  kernels.isa = "amx";
  kernels.direct = amx_direct;
  kernels.gram = amx_gram;
  return kernels;
}
#endif

}  // namespace

const Kernels* choose_kernels(const char* name, const char** error) {
#ifdef GRADOOD_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  static const Kernels amx = with_tiles();
  static const bool tiles = avx512 && tiles_allowed();
  const Choice choices[] = {{&amx, tiles}, {&kAvx512, avx512}, {&kAvx2, avx2}, {&kBaseline, true}};
#else
  const Choice choices[] = {{&kBaseline, true}};
#endif
  const bool best = std::strcmp(name, "auto") == 0;
  *error = "no such instruction set was compiled for this architecture";
  for (const Choice& choice : choices) {
    if (!best && std::strcmp(name, choice.kernels->isa) != 0) continue;
    if (choice.supported) return choice.kernels;
    *error = "this machine lacks the instructions";
  }
  return nullptr;
}

}  // namespace gradood
