// Which of the compiled kernels this machine can run.
#include <cstring>

#include "kernels.h"

namespace gradood {
namespace {

struct Choice {
  const Kernels* kernels;
  bool supported;
};

}  // namespace

const Kernels* choose_kernels(const char* name, const char** error) {
#ifdef GRADOOD_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const Choice choices[] = {{&kAvx512, avx512}, {&kAvx2, avx2}, {&kBaseline, true}};
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
