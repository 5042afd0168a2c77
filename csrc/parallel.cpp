#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace gradood {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// The OpenMP runtime that PyTorch loaded, under whatever name: `import torch` makes its symbols
// global. Linking to a runtime of our own could start a second pool of threads beside it.
Parallel find_parallel() {
  void* symbol = dlsym(RTLD_DEFAULT, "GOMP_parallel");
  return reinterpret_cast<Parallel>(symbol);
}

struct Team {
  int64_t samples, scratch;
  float* memory;
  void* context;
  Task task;
  std::atomic<int64_t> next_sample{0}, next_member{0};
};

// Every member takes the next sample until none is left: one that is held up delays nobody.
void work(void* argument) {
  Team& team = *static_cast<Team*>(argument);
  float* scratch = team.memory + team.next_member++ * team.scratch;
  std::memset(scratch, 0, team.scratch * sizeof(float));
  for (int64_t n = team.next_sample++; n < team.samples; n = team.next_sample++)
    team.task(team.context, n, scratch);
}

}  // namespace

bool run_samples(int64_t samples, int64_t threads, int64_t scratch, void* context, Task task) {
  static const Parallel parallel = find_parallel();
  threads = std::max<int64_t>(1, std::min(threads, samples));
  if (parallel == nullptr) threads = 1;
  Team team{};
  team.samples = samples;
  team.scratch = (scratch + 31) / 16 * 16;
  team.context = context;
  team.task = task;
  team.memory = static_cast<float*>(std::aligned_alloc(64, threads * team.scratch * 4));
  if (team.memory == nullptr) return false;
  if (threads == 1)
    work(&team);
  else
    parallel(work, &team, static_cast<unsigned>(threads), 0);
  std::free(team.memory);
  return true;
}

}  // namespace gradood
