// The numbers that Python gives to a kernel.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "tensor.h"

namespace gradood {

// Reads a tuple of integers front to back. The first failure sticks, as a Python exception.
class Reader {
 public:
  explicit Reader(PyObject* tuple) : tuple_(tuple), size_(PyTuple_Size(tuple)) {}

  int64_t integer() {
    PyObject* next = item();
    return next == nullptr ? 0 : PyLong_AsLongLong(next);
  }

  double real() {
    PyObject* next = item();
    return next == nullptr ? 0 : PyFloat_AsDouble(next);
  }

  // How many there are of something.
  int64_t positive() {
    const int64_t n = integer();
    require(n >= 1, "a size or count is not positive");
    return n;
  }

  // Of at least one T.
  template <class T>
  T* address(size_t alignment = alignof(T)) {
    const int64_t place = integer();
    require(place != 0, "an address is missing");
    require(place % static_cast<int64_t>(alignment) == 0, "an address is not aligned");
    return reinterpret_cast<T*>(place);
  }

  // The same, or null.
  template <class T>
  T* address_or_null() {
    const int64_t place = integer();
    require(place % static_cast<int64_t>(alignof(T)) == 0, "an address is not aligned");
    return reinterpret_cast<T*>(place);
  }

  void integers(int64_t* to, int count, int64_t least) {
    for (int i = 0; i < count; ++i) {
      to[i] = integer();
      require(to[i] >= least, "a size or stride is too small");
    }
  }

  Tensor tensor(int dimensions) {
    Tensor t = tensor_or_null(dimensions);
    require(t.data != nullptr, "an address is missing");
    for (int i = 0; i < dimensions; ++i) require(t.size[i] >= 1, "a tensor is empty");
    return t;
  }

  Tensor tensor_or_null(int dimensions) {
    Tensor t{};
    const int64_t place = integer(), dtype = integer();
    require(dtype >= 0 && dtype <= 2, "a dtype is not known");
    t.dtype = static_cast<Dtype>(dtype);
    require(place % (t.dtype == Dtype::float32 ? 4 : 2) == 0, "an address is not aligned");
    t.data = reinterpret_cast<const char*>(place);
    integers(t.size, dimensions, 0);
    integers(t.stride, dimensions, 0);
    return t;
  }

  Result result() {
    Result r;
    r.weight = address<float>();
    r.bias = address_or_null<float>();
    return r;
  }

  void require(bool fits, const char* what) {
    if (!fits && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, what);
  }

  // The number of threads, which comes last.
  int64_t threads() {
    const int64_t n = positive();
    done();
    return n;
  }

  void done() {
    if (next_ < size_ && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "too many numbers");
  }

 private:
  PyObject* item() {
    if (PyErr_Occurred()) return nullptr;
    if (next_ < size_) return PyTuple_GetItem(tuple_, next_++);
    PyErr_SetString(PyExc_TypeError, "too few numbers");
    return nullptr;
  }

  PyObject* tuple_;
  Py_ssize_t size_, next_ = 0;
};

}  // namespace gradood
