// A layer norm's backward pass, measured while it is made: to = rstd · (g − Σg / Q − x̂ · Σ(g x̂) /
// Q) with g = d · scale is the gradient of x, without the middle term for rms; x̂ = (x − mean) ·
// rstd and d · x̂, and d as well, are added to their columns.
#pragma once

#include "norms.h"

namespace gradood {
namespace {

constexpr int kTogether = 4;  // rows whose sums across lanes do not wait for each other
constexpr int64_t kLongestRow = kLongestSum * 4;  // of which a lane is summed in float32

// Rows of adjacent floats and where their gradients go; behind them the rows that come next, which
// are asked for while these are in use.
struct Rows {
  const float *x[kLanes + kTogether], *d[kLanes + kTogether];
  Sink to[kLanes];
};

struct LayerNorm {
  const float* scale;
  double eps;
  bool rms;
  int64_t count;            // columns
  float *dx_sums, *d_sums;  // of each column
  float* normalised;        // scratch
};

// One row, whatever its numbers.
inline void backward_row(const LayerNorm& norm, const float* x, const float* d, const Sink& to) {
  const int64_t count = norm.count;
  const View row{{reinterpret_cast<const char*>(x), Dtype::float32}, 0, 1};
  const Statistics s = statistics(row, 1, count, norm.eps, norm.rms);
  const Vector mean = broadcast(s.mean), rstd = broadcast(s.rstd);
  double sum = 0, product = 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t rest = count - i;
    auto read = [&](const float* a) {
      return rest < kLanes ? load_first(a + i, rest) : load(a + i);
    };
    const Vector v = read(d), g = v * read(norm.scale), hat = (read(x) - mean) * rstd;
    store(norm.normalised + i, hat);
    store(norm.dx_sums + i, load(norm.dx_sums + i) + v * hat);
    store(norm.d_sums + i, load(norm.d_sums + i) + v);
    sum += add_lanes(g);
    product += add_lanes(g * hat);  // beyond the row, g is zero
  }
  const Vector share = broadcast(norm.rms ? 0.0f : static_cast<float>(sum / count));
  const Vector slope = broadcast(static_cast<float>(product / count));
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t rest = count - i < kLanes ? count - i : kLanes;
    auto read = [&](const float* a) {
      return rest < kLanes ? load_first(a + i, rest) : load(a + i);
    };
    to.at(i).put(rstd * (read(d) * read(norm.scale) - share - load(norm.normalised + i) * slope),
                 rest);
  }
}

// Calls visit(first column, count, read) for whole vectors, where read is load, and for the rest.
template <class Visit>
GRADOOD_INLINE void each_vector(int64_t count, Visit visit) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    visit(i, kLanes, [](const float* from) { return load(from); });
  const int64_t rest = count - i;
  if (rest > 0) visit(i, rest, [=](const float* from) { return load_first(from, rest); });
}

// `Count` rows at once; false, and nothing is done, where squares leave the range of a float.
//
// Registers: sums of every row, which wait for each other's additions no longer than there are
// rows. L1: the rows after the first pass, and the sums of columns.
template <int Count, bool Floats>
inline bool backward_rows(const LayerNorm& norm, const float* const* x, const float* const* d,
                          const Sink* to) {
  const float share_of = 1 / static_cast<float>(norm.count);
  Vector sums[Count] = {}, squares[Count] = {}, products[Count] = {};
  alignas(64) float mean[Count][kLanes];
  each_vector(norm.rms ? 0 : norm.count, [&](int64_t i, int64_t, auto read) {
#pragma GCC unroll 8
    for (int r = 0; r < Count; ++r) {
      __builtin_prefetch(x[r + Count] + i);
      sums[r] += read(x[r] + i);
    }
  });
#pragma GCC unroll 8
  for (int r = 0; r < Count; ++r) {
    store(mean[r], broadcast(add_lanes(sums[r]) * share_of));
    sums[r] = Vector{};
  }
  each_vector(norm.count, [&](int64_t i, int64_t, auto read) {
    const Vector scale = read(norm.scale + i);
#pragma GCC unroll 8
    for (int r = 0; r < Count; ++r) {
      __builtin_prefetch(d[r + Count] + i);
      const Vector centred = read(x[r] + i) - read(mean[r]), g = read(d[r] + i) * scale;
      sums[r] += g;
      squares[r] += centred * centred;
      products[r] += centred * g;
    }
  });
  float rstd[Count], share[Count], slope[Count];
  bool fits = true;
#pragma GCC unroll 8
  for (int r = 0; r < Count; ++r) {
    const float product = add_lanes(products[r]) * share_of;
    const float variance = add_lanes(squares[r]) * share_of + static_cast<float>(norm.eps);
    rstd[r] = 1 / std::sqrt(variance);
    share[r] = norm.rms ? 0 : add_lanes(sums[r]) * share_of;
    slope[r] = product * rstd[r];
    fits &= std::isfinite(product) && std::isfinite(variance);
  }
  if (!fits) return false;
  each_vector(norm.count, [&](int64_t i, int64_t width, auto read) {
    const Vector scale = read(norm.scale + i);
    Vector dx_sum = load(norm.dx_sums + i), d_sum = load(norm.d_sums + i);
#pragma GCC unroll 8
    for (int r = 0; r < Count; ++r) {
      const Vector v = read(d[r] + i), factor = broadcast(rstd[r]);
      const Vector hat = (read(x[r] + i) - load(mean[r])) * factor;
      dx_sum += v * hat;
      d_sum += v;
      const Vector out = factor * (v * scale - broadcast(share[r]) - hat * broadcast(slope[r]));
      if (Floats && width == kLanes)
        store(reinterpret_cast<float*>(to[r].data) + i, out);
      else
        to[r].at(i).put(out, width);
    }
    store(norm.dx_sums + i, dx_sum);
    store(norm.d_sums + i, d_sum);
  });
  return true;
}

// Some rows of one sample, several at once; long ones each on its own.
template <bool Floats>
inline void backward_rows(const LayerNorm& norm, const Rows& rows, int64_t count) {
  int64_t r = 0;
  const bool together = norm.count <= kLongestRow;
  for (; together && r + kTogether <= count; r += kTogether)
    if (!backward_rows<kTogether, Floats>(norm, rows.x + r, rows.d + r, rows.to + r))
      for (int64_t i = r; i < r + kTogether; ++i)
        backward_row(norm, rows.x[i], rows.d[i], rows.to[i]);
  for (; r < count; ++r)
    if (!together || !backward_rows<1, Floats>(norm, rows.x + r, rows.d + r, rows.to + r))
      backward_row(norm, rows.x[r], rows.d[r], rows.to[r]);
}

// Rows of one sample of a tensor [N, T, Q] as adjacent floats: where they stand, or copied.
struct RowReader {
  const Tensor& tensor;
  int64_t columns;
  float* copies;  // kLanes rows

  static bool in_place(const Tensor& t) {
    return t.dtype == Dtype::float32 && (t.stride[2] == 1 || t.size[2] == 1);
  }
  static int64_t floats(const Tensor& t) {
    return in_place(t) ? 0 : kLanes * blocks_of_lanes(t.size[2]) * kLanes;
  }

  // Fills in `count` rows, and those behind them.
  void read(int64_t n, int64_t first, int64_t count, const float** rows) const {
    const Source s = tensor.sample(n).at(first * tensor.stride[1]);
    const int64_t pitch = blocks_of_lanes(columns) * kLanes;
    const bool transposed = !in_place(tensor) && tensor.stride[1] == 1;
    if (transposed) transpose_rows(s, count, pitch);
    for (int64_t r = 0; r < count; ++r)
      rows[r] = transposed ? copies + r * pitch
                           : row_of(s.at(r * tensor.stride[1]), tensor.stride[2], columns,
                                    copies + r * pitch);
    for (int64_t r = 0; r < kTogether; ++r) rows[count + r] = next(n, first + count + r);
  }

 private:
  // A row that is needed soon, which may be one of the next sample.
  const float* next(int64_t n, int64_t row) const {
    n += row / tensor.size[1];
    if (!in_place(tensor) || n >= tensor.size[0]) return copies;
    const Source s = tensor.sample(n).at(row % tensor.size[1] * tensor.stride[1]);
    return reinterpret_cast<const float*>(s.data);
  }

  // Rows whose neighbours are adjacent in memory.
  void transpose_rows(const Source& s, int64_t count, int64_t pitch) const {
    float buffer[kLanes];
    for (int64_t q = 0; q < columns; q += kLanes) {
      Vector lanes[kLanes] = {};
      for (int64_t i = 0; i < kLanes && q + i < columns; ++i) {
        const float* from = row_of(s.at((q + i) * tensor.stride[2]), 1, count, buffer);
        lanes[i] = count == kLanes ? load(from) : load_first(from, count);
      }
      transpose(lanes);
      for (int64_t r = 0; r < count; ++r) store(copies + r * pitch + q, lanes[r]);
    }
  }
};

// x and d are [N, T, Q], normalised over Q; also writes the gradient of x, rows of adjacent
// numbers.
bool layer_norm_backward(const Tensor& x, const Tensor& d, const float* scale, double eps, bool rms,
                         const Tensor& to, Result result, int64_t threads) {
  const int64_t rows = x.size[1], columns = x.size[2];
  const int64_t width = blocks_of_lanes(columns) * kLanes;
  const int64_t of_x = RowReader::floats(x), of_d = RowReader::floats(d);
  const bool many = rows > kLongestSum;
  return for_each_sample(
      x.size[0], threads, of_x + of_d + (many ? 7 : 3) * width, [&](int64_t n, float* memory) {
        const RowReader read_x{x, columns, memory}, read_d{d, columns, memory + of_x};
        float* sums = memory + of_x + of_d;
        const LayerNorm norm{scale, eps, rms, columns, sums, sums + width, sums + 2 * width};
        double* total = reinterpret_cast<double*>(sums + 3 * width);  // of both, where many
        std::memset(sums, 0, (many ? 7 : 2) * width * sizeof(float));
        auto move_sums = [&] {
          for (int64_t i = 0; i < 2 * width; ++i) total[i] += sums[i];
          std::memset(sums, 0, 2 * width * sizeof(float));
        };
        const Sink sink = sink_of(to, n);
        Rows at;
        for (int64_t t = 0; t < rows; t += kLanes) {
          if (many && t % kLongestSum == 0) move_sums();
          const int64_t count = rows - t < kLanes ? rows - t : kLanes;
          read_x.read(n, t, count, at.x);
          read_d.read(n, t, count, at.d);
          for (int64_t r = 0; r < count; ++r) at.to[r] = sink.at((t + r) * to.stride[1]);
          to.dtype == Dtype::float32 ? backward_rows<true>(norm, at, count)
                                     : backward_rows<false>(norm, at, count);
        }
        if (!many)
          return finish({squares(sums, columns), squares(sums + width, columns)}, result, n);
        move_sums();
        Moments norms{0, 0};
        for (int64_t i = 0; i < columns; ++i) {
          norms.dx += total[i] * total[i];
          norms.d += total[width + i] * total[width + i];
        }
        finish(norms, result, n);
      });
}

}  // namespace
}  // namespace gradood
