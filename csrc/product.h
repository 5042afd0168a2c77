// ‖Σ_t d_t x_tᵀ‖² where x and d stand side by side in memory, position by position: linear layers
// and kernels of size one. Channels of one of them are lanes, packed unless they are adjacent, and
// those of the other are rows, each number of which is read where it stands; or positions are the
// lanes, where both have them adjacent.
//
// P · Q · T multiply-adds a sample. Positions are cut into chunks whose part of a group of rows and
// of one of lanes stays in L1; sums over chunks are kept in L2.
#pragma once

#include <algorithm>

#include "columns.h"
#include "parallel.h"
#include "tile.h"

namespace gradood {
namespace {

// Tiles of narrower vectors make less use of a cache line, and do better with packed ones.
constexpr bool kWide = kLanes >= 16;

// Floats in memory: channels `channel` apart, positions `position` apart.
struct Floats {
  const float* data;
  int64_t channel, position;

  Floats at(int64_t c, int64_t t) const {
    return {data + c * channel + t * position, channel, position};
  }
};

// Calls visit(first row, constant number of rows) for groups of rows of nearly the same height.
template <int Most, class Visit>
GRADOOD_INLINE void row_groups(int64_t rows, Visit visit) {
  const int64_t groups = (rows + Most - 1) / Most;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t first = rows * i / groups, height = rows * (i + 1) / groups - first;
    auto choose = [&](auto self, auto tall) {
      constexpr int kTall = decltype(tall)::value;
      if constexpr (kTall > 1)
        if (height < kTall) return self(self, std::integral_constant<int, kTall - 1>());
      visit(first, tall);
    };
    choose(choose, std::integral_constant<int, Most>());
  }
}

// sum[r][c] += Σ_t rows[r][t] · lanes[c][t] for vectors c of lanes, the last having `rest` of them.
//
// Registers: all sums, a row of vectors of lanes, one broadcast.
template <int Columns, int Rows>
GRADOOD_INLINE void accumulate_rows(const Floats& rows, const Floats& lanes, int64_t positions,
                                    int64_t rest, Tile<Columns, Rows>& tile) {
  const float *row = rows.data, *lane = lanes.data;
  for (int64_t t = 0; t < positions; ++t) {
    Vector v[Columns];
#pragma GCC unroll 8
    for (int c = 0; c < Columns - 1; ++c) v[c] = load(lane + c * lanes.channel);
    const float* last = lane + (Columns - 1) * lanes.channel;
    v[Columns - 1] = kWide ? load_first(last, rest) : load(last);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      Vector b = broadcast(row[r * rows.channel]);
      hold_in_registers(b, v);
#pragma GCC unroll 8
      for (int c = 0; c < Columns; ++c) tile.sum[r][c] += b * v[c];
    }
    row += rows.position;
    lane += lanes.position;
  }
}

constexpr int kInnerWide = 4, kInnerTall = std::min(4, kLanes / kInnerWide);  // sums: lanes

// Σ_t a[i][t] · b[j][t] into lane i · wide + j, for adjacent positions.
//
// Registers: all sums, a column of vectors of b, one of a. L1: a. b streams from L2. Rows that come
// next are asked for on the way, evenly, so that memory is never waited for: one of a, all of b.
template <int Tall, int Wide>
GRADOOD_INLINE Vector inner_products(const Floats& a, const Floats& b, int64_t positions,
                                     const float* next_a, bool next_b) {
  Vector sum[kLanes] = {};
  auto add = [&](auto read, int64_t t) {
    Vector v[Wide];
    __builtin_prefetch(next_a + t);
#pragma GCC unroll 4
    for (int j = 0; j < Wide; ++j) {
      v[j] = read(b.data + j * b.channel + t);
      if (next_b) __builtin_prefetch(b.data + (j + Wide) * b.channel + t);
    }
#pragma GCC unroll 4
    for (int i = 0; i < Tall; ++i) {
      const Vector u = read(a.data + i * a.channel + t);
#pragma GCC unroll 4
      for (int j = 0; j < Wide; ++j) sum[i * kInnerWide + j] += u * v[j];
    }
  };
  int64_t t = 0;
  for (; t + kLanes <= positions; t += kLanes) add([](const float* p) { return load(p); }, t);
  if (t < positions) add([=](const float* p) { return load_first(p, positions - t); }, t);
  return add_all_lanes(sum);
}

// Sums over chunks, in the order in which a chunk makes them.
struct ChunkSums {
  float* partial;
  bool first, last;
  double total = 0;

  template <int Columns, int Rows>
  GRADOOD_INLINE void take(Tile<Columns, Rows>& tile) {
    if (!first) tile.add(partial);
    last ? void(total += tile.squared()) : tile.write(partial);
    partial += Columns * Rows * kLanes;
  }
};

// One of x and d.
struct Side {
  const Offsets* channels;
  Dtype dtype;
  int64_t offset, position;  // elements to the first position, and from one to the next

  int64_t count() const { return static_cast<int64_t>(channels->size()); }
  int64_t vectors() const { return blocks_of_lanes(count()); }
  int64_t channel() const { return count() > 1 ? (*channels)[1] - (*channels)[0] : 1; }
  bool fills_lanes() const { return kWide && dtype == Dtype::float32 && channel() == 1; }
  bool makes_rows() const { return dtype == Dtype::float32 && (kWide || position == 1); }
  Floats floats(const Source& s) const {
    return {reinterpret_cast<const float*>(s.data) + offset, channel(), position};
  }
};

// Which of x and d is rows and which is lanes, by counts of vector operations; nothing `serves`
// where a kernel has several taps, or positions lie at several distances.
struct ProductPlan {
  enum Form { none, x_lanes, d_lanes, inner } form = none;
  Side x, d;
  int64_t positions, chunk = 1;

  ProductPlan(const Convolution& c, const DirectPlan& plan)
      : x{&plan.x_lanes, c.x.dtype, plan.blocks[0].x[0].offset, plan.blocks[0].x[0].step},
        d{&plan.d_lanes, c.d.dtype, plan.blocks[0].d[0].offset, plan.blocks[0].d[0].step},
        positions(c.d.size[2] * c.d.size[3] * c.d.size[4]) {
    bool even = x.offset >= 0 && plan.blocks[0].taps.size() == 1;
    int64_t before = 0;
    auto goes_on = [&](const Runs& runs, const Side& side) {
      return runs.size() == 1 && runs[0].offset == side.offset + before * side.position &&
             (runs[0].step == side.position || runs[0].count == 1);
    };
    for (const Block& b : plan.blocks) {
      even = even && goes_on(b.x, x) && goes_on(b.d, d);
      before += b.d_positions;
    }
    if (even) choose();
  }

  bool packed() const {
    return (form == x_lanes && !x.fills_lanes()) || (form == d_lanes && !d.fills_lanes());
  }
  int64_t sums() const {  // floats
    if (form == x_lanes) return x.vectors() * d.count() * kLanes;
    if (form == d_lanes) return d.vectors() * x.count() * kLanes;
    auto groups = [](int64_t rows, int most) { return (rows + most - 1) / most; };
    return groups(x.count(), kInnerWide) * groups(d.count(), kInnerWide) * kLanes;
  }

 private:
  void choose() {
    auto cost = [](const Side& lanes, const Side& rows) -> double {
      const double pack = lanes.fills_lanes() ? 0 : lanes.channel() == 1 ? 2 : 8;
      return rows.makes_rows() ? lanes.vectors() * (rows.count() + pack) : 1e300;
    };
    double least = std::min(cost(x, d), cost(d, x));
    if (least < 1e300) form = cost(d, x) < cost(x, d) ? d_lanes : x_lanes;
    const bool adjacent = x.position == 1 && d.position == 1 && x.makes_rows() && d.makes_rows();
    const double pair = 1.0 / kLanes + 3.0 / std::min<int64_t>(positions, kLongestSum);
    if (kWide && adjacent && pair * x.count() * d.count() < least) form = inner;
    const int64_t most = form == inner ? kLongestSum : 160;
    const int64_t pieces = (positions + most - 1) / most;
    chunk = (positions + pieces - 1) / pieces;
  }
};

// Squared norm of one group's gradient.
//
// Loop order: a group of vectors of lanes stays put while all rows pass by it.
inline double multiply_lanes(const Side& side, const Source& lane_source, const Side& other,
                             const Source& row_source, const ProductPlan& plan, float* packed,
                             float* partial) {
  double total = 0;
  for (int64_t t = 0; t < plan.positions; t += plan.chunk) {
    const int64_t count = std::min(plan.chunk, plan.positions - t);
    const Floats rows = other.floats(row_source).at(0, t);
    Floats lanes{packed, count * kLanes, kLanes};  // from vector to vector
    if (packed != nullptr) {
      const Run run{side.offset + t * side.position, side.position, count};
      for (int64_t l = 0; l < side.count(); l += kLanes)
        pack_run(lane_source, side.channels->data() + l,
                 std::min<int64_t>(kLanes, side.count() - l), run, packed + l * count);
    } else {
      const Floats there = side.floats(lane_source);
      lanes = {there.at(0, t).data, kLanes, there.position};
    }
    ChunkSums sums{partial, t == 0, t + count == plan.positions};
    column_groups(side.vectors(), [&](int64_t column, auto width) {
      constexpr int kWidth = decltype(width)::value;
      const int64_t end = (column + kWidth) * kLanes;
      const int64_t rest = packed || end <= side.count() ? kLanes : side.count() % kLanes;
      row_groups<kRows>(other.count(), [&](int64_t row, auto tall) {
        Tile<kWidth, decltype(tall)::value> tile;
        tile.clear();
        accumulate_rows(rows.at(row, 0), lanes.at(column, 0), count, rest, tile);
        sums.take(tile);
      });
    });
    total += sums.total;
  }
  return total;
}

// The same with positions as lanes. The loop without is over whichever has more channels.
inline double multiply_inner(const Source& x, const Source& d, const ProductPlan& plan,
                             float* partial) {
  double total = 0;
  const bool x_first = plan.x.count() > plan.d.count();
  const Side &many = x_first ? plan.x : plan.d, &few = x_first ? plan.d : plan.x;
  for (int64_t t = 0; t < plan.positions; t += plan.chunk) {
    const int64_t count = std::min(plan.chunk, plan.positions - t);
    const Floats as = many.floats(x_first ? x : d).at(0, t);
    const Floats bs = few.floats(x_first ? d : x).at(0, t);
    ChunkSums sums{partial, t == 0, t + count == plan.positions};
    row_groups<kInnerTall>(many.count(), [&](int64_t i, auto tall) {
      row_groups<kInnerWide>(few.count(), [&](int64_t j, auto wide) {
        const int64_t next = i + kInnerTall + j / kInnerWide % kInnerTall;
        Tile<1, 1> tile;
        tile.sum[0][0] = inner_products<decltype(tall)::value, decltype(wide)::value>(
            as.at(i, 0), bs.at(j, 0), count, as.at(next, 0).data, i == 0);
        sums.take(tile);
      });
    });
    total += sums.total;
  }
  return total;
}

bool product(const Convolution& c, const ProductPlan& plan, Result result, int64_t threads) {
  const bool x_lanes = plan.form == ProductPlan::x_lanes, packs = plan.packed();
  const Side &side = x_lanes ? plan.x : plan.d, &other = x_lanes ? plan.d : plan.x;
  const int64_t packed_floats = packs ? side.vectors() * plan.chunk * kLanes : 0;
  Arena size{nullptr};
  size.take(packed_floats);
  size.take(plan.chunk < plan.positions ? plan.sums() : 0);
  return for_each_sample(c.samples(), threads, size.used, [&](int64_t n, float* memory) {
    Arena arena{memory};
    float *packed = arena.take(packed_floats), *partial = arena.take(0);
    double weight = 0;
    for (int64_t g = 0; g < c.groups; ++g) {
      const Source x = c.x.sample(n).at(g * plan.x.count() * c.x.stride[1]);
      const Source d = c.d.sample(n).at(g * plan.d.count() * c.d.stride[1]);
      weight += plan.form == ProductPlan::inner
                    ? multiply_inner(x, d, plan, partial)
                    : multiply_lanes(side, x_lanes ? x : d, other, x_lanes ? d : x, plan,
                                     packs ? packed : nullptr, partial);
    }
    result.weight[n] = static_cast<float>(weight);
    if (result.bias == nullptr) return;
    const View all{c.d.sample(n).at(plan.d.offset), c.d.stride[1], plan.d.position};
    result.bias[n] = static_cast<float>(sum_squares(all, c.d.size[1], plan.positions));
  });
}

}  // namespace
}  // namespace gradood
