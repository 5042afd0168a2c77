// The smallest operators: outer products of single vectors, bias sums, and embeddings.
#pragma once

#include "norms.h"

namespace gradood {
namespace {

// Σ a² of one row.
inline double row_squares(const Source& s, int64_t stride, int64_t count) {
  float buffer[kPiece];
  double total = 0;
  for (int64_t i = 0; i < count; i += kPiece) {
    const int64_t n = count - i < kPiece ? count - i : kPiece;
    total += squares(row_of(s.at(i * stride), stride, n, buffer), n);
  }
  return total;
}

// ‖x‖² ‖d‖² and ‖d‖²: a linear layer that sees one position. x and d are [N, Q] and [N, P], given
// as [N, 1, Q] and [N, 1, P].
bool outer(const Tensor& x, const Tensor& d, Result result, int64_t threads) {
  return for_each_sample(x.size[0], threads, 0, [&](int64_t n, float*) {
    const double of_d = row_squares(d.sample(n), d.stride[2], d.size[2]);
    const double of_x = row_squares(x.sample(n), x.stride[2], x.size[2]);
    result.weight[n] = static_cast<float>(of_x * of_d);
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(of_d);
  });
}

// Σ_p (Σ_t d)² for d [N, P, T].
bool bias(const Tensor& d, float* result, int64_t threads) {
  return for_each_sample(d.size[0], threads, 0, [&](int64_t n, float*) {
    const double total = sum_squares(view_of(d, n, false), d.size[1], d.size[2]);
    result[n] = static_cast<float>(total);
  });
}

// Links positions with equal indices: previous[t] is the nearest earlier position with the index of
// t, or −1; last[t] says that no later one has it. An open hash table of `slots` = 2^k > T entries.
inline void link_equal(const int64_t* indices, int64_t count, int64_t* table, int64_t slots,
                       int64_t* previous, bool* last) {
  for (int64_t s = 0; s < slots; ++s) table[s] = -1;
  for (int64_t t = 0; t < count; ++t) {
    uint64_t slot = static_cast<uint64_t>(indices[t]) * 0x9e3779b97f4a7c15u >> 20;
    while (table[slot &= slots - 1] >= 0 && indices[table[slot]] != indices[t]) ++slot;
    previous[t] = table[slot];
    last[t] = true;
    if (previous[t] >= 0) last[previous[t]] = false;
    table[slot] = t;
  }
}

// Σ_v ‖Σ_{t: indices_t = v} d_t‖² for contiguous indices [N, T] and d [N, T, Q].
bool embedding(const int64_t* indices, const Tensor& d, int64_t padding, float* result,
               int64_t threads) {
  const int64_t rows = d.size[1], columns = d.size[2];
  int64_t slots = 2;
  while (slots < 2 * rows) slots *= 2;
  Arena size{nullptr};
  for (int64_t floats : {2 * slots, 2 * rows, rows, 2 * columns, columns}) size.take(floats);
  return for_each_sample(d.size[0], threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    int64_t* table = reinterpret_cast<int64_t*>(arena.take(2 * slots));
    int64_t* previous = reinterpret_cast<int64_t*>(arena.take(2 * rows));
    bool* last = reinterpret_cast<bool*>(arena.take(rows));
    double* total = reinterpret_cast<double*>(arena.take(2 * columns));
    float* buffer = arena.take(columns);
    const int64_t* index = indices + n * rows;
    link_equal(index, rows, table, slots, previous, last);
    double norm = 0;
    for (int64_t t = 0; t < rows; ++t) {
      if (!last[t] || index[t] == padding) continue;
      std::memset(total, 0, columns * sizeof(double));
      for (int64_t s = t; s >= 0; s = previous[s]) {
        const float* row = row_of(d.sample(n).at(s * d.stride[1]), d.stride[2], columns, buffer);
        for (int64_t q = 0; q < columns; ++q) total[q] += row[q];
      }
      for (int64_t q = 0; q < columns; ++q) norm += total[q] * total[q];
    }
    result[n] = static_cast<float>(norm);
  });
}

}  // namespace
}  // namespace gradood
