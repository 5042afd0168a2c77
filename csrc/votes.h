// Counts of the values of noisy copies, by input.
#pragma once

#include <cstdint>

namespace gradood {

enum class Vote : int64_t { argmax, above, histogram };

// counts[row][column] += 1 for every value; counts [inputs, columns], values [copies, width].
struct Votes {
  const float* values;
  const int64_t* rows;
  int64_t copies, width;
  const float* thresholds;
  int64_t threshold_count;
  int64_t* counts;
  int64_t columns;
};

void count_votes(const Votes& votes, Vote mode);

}  // namespace gradood
