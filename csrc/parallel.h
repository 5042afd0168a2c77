// One task a sample on the thread pool that PyTorch already has.
#pragma once

#include <cstdint>

namespace gradood {

using Task = void (*)(void* context, int64_t sample, float* scratch);

// Runs `task` for every sample on at most `threads` threads, each with its own `scratch` floats,
// aligned to 64 bytes and zero before its first task. Returns false when there is no memory for
// them. A task depends on its sample alone, so results do not depend on the number of threads.
bool run_samples(int64_t samples, int64_t threads, int64_t scratch, void* context, Task task);

// Hands out pieces of a scratch buffer. A first pass over a null buffer counts the floats needed.
struct Arena {
  float* base;
  int64_t used = 0;

  float* take(int64_t floats) {
    float* piece = base == nullptr ? nullptr : base + used;
    used += (floats + 15) / 16 * 16;
    return piece;
  }
};

template <class Body>
bool for_each_sample(int64_t samples, int64_t threads, int64_t scratch, Body body) {
  return run_samples(samples, threads, scratch, &body,
                     [](void* context, int64_t sample, float* memory) {
                       (*static_cast<Body*>(context))(sample, memory);
                     });
}

}  // namespace gradood
