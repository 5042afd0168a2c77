#include "geometry.h"

#include <algorithm>

namespace gradood {
namespace {

// A kernel of size one without padding reads every stride-th input: take that into the strides.
Convolution fold_strides(Convolution c) {
  for (int a = 0; a < 3; ++a) {
    if (c.kernel[a] != 1 || c.padding[a] != 0) continue;
    c.x.stride[2 + a] *= c.stride[a];
    c.x.size[2 + a] = c.d.size[2 + a];
    c.stride[a] = 1;
  }
  return c;
}

// Calls visit(i, j, k) for every point of a box, the last axis fastest.
template <class Visit>
void each_point(const int64_t start[3], const int64_t count[3], Visit visit) {
  for (int64_t i = start[0]; i < start[0] + count[0]; ++i)
    for (int64_t j = start[1]; j < start[1] + count[1]; ++j)
      for (int64_t k = start[2]; k < start[2] + count[2]; ++k) visit(i, j, k);
}

constexpr int64_t kOrigin[3] = {0, 0, 0};

// Elements at the points of a box; −1 outside of the tensor.
Offsets elements(const Tensor& t, const int64_t start[3], const int64_t count[3]) {
  Offsets offsets;
  auto inside = [&](int axis, int64_t i) { return i >= 0 && i < t.size[2 + axis]; };
  each_point(start, count, [&](int64_t i, int64_t j, int64_t k) {
    const bool there = inside(0, i) && inside(1, j) && inside(2, k);
    offsets.push_back(there ? i * t.stride[2] + j * t.stride[3] + k * t.stride[4] : -1);
  });
  return offsets;
}

// Joins offsets at even distances; zeros stay among themselves.
Runs compress(const Offsets& offsets) {
  Runs runs;
  for (int64_t offset : offsets) {
    Run* last = runs.empty() ? nullptr : &runs.back();
    if (last == nullptr || (offset < 0) != (last->offset < 0)) {
      runs.push_back({offset, 0, 1});
    } else if (offset < 0 || offset == last->offset + last->count * last->step) {
      ++last->count;
    } else if (last->count == 1) {
      last->step = offset - last->offset;
      ++last->count;
    } else {
      runs.push_back({offset, 0, 1});
    }
  }
  return runs;
}

Inside inside_of(const Offsets& pixels) {
  Offsets inside;
  Inside result;
  for (int64_t cell = 0; cell < static_cast<int64_t>(pixels.size()); ++cell)
    if (pixels[cell] >= 0) {
      inside.push_back(pixels[cell]);
      result.cells.push_back(cell);
    }
  result.runs = compress(inside);
  return result;
}

// `cells` increases: one cell for each pixel, in the order of packing.
Stretches stretches(const Offsets& cells) {
  Stretches result;
  for (int64_t i = 0; i < static_cast<int64_t>(cells.size()); ++i) {
    if (!result.empty() && cells[i] == result.back().cell + result.back().count)
      ++result.back().count;
    else
      result.push_back({i, cells[i], 1});
  }
  return result;
}

Block make_block(const Convolution& c, int axis, int64_t begin, int64_t end) {
  Block b{};
  int64_t d_start[3] = {}, x_start[3], extent[3];
  for (int a = 0; a < 3; ++a) b.count[a] = c.d.size[2 + a];
  d_start[axis] = begin;
  b.count[axis] = end - begin;
  for (int a = 0; a < 3; ++a) {
    x_start[a] = d_start[a] * c.stride[a] - c.padding[a];
    extent[a] = (b.count[a] - 1) * c.stride[a] + (c.kernel[a] - 1) * c.dilation[a] + 1;
  }
  const int64_t pitch[3] = {extent[1] * extent[2], extent[2], 1};
  for (int a = 0; a < 3; ++a) b.step[a] = pitch[a] * c.stride[a];
  b.d_positions = b.count[0] * b.count[1] * b.count[2];
  b.x_positions = extent[0] * pitch[0];
  b.d = compress(elements(c.d, d_start, b.count));
  const Offsets pixels = elements(c.x, x_start, extent);
  b.x = compress(pixels);
  b.inside = inside_of(pixels);
  each_point(kOrigin, c.kernel, [&](int64_t i, int64_t j, int64_t k) {
    b.taps.push_back(i * c.dilation[0] * pitch[0] + j * c.dilation[1] * pitch[1] +
                     k * c.dilation[2]);
  });
  return b;
}

// Rows are (channel, tap) pairs: planes of x, each of which outputs see from another corner on.
void walk_pairs(Block& b, int64_t inputs) {
  Offsets corners;
  each_point(kOrigin, b.count, [&](int64_t i, int64_t j, int64_t k) {
    corners.push_back(i * b.step[0] + j * b.step[1] + k * b.step[2]);
  });
  b.corners = compress(corners);
  for (int64_t i = 0; i < inputs; ++i)
    for (int64_t tap : b.taps) b.pairs.push_back(i * b.x_positions + tap);
}

// Lanes hold channels: every tap of a block of channels is a column. Axes that are walked at an
// even pace are merged, so that the innermost loop is long.
void walk_channels(Block& b, int64_t channel_blocks) {
  for (int64_t v = 0; v < channel_blocks; ++v)
    for (int64_t tap : b.taps) b.columns.push_back(v * b.x_positions + tap);
  for (int a = 1; a >= 0; --a) {
    if (b.count[2] == 1) b.step[2] = b.step[a];
    if (b.count[a] > 1 && b.count[2] > 1 && b.step[a] != b.count[2] * b.step[2]) break;
    b.count[2] *= b.count[a];
    b.count[a] = 1;
  }
}

}  // namespace

DirectPlan::DirectPlan(const Convolution& original, bool depthwise, int64_t lanes, int64_t limit) {
  const Convolution c = fold_strides(original);
  auto vectors = [&](int64_t count) { return (count + lanes - 1) / lanes; };
  inputs = depthwise ? lanes : c.inputs();
  outputs = depthwise ? c.d.size[1] : c.outputs();
  taps = c.taps();
  pairs = 4 * vectors(inputs * c.taps()) <= 3 * vectors(inputs) * c.taps();
  d_vectors = depthwise ? 1 : vectors(outputs);
  x_vectors = vectors(inputs) * c.taps();
  for (int64_t p = 0; p < outputs; ++p) d_lanes.push_back(p * c.d.stride[1]);
  if (depthwise)
    for (int64_t p = 0; p < outputs; ++p) x_lanes.push_back(p / c.outputs() * c.x.stride[1]);
  else
    for (int64_t i = 0; i < inputs; ++i) x_lanes.push_back(i * c.x.stride[1]);

  int axis = 0;
  while (axis < 2 && c.d.size[2 + axis] == 1) ++axis;
  int64_t x_slice = c.stride[axis], d_slice = 1;
  for (int a = axis + 1; a < 3; ++a) {
    d_slice *= c.d.size[2 + a];
    x_slice *= (c.d.size[2 + a] - 1) * c.stride[a] + (c.kernel[a] - 1) * c.dilation[a] + 1;
  }
  const int64_t x_floats = pairs ? inputs : vectors(inputs) * lanes;
  const int64_t fitting = limit / (x_slice * x_floats + d_slice * d_vectors * lanes);
  const int64_t most = std::max<int64_t>(1, std::min(fitting, 8 * kLongestSum / d_slice));
  const int64_t length = c.d.size[2 + axis], pieces = (length + most - 1) / most;
  d_positions = x_positions = 0;
  for (int64_t i = 0; i < pieces; ++i) {
    blocks.push_back(make_block(c, axis, length * i / pieces, length * (i + 1) / pieces));
    Block& b = blocks.back();
    pairs ? walk_pairs(b, inputs) : walk_channels(b, vectors(inputs));
    d_positions = std::max(d_positions, b.d_positions);
    x_positions = std::max(x_positions, b.x_positions);
  }
}

DirectPlan::~DirectPlan() = default;

bool WinogradPlan::pays(const Convolution& original, int64_t lanes) {
  const Convolution c = fold_strides(original);
  bool serves = c.kernel[0] == 1 && c.padding[0] == 0;
  for (int a = 0; a < 3; ++a) serves = serves && c.stride[a] == 1;
  for (int a = 1; a < 3; ++a) serves = serves && c.kernel[a] == 3 && c.dilation[a] == 1;
  if (!serves) return false;
  auto vectors = [&](int64_t count) { return (count + lanes - 1) / lanes; };
  auto tiles = [&](int a) { return (c.d.size[2 + a] + kTile - 1) / kTile; };
  const int64_t x = vectors(c.inputs()), d = vectors(c.outputs()), rows = c.outputs();
  const int64_t pixels = c.d.size[2] * c.d.size[3] * c.d.size[4];
  const int64_t products = kProducts * rows * x, there = 330 * x + 240 * d, back = 200 * rows * x;
  const int64_t channels = x * c.taps(), pairs = vectors(c.inputs() * c.taps());
  const bool few = 4 * pairs <= 3 * channels;  // as DirectPlan has it
  const int64_t direct = few ? c.inputs() * c.taps() * d : rows * channels;
  return c.d.size[2] * tiles(1) * tiles(2) * (products + there) + back < pixels * direct;
}

WinogradPlan::WinogradPlan(const Convolution& original, int64_t lanes, int64_t limit) {
  const Convolution c = fold_strides(original);
  auto vectors = [&](int64_t count) { return (count + lanes - 1) / lanes; };
  auto tiles_of = [&](int a) { return (c.d.size[2 + a] + kTile - 1) / kTile; };
  inputs = c.inputs();
  outputs = c.outputs();
  d_vectors = vectors(outputs);
  x_vectors = vectors(inputs);
  for (int64_t p = 0; p < outputs; ++p) d_lanes.push_back(p * c.d.stride[1]);
  for (int64_t i = 0; i < inputs; ++i) x_lanes.push_back(i * c.x.stride[1]);
  width = tiles_of(2);
  const int64_t length = tiles_of(1);
  const int64_t fitting = limit / (width * kProducts * (d_vectors + x_vectors) * lanes);
  const int64_t longest = 8 * kLongestSum / (width * kTile * kTile);
  const int64_t most = std::max<int64_t>(1, std::min(fitting, longest));
  const int64_t pieces = (length + most - 1) / most;
  Tensor seen = c.x;  // pixels that no output sees may be no numbers
  for (int a = 1; a < 3; ++a)
    seen.size[2 + a] = std::min(seen.size[2 + a], c.d.size[2 + a] + 2 - c.padding[a]);
  tiles = 0;
  for (int64_t plane = 0; plane < c.d.size[2]; ++plane)
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t first = length * i / pieces, rows = length * (i + 1) / pieces - first;
      const int64_t d_start[3] = {plane, first * kTile, 0};
      const int64_t d_count[3] = {1, rows * kTile, width * kTile};
      const int64_t x_start[3] = {plane, d_start[1] - c.padding[1], -c.padding[2]};
      const int64_t x_count[3] = {1, d_count[1] + 2, d_count[2] + 2};
      strips.push_back({rows, inside_of(elements(c.d, d_start, d_count)),
                        inside_of(elements(seen, x_start, x_count))});
      tiles = std::max(tiles, rows * width);
    }
  positions = (tiles / width * kTile + 2) * (width * kTile + 2);
}

WinogradPlan::~WinogradPlan() = default;

PhasePlan::PhasePlan(const Convolution& original) {
  const Convolution c = fold_strides(original);
  inputs = c.inputs();
  outputs = c.outputs();
  d_channels = {{0, c.d.stride[1], outputs}};
  x_channels = {{0, c.x.stride[1], inputs}};
  int64_t extent[3];
  for (int a = 0; a < 3; ++a)
    extent[a] = c.d.size[2 + a] + (c.kernel[a] - 1) * c.dilation[a] / c.stride[a];
  const int64_t pitch[3] = {extent[1] * extent[2], extent[2], 1};
  auto phase_of = [&](int64_t i, int64_t j, int64_t k) {
    return ((i % c.stride[0]) * c.stride[1] + j % c.stride[1]) * c.stride[2] + k % c.stride[2];
  };
  auto cell_of = [&](int64_t i, int64_t j, int64_t k) {
    return i / c.stride[0] * pitch[0] + j / c.stride[1] * pitch[1] + k / c.stride[2];
  };
  cells = extent[0] * pitch[0];
  d_pixels = elements(c.d, kOrigin, c.d.size + 2);
  d_runs = compress(d_pixels);
  output_count = static_cast<int64_t>(d_pixels.size());
  Offsets output_cells;
  each_point(kOrigin, c.d.size + 2, [&](int64_t i, int64_t j, int64_t k) {
    output_cells.push_back(i * pitch[0] + j * pitch[1] + k);
  });
  d_cells = stretches(output_cells);
  output_end = output_cells.back() + 1;
  phases.resize(c.stride[0] * c.stride[1] * c.stride[2]);
  std::vector<Offsets> phase_cells(phases.size());
  each_point(kOrigin, c.kernel, [&](int64_t i, int64_t j, int64_t k) {
    const int64_t a0 = i * c.dilation[0], a1 = j * c.dilation[1], a2 = k * c.dilation[2];
    phases[phase_of(a0, a1, a2)].shifts.push_back(cell_of(a0, a1, a2));
  });
  int64_t seen[3];  // input pixels along each axis that some output sees
  for (int a = 0; a < 3; ++a)
    seen[a] = std::min(c.x.size[2 + a], extent[a] * c.stride[a] - c.padding[a]);
  each_point(kOrigin, seen, [&](int64_t i, int64_t j, int64_t k) {
    const int64_t a0 = i + c.padding[0], a1 = j + c.padding[1], a2 = k + c.padding[2];
    const int64_t phase = phase_of(a0, a1, a2);
    phases[phase].pixels.push_back(i * c.x.stride[2] + j * c.x.stride[3] + k * c.x.stride[4]);
    phase_cells[phase].push_back(cell_of(a0, a1, a2));
  });
  pixel_count = 0;
  for (size_t i = 0; i < phases.size(); ++i) {
    phases[i].runs = compress(phases[i].pixels);
    phases[i].cells = stretches(phase_cells[i]);
    pixel_count = std::max<int64_t>(pixel_count, phases[i].pixels.size());
  }
  auto useless = [](const Phase& phase) { return phase.shifts.empty() || phase.pixels.empty(); };
  phases.erase(std::remove_if(phases.begin(), phases.end(), useless), phases.end());
}

PhasePlan::~PhasePlan() = default;

}  // namespace gradood
