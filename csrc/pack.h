// Copies any layout and dtype into float32 blocks whose lanes a kernel can load as one vector.
#pragma once

#include "geometry.h"
#include "vector.h"

namespace gradood {
namespace {

constexpr int64_t kBlockFloats = 1 << 18;  // packed at once: half of an L2 of 2 MB

GRADOOD_INLINE float widen_one(const Source& s) {
  if (s.dtype == Dtype::float32) return *reinterpret_cast<const float*>(s.data);
  Halves h{};
  h[0] = *reinterpret_cast<const uint16_t*>(s.data);
  return s.dtype == Dtype::bfloat16 ? widen_bfloat16(h)[0] : widen_float16(h)[0];
}

template <Vector (*Widen)(Halves)>
inline void widen_row(const char* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, Widen(load_as<Halves>(in + 2 * i)));
  if (i == count) return;
  Halves rest{};
  std::memcpy(&rest, in + 2 * i, 2 * (count - i));
  store_first(out + i, Widen(rest), count - i);
}

// Numbers that a kernel writes: float32 or bfloat16.
struct Sink {
  char* data;
  Dtype dtype;

  Sink at(int64_t offset) const {
    return {data + offset * (dtype == Dtype::float32 ? 4 : 2), dtype};
  }

  void put(Vector v, int64_t count) const {
    if (dtype == Dtype::float32) {
      float* to = reinterpret_cast<float*>(data);
      return count == kLanes ? store(to, v) : store_first(to, v, count);
    }
    const Halves h = narrow_bfloat16(v);
    std::memcpy(data, &h, 2 * count);
  }
};

// A sample that is written instead of read.
inline Sink sink_of(const Tensor& t, int64_t n) {
  return {const_cast<char*>(t.sample(n).data), t.dtype};
}

GRADOOD_INLINE void copy_floats(const float* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(in + i));
  if (i < count) store_first(out + i, load_first(in + i, count - i), count - i);
}

// Asks for a row that is needed soon: the hardware follows no stream across the end of a page.
GRADOOD_INLINE void prefetch_row(const float* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(row + i);
}

template <int... I>
GRADOOD_INLINE Vector even_lanes(Vector a, Vector b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I)...);
}

// The first `count` ≤ lanes of every second number; reads nothing beyond the last of them.
GRADOOD_INLINE Vector load_even(const float* p, int64_t count) {
  const int64_t span = 2 * count - 1;
  const Vector low = span >= kLanes ? load(p) : load_first(p, span);
  const Vector high = span > kLanes ? load_first(p + kLanes, span - kLanes) : Vector{};
  return even_lanes(low, high, std::make_integer_sequence<int, kLanes>());
}

// out[i] = source[i · stride]
inline void copy_row(const Source& s, int64_t stride, int64_t count, float* out) {
  if (stride == 1 && s.dtype == Dtype::float32) {
    copy_floats(reinterpret_cast<const float*>(s.data), count, out);
  } else if (stride == 1 && s.dtype == Dtype::bfloat16) {
    widen_row<widen_bfloat16>(s.data, count, out);
  } else if (stride == 1) {
    widen_row<widen_float16>(s.data, count, out);
  } else if (stride == 2 && s.dtype == Dtype::float32) {
    const float* in = reinterpret_cast<const float*>(s.data);
    for (int64_t i = 0; i < count; i += kLanes) {
      const int64_t rest = count - i < kLanes ? count - i : kLanes;
      const Vector v = load_even(in + 2 * i, rest);
      rest == kLanes ? store(out + i, v) : store_first(out + i, v, rest);
    }
  } else if (s.dtype == Dtype::float32) {
    const float* in = reinterpret_cast<const float*>(s.data);
    for (int64_t i = 0; i < count; ++i) out[i] = in[i * stride];
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = widen_one(s.at(i * stride));
  }
}

// The numbers source[i · stride] as adjacent floats: where they stand if they are, else copied.
inline const float* row_of(const Source& s, int64_t stride, int64_t count, float* buffer) {
  if (s.dtype == Dtype::float32 && (stride == 1 || count == 1))
    return reinterpret_cast<const float*>(s.data);
  copy_row(s, stride, count, buffer);
  return buffer;
}

// place(i)[0 … lanes] = source[lane_offsets + step · i] for one vector of at most `kLanes` lanes.
template <class Place>
inline void pack_run_to(const Source& s, const int64_t* lanes, int64_t width, const Run& run,
                        Place place) {
  bool adjacent = true;
  for (int64_t i = 1; i < width; ++i) adjacent &= lanes[i] == lanes[0] + i;
  if (adjacent) {
    float buffer[kLanes];
    for (int64_t i = 0; i < run.count; ++i) {
      const float* row = row_of(s.at(lanes[0] + run.offset + i * run.step), 1, width, buffer);
      store(place(i), width == kLanes ? load(row) : load_first(row, width));
    }
    return;
  }
  const bool in_place = s.dtype == Dtype::float32 && run.step == 1 && width == kLanes;
  for (int64_t i = 0; i < run.count; i += kLanes) {  // one transposition in registers
    const int64_t count = run.count - i < kLanes ? run.count - i : kLanes;
    Vector rows[kLanes];
    if (in_place && count == kLanes) {
      const float* start = reinterpret_cast<const float*>(s.data) + run.offset + i;
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) rows[lane] = load(start + lanes[lane]);
      transpose(rows);
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) store(place(i + lane), rows[lane]);
      continue;
    }
    float buffer[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      rows[lane] = Vector{};
      if (lane >= width) continue;
      const Source start = s.at(lanes[lane] + run.offset + i * run.step);
      const float* row = row_of(start, run.step, count, buffer);
      rows[lane] = count == kLanes ? load(row) : load_first(row, count);
    }
    transpose(rows);
    for (int lane = 0; lane < count; ++lane) store(place(i + lane), rows[lane]);
  }
}

// The same, one vector after another.
inline void pack_run(const Source& s, const int64_t* lanes, int64_t width, const Run& run,
                     float* out) {
  pack_run_to(s, lanes, width, run, [=](int64_t i) { return out + i * kLanes; });
}

// The same of pixels inside of an image; the zeros around them are there already.
inline void pack_inside(const Source& s, const int64_t* lanes, int64_t width, const Inside& inside,
                        float* out) {
  const int64_t* cells = inside.cells.data();
  for (const Run& run : inside.runs) {
    pack_run_to(s, lanes, width, run, [=](int64_t i) { return out + cells[i] * kLanes; });
    cells += run.count;
  }
}

// out[l / lanes][position][l % lanes] = source[lane_offsets[l] + offset of position], the last
// block of lanes filled with zeros.
inline void pack_lanes(const Source& s, const int64_t* lane_offsets, int64_t lane_count,
                       const Runs& runs, float* out) {
  for (int64_t l = 0; l < lane_count; l += kLanes) {
    const int64_t width = lane_count - l < kLanes ? lane_count - l : kLanes;
    for (const Run& run : runs) {
      if (run.offset < 0)
        std::memset(out, 0, kLanes * run.count * sizeof(float));
      else
        pack_run(s, lane_offsets + l, width, run, out);
      out += kLanes * run.count;
    }
  }
}

// out[position] = source[offset of position]
inline void pack_row(const Source& s, const Runs& runs, float* out) {
  for (const Run& run : runs) {
    if (run.offset < 0)
      std::memset(out, 0, run.count * sizeof(float));
    else
      copy_row(s.at(run.offset), run.step, run.count, out);
    out += run.count;
  }
}

// sums[lane] += Σ_position packed[position][lane]
inline void add_positions(const float* packed, int64_t positions, float* sums) {
  Vector total[4] = {};
  int64_t i = 0;
  for (; i + 4 <= positions; i += 4)
    for (int u = 0; u < 4; ++u) total[u] += load(packed + (i + u) * kLanes);
  for (; i < positions; ++i) total[0] += load(packed + i * kLanes);
  store(sums, load(sums) + ((total[0] + total[1]) + (total[2] + total[3])));
}

// Σ a² of numbers whose squares may not fit a float.
inline double squares(const float* a, int64_t count) {
  constexpr int kHalf = kLanes / 2;
  using Floats = VectorOf<float, kHalf>::Type;
  using Doubles = VectorOf<double, kHalf>::Type;
  Doubles total[2] = {};
  const int64_t whole = count - count % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int u = 0; u < 2; ++u) {
      const Doubles v = __builtin_convertvector(load_as<Floats>(a + i + u * kHalf), Doubles);
      total[u] += v * v;
    }
  double rest = 0;
  for (int64_t i = whole; i < count; ++i) rest += static_cast<double>(a[i]) * a[i];
  total[0] += total[1];
  for (int u = 0; u < kHalf; ++u) rest += total[0][u];
  return rest;
}

constexpr int64_t blocks_of_lanes(int64_t count) { return (count + kLanes - 1) / kLanes; }

}  // namespace
}  // namespace gradood
