// Gram matrices with vector instructions; see gram_grid.h for what they are good for.
#pragma once

#include "direct.h"
#include "gram_pieces.h"

namespace gradood {
namespace {

struct VectorProducts {
  static constexpr double kLeast = 0.05;
  // The gradient itself, whose sums round as they do everywhere.
  static constexpr auto again = direct;

  float* triangle;

  VectorProducts(const Convolution&, const PhasePlan& plan, Arena& arena)
      : triangle(arena.take(triangle_floats(
            plan.pixel_count > plan.output_count ? plan.pixel_count : plan.output_count))) {}

  // Entries of a strip of a packed operand's matrix.
  template <class Strip>
  GRADOOD_INLINE static void write(const Strip& strip, const float* a, int64_t depth, float* to) {
    strip.template multiply<false>(a, depth, depth < kLongestSum ? depth : kLongestSum, to);
    for (int64_t k = kLongestSum; k < depth; k += kLongestSum)
      strip.template multiply<true>(a + k * kLanes, depth,
                                    depth - k < kLongestSum ? depth - k : kLongestSum, to);
  }

  Products product(const float* x, int64_t inputs, const float* d, int64_t outputs,
                   int64_t count) const {
    Products total;
    upper_strips(count, [&](auto strip) {
      alignas(64) float of_x[strip.floats], of_d[strip.floats];
      write(strip, x, inputs, of_x);
      write(strip, d, outputs, of_d);
      total += strip.products(of_x, of_d);
    });
    return total;
  }

  void square(bool, const float* a, int64_t depth, int64_t count, float* to) const {
    const int64_t pitch = round_up(count, kSquareUnit);
    float* entries = triangle;
    upper_strips(count, [&](auto strip) {
      write(strip, a, depth, entries);
      entries += strip.floats;
    });
    entries = triangle;
    upper_strips(count, [&](auto strip) {
      strip.each([&](int64_t row, int64_t column, auto read) {
        const Vector v = read(entries);
        const int64_t first = column * kLanes;
        if (first + kLanes > row) return store(to + row * pitch + first, v);
        for (int lane = 0; lane < kLanes; ++lane) to[(first + lane) * pitch + row] = v[lane];
      });
      entries += strip.floats;
    });
  }
};

bool gram(const Convolution& c, Result result, int64_t threads) {
  if (is_plain(c)) return gram_of_pieces<VectorProducts>(c, result, threads);
  return gram_of<VectorProducts>(c, result, threads);
}

}  // namespace
}  // namespace gradood
