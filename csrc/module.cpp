// gradood._cpu: the kernels for Python, on the stable ABI. A tensor is a tuple of integers
// (address, dtype, sizes …, strides …); results are written to given addresses of float32. Where an
// address leads cannot be seen from here; all else that would make a kernel read or write outside
// of what it was given is an exception.
#include <exception>
#include <memory>
#include <new>

#include "kernels.h"
#include "reader.h"
#include "repeated.h"
#include "votes.h"

namespace gradood {
namespace {

const Kernels* kernels = nullptr;

// Runs a kernel without the interpreter's lock. Tables for absurd sizes do not fit into memory:
// what the library throws then must not leave here.
template <class Call>
PyObject* run(Call call) {
  if (PyErr_Occurred()) return nullptr;
  if (kernels == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "call select() first");
    return nullptr;
  }
  bool done;
  Py_BEGIN_ALLOW_THREADS;
  try {
    done = call();
  } catch (const std::exception&) {
    done = false;
  }
  Py_END_ALLOW_THREADS;
  if (!done) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

bool same(const Tensor& a, const Tensor& b, int dimensions) {
  for (int i = 0; i < dimensions; ++i)
    if (a.size[i] != b.size[i]) return false;
  return true;
}

// x and the gradient d of a layer that works on every sample alone.
struct Pair {
  Tensor x, d;

  explicit Pair(Reader& read) : x(read.tensor(3)), d(read.tensor(3)) {
    read.require(same(x, d, 3), "x and its gradient differ in size");
  }
};

// A kernel of size k reads x at `i * stride - padding + dilation * (0 … k - 1)`, which must not lie
// beyond x and its padding for any i of d.
bool reaches(const Convolution& c) {
  for (int a = 0; a < 3; ++a) {
    const int64_t last = (c.d.size[2 + a] - 1) * c.stride[a] + c.dilation[a] * (c.kernel[a] - 1);
    if (last >= c.x.size[2 + a] + 2 * c.padding[a]) return false;
  }
  return true;
}

using ConvolutionKernel = bool (*Kernels::*)(const Convolution&, Result, int64_t);

template <ConvolutionKernel kernel>
PyObject* convolution(PyObject*, PyObject* args) {
  Reader read(args);
  Convolution c;
  c.x = read.tensor(5);
  c.d = read.tensor(5);
  read.integers(c.kernel, 3, 1);
  read.integers(c.stride, 3, 1);
  read.integers(c.padding, 3, 0);
  read.integers(c.dilation, 3, 1);
  c.groups = read.positive();
  if (c.groups > 0)
    read.require(c.x.size[1] % c.groups == 0 && c.d.size[1] % c.groups == 0,
                 "groups do not divide the channels");
  read.require(c.x.size[0] == c.d.size[0] && reaches(c), "x and its gradient do not fit");
  const Result result = read.result();
  const int64_t threads = read.threads();
  return run([&] { return (kernels->*kernel)(c, result, threads); });
}

PyObject* outer(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor x = read.tensor(3), d = read.tensor(3);
  read.require(same(x, d, 2), "x and its gradient differ in size");
  const Result result = read.result();
  const int64_t threads = read.threads();
  return run([&] { return kernels->outer(x, d, result, threads); });
}

PyObject* batch_norm(PyObject*, PyObject* args) {
  Reader read(args);
  const Pair pair(read);
  BatchNorm layer{};
  layer.mean = read.address<const float>();
  layer.variance = read.address<const float>();
  layer.weight = read.address_or_null<const float>();
  layer.eps = read.real();
  const Tensor to = read.tensor_or_null(3);
  read.require(to.data == nullptr || same(to, pair.d, 3), "a result differs in size");
  read.require(to.dtype != Dtype::float16, "no kernel writes float16");
  const Result result = read.result();
  const int64_t threads = read.threads();
  return run([&] {
    const int64_t channels = pair.x.size[1];
    const std::unique_ptr<float[]> memory(new (std::nothrow) float[2 * channels]);
    if (memory == nullptr) return false;
    float *rstd = memory.get(), *scale = rstd + channels;
    for (int64_t c = 0; c < channels; ++c) {
      rstd[c] = layer.rstd(c);
      scale[c] = layer.scale(c);
    }
    return kernels->batch_norm(pair.x, pair.d, layer.mean, rstd, to.data ? scale : nullptr, to,
                               result, threads);
  });
}

PyObject* layer_norm(PyObject*, PyObject* args) {
  Reader read(args);
  const Pair pair(read);
  const double eps = read.real();
  const bool rms = read.integer() != 0;
  const Result result = read.result();
  const int64_t threads = read.threads();
  return run([&] { return kernels->layer_norm(pair.x, pair.d, eps, rms, result, threads); });
}

PyObject* layer_norm_backward(PyObject*, PyObject* args) {
  Reader read(args);
  const Pair pair(read);
  const float* scale = read.address<const float>();
  const double eps = read.real();
  const bool rms = read.integer() != 0;
  const Tensor to = read.tensor(3);
  read.require(same(to, pair.x, 3), "a result differs in size");
  read.require(to.dtype != Dtype::float16, "no kernel writes float16");
  const Result result = read.result();
  const int64_t threads = read.threads();
  return run([&] {
    return kernels->layer_norm_backward(pair.x, pair.d, scale, eps, rms, to, result, threads);
  });
}

PyObject* group_norm(PyObject*, PyObject* args) {
  Reader read(args);
  const Pair pair(read);
  const int64_t groups = read.positive();
  if (groups > 0) read.require(pair.x.size[1] % groups == 0, "groups do not divide the channels");
  const double eps = read.real();
  const Result result = read.result();
  const int64_t threads = read.threads();
  return run([&] { return kernels->group_norm(pair.x, pair.d, groups, eps, result, threads); });
}

PyObject* embedding(PyObject*, PyObject* args) {
  Reader read(args);
  const int64_t* indices = read.address<const int64_t>();
  const Tensor d = read.tensor(3);
  const int64_t padding = read.integer();
  float* result = read.address<float>();
  const int64_t threads = read.threads();
  return run([&] { return kernels->embedding(indices, d, padding, result, threads); });
}

PyObject* bias(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor d = read.tensor(3);
  float* result = read.address<float>();
  const int64_t threads = read.threads();
  return run([&] { return kernels->bias(d, result, threads); });
}

PyObject* channel_sums(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor a = read.tensor(3);
  float* result = read.address<float>();
  const int64_t threads = read.threads();
  return run([&] { return kernels->channel_sums(a, BatchNorm{}, result, threads); });
}

PyObject* batch_norm_sums(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor a = read.tensor(3);
  const bool rows = a.stride[2] == 1 && a.stride[1] == a.size[2];
  const bool columns = a.stride[1] == 1 && a.stride[2] == a.size[1];
  const bool dense = a.stride[0] == a.size[1] * a.size[2] && (rows || columns);
  read.require(a.dtype == Dtype::float32 && dense, "such a layout is not written");
  BatchNorm layer;
  layer.mean = read.address<const float>();
  layer.variance = read.address<const float>();
  layer.weight = read.address_or_null<const float>();
  layer.bias = read.address_or_null<const float>();
  layer.eps = read.real();
  layer.to = read.address<float>();
  float* result = read.address<float>();
  const int64_t threads = read.threads();
  return run([&] { return kernels->channel_sums(a, layer, result, threads); });
}

PyObject* noisy_batch(PyObject*, PyObject* args) {
  Reader read(args);
  NoisyBatch b;
  b.x = read.address<const float>();
  b.channels = read.positive();
  b.elements = read.positive();
  b.copies = read.positive();
  b.rows = read.address<const int64_t>();
  b.inputs = read.address<const int64_t>();
  b.samples = read.address<const int64_t>();
  b.seed = static_cast<uint64_t>(read.integer());
  b.tag = static_cast<uint32_t>(read.integer());
  b.sigma = static_cast<float>(read.real());
  b.low = static_cast<float>(read.real());
  b.high = static_cast<float>(read.real());
  b.mean = read.address_or_null<const float>();
  b.rstd = read.address_or_null<const float>();
  read.require((b.mean == nullptr) == (b.rstd == nullptr), "a mean goes with a deviation");
  b.out = read.address<void>(2);
  b.bfloat16 = read.integer() != 0;
  b.channels_last = read.integer() != 0;
  const int64_t threads = read.threads();
  return run([&] { return (*kernels->noisy_batch)(b, threads); });
}

PyObject* grid_batch(PyObject*, PyObject* args) {
  Reader read(args);
  NoisyBatch b;
  b.x = read.address<const float>();
  b.channels = read.positive();
  b.elements = read.positive();
  b.copies = read.positive();
  b.rows = read.address<const int64_t>();
  b.inputs = read.address<const int64_t>();
  b.samples = read.address<const int64_t>();
  b.seed = static_cast<uint64_t>(read.integer());
  b.tag = static_cast<uint32_t>(read.integer());
  b.exact_sigma = read.real();
  b.levels = read.real();
  b.low = static_cast<float>(read.real());
  b.high = static_cast<float>(read.real());
  b.out = read.address<void>(2);
  b.bfloat16 = read.integer() != 0;
  b.channels_last = read.integer() != 0;
  const int64_t threads = read.threads();
  return run([&] { return (*kernels->noisy_batch)(b, threads); });
}

// Of counts, beside the last one, for NaN.
int64_t columns(const Votes& v, Vote mode) {
  if (mode == Vote::argmax) return v.width;
  return v.threshold_count + (mode == Vote::histogram);
}

PyObject* vote_count(PyObject*, PyObject* args) {
  Reader read(args);
  const int64_t number = read.integer();
  read.require(number >= 0 && number <= 2, "a mode is not known");
  const Vote mode = static_cast<Vote>(number);
  Votes v;
  v.values = read.address<const float>();
  v.rows = read.address<const int64_t>();
  v.copies = read.positive();
  v.width = read.positive();
  v.thresholds = read.address_or_null<const float>();
  v.threshold_count = read.integer();
  v.counts = read.address<int64_t>();
  v.columns = read.positive();
  read.done();
  read.require(v.threshold_count >= 0 && (v.threshold_count == 0 || v.thresholds != nullptr),
               "thresholds are missing");
  read.require(v.columns == columns(v, mode) + 1, "the counts have other columns");
  return run([&] {
    count_votes(v, mode);
    return true;
  });
}

PyObject* select(PyObject*, PyObject* args) {
  const char* name;
  if (!PyArg_ParseTuple(args, "s", &name)) return nullptr;
  const char* error;
  const Kernels* chosen = choose_kernels(name, &error);
  if (chosen == nullptr) return PyErr_Format(PyExc_ValueError, "%s: %s", name, error);
  kernels = chosen;
  return PyUnicode_FromString(chosen->isa);
}

PyMethodDef methods[] = {
    {"select", select, METH_VARARGS,
     "select(isa): use the kernels for an instruction set, or for 'auto' the best; its name."},
    {"again", again, METH_VARARGS,
     "again(call, numbers, slots, tensors, last): call(*numbers, *last), with addresses of "
     "tensors\n"
     "in place of some numbers; False, and nothing is called, where one lies otherwise. A slot is\n"
     "(place of the number, place of the tensor, dtype, layout, shape, stride)."},
    {"direct", convolution<&Kernels::direct>, METH_VARARGS, nullptr},
    {"gram", convolution<&Kernels::gram>, METH_VARARGS, nullptr},
    {"depthwise", convolution<&Kernels::depthwise>, METH_VARARGS, nullptr},
    {"outer", outer, METH_VARARGS, nullptr},
    {"batch_norm", batch_norm, METH_VARARGS, nullptr},
    {"layer_norm", layer_norm, METH_VARARGS, nullptr},
    {"layer_norm_backward", layer_norm_backward, METH_VARARGS, nullptr},
    {"group_norm", group_norm, METH_VARARGS, nullptr},
    {"embedding", embedding, METH_VARARGS, nullptr},
    {"bias", bias, METH_VARARGS, nullptr},
    {"channel_sums", channel_sums, METH_VARARGS, nullptr},
    {"batch_norm_sums", batch_norm_sums, METH_VARARGS, nullptr},
    {"noisy_batch", noisy_batch, METH_VARARGS, nullptr},
    {"grid_batch", grid_batch, METH_VARARGS, nullptr},
    {"vote_count", vote_count, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_cpu", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace gradood

PyMODINIT_FUNC PyInit__cpu() {
  return gradood::make_names() ? PyModule_Create(&gradood::definition) : nullptr;
}
