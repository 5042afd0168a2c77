// Matrix products of positions, Σ_{t,s} (x_t·x_s)(d_t·d_s): the upper triangles of both matrices of
// inner products grow piece by piece of the channels, each of which is packed into L1 while the
// next one is on its way to L2.
//
// T² (p + q) / 2 multiply-adds a sample.
#pragma once

#include "gram_grid.h"
#include "gram_tiles.h"

namespace gradood {
namespace {

// Memory that is wanted soon, as rows of adjacent bytes: asked for a few rows at a time.
struct Ahead {
  const char* data;
  int64_t stride, count, bytes;
  int64_t row = 0;

  // Asks for one more share of `whole`.
  GRADOOD_INLINE void ask(int64_t share, int64_t whole) {
    const int64_t end = row + (count * share + whole - 1) / whole;
    for (; row < (end < count ? end : count); ++row)
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(data + row * stride + i, 0, 2);
  }
};

// The first `count` ≤ lanes numbers, then zeros; reads nothing beyond them.
GRADOOD_INLINE Halves load_halves(const char* from, int64_t count) {
  if (count == kLanes) return load_as<Halves>(from);
  Halves h{};
  std::memcpy(&h, from, 2 * count);
  return h;
}

template <int Rows>
GRADOOD_INLINE Vector sum_of_rows(const Vector* rows) {
  if constexpr (Rows == 1)
    return rows[0];
  else
    return sum_of_rows<Rows / 2>(rows) + sum_of_rows<Rows / 2>(rows + Rows / 2);
}

// Packs rows of adjacent numbers into lanes, and writes the sums of every column where there are
// `sums`.
template <class Read>
GRADOOD_INLINE void pack_columns(const Offsets& rows, int64_t depth, float* sums, float* out,
                                 Read read) {
  const int64_t count = static_cast<int64_t>(rows.size()), whole = count / kLanes * kLanes;
  std::memset(out + whole * depth, 0, count == whole ? 0 : depth * kLanes * sizeof(float));
  for (int64_t k = 0; k < depth; k += kLanes) {
    const int64_t width = depth - k < kLanes ? depth - k : kLanes;
    Vector sum = {};
    for (int64_t t = 0; t < count; t += kLanes) {
      float* to = out + (t * depth + k * kLanes);
      if (count - t <= kLanes / 4) {  // a transposition would move zeros
        float row[kLanes];
        for (int64_t r = 0; r < count - t; ++r) {
          const Vector v = read(rows[t + r] + k, width);
          sum += v;
          store(row, v);
#pragma GCC unroll 16
          for (int64_t i = 0; i < width; ++i) to[i * kLanes + r] = row[i];
        }
        break;
      }
      Vector lanes[kLanes];
      if (width == kLanes && t + kLanes <= count) {
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = read(rows[t + lane] + k, kLanes);
      } else {
        for (int lane = 0; lane < kLanes; ++lane)
          lanes[lane] = t + lane < count ? read(rows[t + lane] + k, width) : Vector{};
      }
      if (sums != nullptr) sum += sum_of_rows<kLanes>(lanes);
      transpose(lanes);
      if (width == kLanes) {
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) store(to + lane * kLanes, lanes[lane]);
      } else {
        for (int lane = 0; lane < width; ++lane) store(to + lane * kLanes, lanes[lane]);
      }
    }
    if (sums != nullptr) store(sums + k, sum);
  }
}

// The sums over all positions of what was packed, channel after channel.
inline void sums_of_packed(const float* a, int64_t depth, int64_t vectors, float* sums) {
  for (int64_t k = 0; k < depth; k += kLanes) {
    Vector lanes[kLanes] = {};
    for (int64_t c = 0; c < kLanes && k + c < depth; ++c)
      for (int64_t v = 0; v < vectors; ++v) lanes[c] += load(a + (v * depth + k + c) * kLanes);
    transpose(lanes);
    for (int c = 1; c < kLanes; ++c) lanes[0] += lanes[c];
    store(sums + k, lanes[0]);
  }
}

// One operand of a product: positions of a source and their channels.
struct Operand {
  Source source;
  const Offsets* pixels;
  const Runs* runs;
  int64_t step, depth;  // between channels, and their number

  // Packs some channels, positions in lanes, and sums each of them over the positions where there
  // are `sums`.
  void pack(int64_t k, int64_t count, float* row, Runs& channels, float* sums, float* to) const {
    const Source s = source.at(k * step);
    if (step == 1 && s.dtype == Dtype::float32) {
      const float* from = reinterpret_cast<const float*>(s.data);
      return pack_columns(*pixels, count, sums, to, [=](int64_t at, int64_t n) {
        return n == kLanes ? load(from + at) : load_first(from + at, n);
      });
    }
    if (step == 1 && s.dtype == Dtype::bfloat16)
      return pack_columns(*pixels, count, sums, to, [=](int64_t at, int64_t n) {
        return widen_bfloat16(load_halves(s.data + 2 * at, n));
      });
    if (step == 1)
      return pack_columns(*pixels, count, sums, to, [=](int64_t at, int64_t n) {
        return widen_float16(load_halves(s.data + 2 * at, n));
      });
    channels[0] = {0, step, count};
    pack_pixels(s, *pixels, *runs, channels, row, to);
    if (sums != nullptr)
      sums_of_packed(to, count, blocks_of_lanes(static_cast<int64_t>(pixels->size())), sums);
  }

  // Some channels: rows of channels, or of positions.
  Ahead ahead(int64_t k, int64_t count) const {
    if (runs->size() != 1) return {};
    const char* data = source.at(k * step + runs->front().offset).data;
    const int64_t element = source.at(1).data - source.data;
    const int64_t positions = runs->front().count, between = runs->front().step;
    if (step == 1) return {data, between * element, positions, count * element};
    if (between == 1) return {data, step * element, count, positions * element};
    return {};
  }
};

// Σ_{t,s} of both matrices' entries, from their triangles.
inline Products multiply(const float* x, const float* d, int64_t count) {
  Products total;
  upper_strips(count, [&](auto strip) {
    total += strip.products(x, d);
    x += strip.floats;
    d += strip.floats;
  });
  return total;
}

constexpr int64_t kPieceFloats = 6144;  // most of L1, beside a strip of sums

struct PieceBuffers {
  float *packed, *row, *sums, *x, *d;
  int64_t depth;  // of a piece, at most

  PieceBuffers(const PhasePlan& plan, Arena& arena) {
    const int64_t count = plan.output_count, positions = blocks_of_lanes(count) * kLanes;
    const int64_t fitting = kPieceFloats / positions / kLanes * kLanes;
    const int64_t deepest = plan.inputs > plan.outputs ? plan.inputs : plan.outputs;
    const int64_t least = round_up(deepest / kLongestSum + 1, 64);  // few pieces are added up
    depth = fitting < least ? least : fitting > 256 ? 256 : fitting;
    packed = arena.take(depth * positions);
    row = arena.take(positions);
    sums = arena.take(depth);
    x = arena.take(triangle_floats(count));
    d = arena.take(triangle_floats(count));
  }
};

// Consecutive channels of an operand that are packed at once.
struct Piece {
  int64_t first, depth;
};

inline Piece piece_of(const Operand& a, int64_t most, int64_t number) {
  const int64_t pieces = (a.depth + most - 1) / most;
  const int64_t length = round_up((a.depth + pieces - 1) / pieces, kLanes);
  const int64_t first = number * length;
  return {first, a.depth - first < length ? a.depth - first : length};
}

// Writes the upper triangle of an operand's matrix of inner products; returns
// Σ_channel (Σ_position)² if that is wanted.
inline double write_triangle(const Operand& a, const Operand& next, const PieceBuffers& b,
                             bool bias, float* to) {
  const int64_t count = static_cast<int64_t>(a.pixels->size());
  const int64_t work = triangle_floats(count);
  Runs channels(1);
  double squared_sums = 0;
  for (int64_t i = 0;; ++i) {
    const Piece piece = piece_of(a, b.depth, i);
    a.pack(piece.first, piece.depth, b.row, channels, bias ? b.sums : nullptr, b.packed);
    if (bias) squared_sums += squares(b.sums, piece.depth);
    const bool last = piece.first + piece.depth == a.depth;
    const Operand& following = last ? next : a;
    const Piece then = piece_of(following, b.depth, last ? 0 : i + 1);
    Ahead ahead = following.ahead(then.first, then.depth);
    float* sums = to;
    upper_strips(count, [&](auto strip) {
      ahead.ask(strip.floats, work);
      i == 0 ? strip.template multiply<false>(b.packed, piece.depth, piece.depth, sums)
             : strip.template multiply<true>(b.packed, piece.depth, piece.depth, sums);
      sums += strip.floats;
    });
    if (last) return squared_sums;
  }
}

// Whether there is a number other than zero.
inline bool any_of(const Operand& a, const PieceBuffers& b) {
  const int64_t vectors = blocks_of_lanes(static_cast<int64_t>(a.pixels->size()));
  Runs channels(1);
  for (int64_t k = 0; k < a.depth; k += b.depth) {
    const int64_t depth = a.depth - k < b.depth ? a.depth - k : b.depth;
    a.pack(k, depth, b.row, channels, nullptr, b.packed);
    if (any_of(b.packed, vectors * kLanes * depth)) return true;
  }
  return false;
}

template <class Algorithm>
bool gram_of_pieces(const Convolution& c, Result result, int64_t threads) {
  const PhasePlan plan(c);
  const Phase& phase = plan.phases[0];
  const int64_t count = plan.output_count;
  Arena size{nullptr};
  PieceBuffers(plan, size);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    const PieceBuffers b(plan, arena);
    auto of_d = [&](int64_t sample, int64_t g) {
      const Source s = c.d.sample(sample).at(g * plan.outputs * c.d.stride[1]);
      return Operand{s, &plan.d_pixels, &plan.d_runs, c.d.stride[1], plan.outputs};
    };
    auto of_x = [&](int64_t sample, int64_t g) {
      const Source s = c.x.sample(sample).at(g * plan.inputs * c.x.stride[1]);
      return Operand{s, &phase.pixels, &phase.runs, c.x.stride[1], plan.inputs};
    };
    Products weight;
    double bias = 0;
    for (int64_t g = 0; g < c.groups; ++g) {
      const Operand x = of_x(n, g);
      const bool last = g + 1 == c.groups;
      const Operand next = last ? of_d(n + 1 < c.samples() ? n + 1 : n, 0) : of_d(n, g + 1);
      bias += write_triangle(of_d(n, g), x, b, result.bias != nullptr, b.d);
      write_triangle(x, next, b, false, b.x);
      weight += multiply(b.x, b.d, count);
    }
    bool in_range = std::fabs(weight.norm) >= 1e-30 && std::fabs(weight.norm) <= 1e30;
    if (weight.norm == 0) {  // mostly because there is no gradient
      in_range = true;
      for (int64_t g = 0; g < c.groups && in_range; ++g) in_range = !any_of(of_d(n, g), b);
    }
    if (!in_range) {
      // Inner products may have left the range of a float although the norm does not.
      if (!gram_of<Algorithm>(sample_of(c, n), result_of(result, n), 1)) result.weight[n] = NAN;
      return;
    }
    if (result.bias != nullptr) result.bias[n] = static_cast<float>(bias);
    write_norm<Algorithm>(c, n, weight, result);
  });
}

}  // namespace
}  // namespace gradood
