#include "votes.h"

#include <algorithm>
#include <cmath>

namespace gradood {
namespace {

// The first maximum; −1 if there is a NaN.
int64_t first_maximum(const float* values, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(values[i])) return -1;
    if (values[i] > values[best]) best = i;
  }
  return best;
}

}  // namespace

void count_votes(const Votes& v, Vote mode) {
  const float* end = v.thresholds + v.threshold_count;
  for (int64_t i = 0; i < v.copies; ++i) {
    int64_t* counts = v.counts + v.rows[i] * v.columns;
    const float* values = v.values + i * v.width;
    if (mode == Vote::argmax) {
      const int64_t best = first_maximum(values, v.width);
      ++counts[best < 0 ? v.columns - 1 : best];
    } else if (std::isnan(*values)) {
      ++counts[v.columns - 1];
    } else if (mode == Vote::above) {
      for (int64_t k = 0; k < v.threshold_count; ++k) counts[k] += *values > v.thresholds[k];
    } else {
      ++counts[std::lower_bound(v.thresholds, end, *values) - v.thresholds];
    }
  }
}

}  // namespace gradood
