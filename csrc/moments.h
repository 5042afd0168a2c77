// Sums over one row: of d, and of d · (x − centre).
#pragma once

#include "pack.h"

namespace gradood {
namespace {

constexpr int64_t kPiece = 512;  // floats of a row that are converted at once, where they must be

struct Moments {
  double dx, d;
};

// Σ_i d[i] (x[i] − centre) and Σ_i d[i] of at most `kLongestSum` adjacent floats.
GRADOOD_INLINE Moments moments_of_piece(const float* x, const float* d, float centre,
                                        int64_t count) {
  const Vector c = broadcast(centre);
  Vector dx[2] = {}, total[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes)
    for (int u = 0; u < 2; ++u) {
      const Vector v = load(d + i + u * kLanes);
      total[u] += v;
      dx[u] += v * (load(x + i + u * kLanes) - c);
    }
  for (; i < count; i += kLanes) {
    const int64_t rest = count - i;
    const Vector v = rest < kLanes ? load_first(d + i, rest) : load(d + i);
    const Vector w = rest < kLanes ? load_first(x + i, rest) : load(x + i);
    total[0] += v;
    dx[0] += v * (w - c);
  }
  return {add_lanes(dx[0] + dx[1]), add_lanes(total[0] + total[1])};
}

// The same of any number of them.
inline Moments moments_of_floats(const float* x, const float* d, float centre, int64_t count) {
  if (count <= kLongestSum) return moments_of_piece(x, d, centre, count);
  Moments total{0, 0};
  for (int64_t i = 0; i < count; i += kLongestSum) {
    const int64_t n = count - i < kLongestSum ? count - i : kLongestSum;
    const Moments piece = moments_of_piece(x + i, d + i, centre, n);
    total.dx += piece.dx;
    total.d += piece.d;
  }
  return total;
}

// The same of one row in any layout.
inline Moments moments(const Source& x, int64_t x_stride, const Source& d, int64_t d_stride,
                       float centre, int64_t count) {
  float x_buffer[kPiece], d_buffer[kPiece];
  const bool whole =
      x.dtype == Dtype::float32 && x_stride == 1 && d.dtype == Dtype::float32 && d_stride == 1;
  Moments total{0, 0};
  for (int64_t i = 0; i < count;) {
    const int64_t n = whole || count - i < kPiece ? count - i : kPiece;
    const Moments piece =
        moments_of_floats(row_of(x.at(i * x_stride), x_stride, n, x_buffer),
                          row_of(d.at(i * d_stride), d_stride, n, d_buffer), centre, n);
    total.dx += piece.dx;
    total.d += piece.d;
    i += n;
  }
  return total;
}

}  // namespace
}  // namespace gradood
