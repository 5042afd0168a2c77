// gradood._cpu: the kernels for Python, on the stable ABI. A tensor is a tuple of integers
// (address, dtype, sizes …, strides …); results are written to given addresses of float32.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"
#include "votes.h"

namespace gradood {
namespace {

const Kernels* kernels = nullptr;

// Reads a tuple of integers front to back. The first failure sticks, as a Python exception.
class Reader {
 public:
  explicit Reader(PyObject* tuple) : tuple_(tuple), size_(PyTuple_Size(tuple)) {}

  int64_t integer() {
    if (next_ >= size_) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "too few integers");
      return 0;
    }
    return PyLong_AsLongLong(PyTuple_GetItem(tuple_, next_++));
  }

  template <class T>
  T* address() {
    return reinterpret_cast<T*>(integer());
  }

  void integers(int64_t* to, int count) {
    for (int i = 0; i < count; ++i) to[i] = integer();
  }

  Tensor tensor(int dimensions) {
    Tensor t{};
    t.data = address<const char>();
    t.dtype = static_cast<Dtype>(integer());
    integers(t.size, dimensions);
    integers(t.stride, dimensions);
    return t;
  }

  Result result() {
    Result r;
    r.weight = address<float>();
    r.bias = address<float>();
    return r;
  }

  double real() {
    if (next_ >= size_) return static_cast<double>(integer());
    return PyFloat_AsDouble(PyTuple_GetItem(tuple_, next_++));
  }

 private:
  PyObject* tuple_;
  Py_ssize_t size_, next_ = 0;
};

// Runs a kernel without the interpreter's lock.
template <class Call>
PyObject* run(Call call) {
  if (PyErr_Occurred()) return nullptr;
  if (kernels == nullptr) {
    PyErr_SetString(PyExc_RuntimeError, "call select() first");
    return nullptr;
  }
  bool done;
  Py_BEGIN_ALLOW_THREADS;
  done = call();
  Py_END_ALLOW_THREADS;
  if (!done) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

using ConvolutionKernel = bool (*Kernels::*)(const Convolution&, Result, int64_t);

template <ConvolutionKernel kernel>
PyObject* convolution(PyObject*, PyObject* args) {
  Reader read(args);
  Convolution c;
  c.x = read.tensor(5);
  c.d = read.tensor(5);
  read.integers(c.kernel, 3);
  read.integers(c.stride, 3);
  read.integers(c.padding, 3);
  read.integers(c.dilation, 3);
  c.groups = read.integer();
  const Result result = read.result();
  const int64_t threads = read.integer();
  return run([&] { return (kernels->*kernel)(c, result, threads); });
}

PyObject* outer(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor x = read.tensor(3), d = read.tensor(3);
  const Result result = read.result();
  const int64_t threads = read.integer();
  return run([&] { return kernels->outer(x, d, result, threads); });
}

PyObject* batch_norm(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor x = read.tensor(3), d = read.tensor(3);
  const float* mean = read.address<const float>();
  const float* rstd = read.address<const float>();
  const float* scale = read.address<const float>();
  const Tensor to = read.tensor(3);
  const Result result = read.result();
  const int64_t threads = read.integer();
  return run([&] { return kernels->batch_norm(x, d, mean, rstd, scale, to, result, threads); });
}

PyObject* layer_norm(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor x = read.tensor(3), d = read.tensor(3);
  const double eps = read.real();
  const bool rms = read.integer() != 0;
  const Result result = read.result();
  const int64_t threads = read.integer();
  return run([&] { return kernels->layer_norm(x, d, eps, rms, result, threads); });
}

PyObject* layer_norm_backward(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor x = read.tensor(3), d = read.tensor(3);
  const float* scale = read.address<const float>();
  const double eps = read.real();
  const bool rms = read.integer() != 0;
  const Tensor to = read.tensor(3);
  const Result result = read.result();
  const int64_t threads = read.integer();
  return run(
      [&] { return kernels->layer_norm_backward(x, d, scale, eps, rms, to, result, threads); });
}

PyObject* group_norm(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor x = read.tensor(3), d = read.tensor(3);
  const int64_t groups = read.integer();
  const double eps = read.real();
  const Result result = read.result();
  const int64_t threads = read.integer();
  return run([&] { return kernels->group_norm(x, d, groups, eps, result, threads); });
}

PyObject* embedding(PyObject*, PyObject* args) {
  Reader read(args);
  const int64_t* indices = read.address<const int64_t>();
  const Tensor d = read.tensor(3);
  const int64_t padding = read.integer();
  float* result = read.address<float>();
  const int64_t threads = read.integer();
  return run([&] { return kernels->embedding(indices, d, padding, result, threads); });
}

PyObject* bias(PyObject*, PyObject* args) {
  Reader read(args);
  const Tensor d = read.tensor(3);
  float* result = read.address<float>();
  const int64_t threads = read.integer();
  return run([&] { return kernels->bias(d, result, threads); });
}

PyObject* noisy_batch(PyObject*, PyObject* args) {
  Reader read(args);
  NoisyBatch b;
  b.x = read.address<const float>();
  b.channels = read.integer();
  b.elements = read.integer();
  b.copies = read.integer();
  b.rows = read.address<const int64_t>();
  b.inputs = read.address<const int64_t>();
  b.samples = read.address<const int64_t>();
  b.seed = static_cast<uint64_t>(read.integer());
  b.tag = static_cast<uint32_t>(read.integer());
  b.sigma = static_cast<float>(read.real());
  b.low = static_cast<float>(read.real());
  b.high = static_cast<float>(read.real());
  b.mean = read.address<const float>();
  b.rstd = read.address<const float>();
  b.out = read.address<void>();
  b.bfloat16 = read.integer() != 0;
  b.channels_last = read.integer() != 0;
  const int64_t threads = read.integer();
  return run([&] { return (*kernels->noisy_batch)(b, threads); });
}

PyObject* grid_batch(PyObject*, PyObject* args) {
  Reader read(args);
  NoisyBatch b;
  b.x = read.address<const float>();
  b.channels = read.integer();
  b.elements = read.integer();
  b.copies = read.integer();
  b.rows = read.address<const int64_t>();
  b.inputs = read.address<const int64_t>();
  b.samples = read.address<const int64_t>();
  b.seed = static_cast<uint64_t>(read.integer());
  b.tag = static_cast<uint32_t>(read.integer());
  b.exact_sigma = read.real();
  b.levels = read.real();
  b.low = static_cast<float>(read.real());
  b.high = static_cast<float>(read.real());
  b.out = read.address<void>();
  b.bfloat16 = read.integer() != 0;
  b.channels_last = read.integer() != 0;
  const int64_t threads = read.integer();
  return run([&] { return (*kernels->noisy_batch)(b, threads); });
}

PyObject* vote_count(PyObject*, PyObject* args) {
  Reader read(args);
  const Vote mode = static_cast<Vote>(read.integer());
  Votes v;
  v.values = read.address<const float>();
  v.rows = read.address<const int64_t>();
  v.copies = read.integer();
  v.width = read.integer();
  v.thresholds = read.address<const float>();
  v.threshold_count = read.integer();
  v.counts = read.address<int64_t>();
  v.columns = read.integer();
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
    {"noisy_batch", noisy_batch, METH_VARARGS, nullptr},
    {"grid_batch", grid_batch, METH_VARARGS, nullptr},
    {"vote_count", vote_count, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_cpu", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace gradood

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&gradood::definition); }
