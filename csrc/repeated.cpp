#include "repeated.h"

namespace gradood {
namespace {

// Names of what a tensor is asked for.
struct Names {
  PyObject *dtype, *layout, *is_cpu, *is_neg, *shape, *stride, *data_ptr;
};
Names names;

// Whether an attribute is a value, or what a method returns is: 1, 0, or -1 with an exception.
int is(PyObject* t, PyObject* name, PyObject* value, bool method, bool identical) {
  PyObject* found =
      method ? PyObject_CallMethodObjArgs(t, name, nullptr) : PyObject_GetAttr(t, name);
  if (found == nullptr) return -1;
  const int same = identical ? found == value : PyObject_RichCompareBool(found, value, Py_EQ);
  Py_DECREF(found);
  return same;
}

// Whether a tensor lies in memory as (dtype, layout, shape, stride) say.
int lies_as(PyObject* t, PyObject* dtype, PyObject* layout, PyObject* shape, PyObject* stride) {
  int same = is(t, names.dtype, dtype, false, true);
  if (same == 1) same = is(t, names.is_cpu, Py_True, false, true);
  if (same == 1) same = is(t, names.layout, layout, false, true);
  if (same == 1) same = is(t, names.shape, shape, false, false);
  if (same == 1) same = is(t, names.stride, stride, true, false);
  if (same == 1) same = is(t, names.is_neg, Py_False, true, true);
  return same;
}

// Replaces numbers of a call that was made before by the addresses of other tensors.
bool place(PyObject* numbers, PyObject* slots, PyObject* tensors, bool* alike) {
  for (Py_ssize_t i = 0; i < PyTuple_Size(slots); ++i) {
    PyObject* slot = PyTuple_GetItem(slots, i);
    Py_ssize_t to, from;
    PyObject *dtype, *layout, *shape, *stride;
    if (!PyArg_ParseTuple(slot, "nnOOOO", &to, &from, &dtype, &layout, &shape, &stride))
      return false;
    PyObject* t = PyTuple_GetItem(tensors, from);
    if (t == nullptr) return false;
    const int same = lies_as(t, dtype, layout, shape, stride);
    if (same < 0) return false;
    *alike = same == 1;
    if (!*alike) return true;
    PyObject* address = PyObject_CallMethodObjArgs(t, names.data_ptr, nullptr);
    if (address == nullptr || PyTuple_SetItem(numbers, to, address) != 0) return false;
  }
  return true;
}

}  // namespace

bool make_names() {
  const char* words[] = {"dtype", "layout", "is_cpu", "is_neg", "shape", "stride", "data_ptr"};
  PyObject** to = &names.dtype;
  for (const char* word : words)
    if ((*to++ = PyUnicode_InternFromString(word)) == nullptr) return false;
  return true;
}

PyObject* again(PyObject*, PyObject* args) {
  PyObject *call, *known, *slots, *tensors, *last;
  if (!PyArg_ParseTuple(args, "OO!O!O!O!", &call, &PyTuple_Type, &known, &PyTuple_Type, &slots,
                        &PyTuple_Type, &tensors, &PyTuple_Type, &last))
    return nullptr;
  const Py_ssize_t size = PyTuple_Size(known), more = PyTuple_Size(last);
  PyObject* numbers = PyTuple_New(size + more);
  if (numbers == nullptr) return nullptr;
  for (Py_ssize_t i = 0; i < size + more; ++i) {
    PyObject* number = i < size ? PyTuple_GetItem(known, i) : PyTuple_GetItem(last, i - size);
    Py_INCREF(number);
    PyTuple_SetItem(numbers, i, number);
  }
  bool alike = true;
  PyObject* done = nullptr;
  if (place(numbers, slots, tensors, &alike)) {
    done = alike ? PyObject_CallObject(call, numbers) : Py_False;
    if (!alike) Py_INCREF(done);
  }
  Py_DECREF(numbers);
  if (done == nullptr || done == Py_False) return done;
  Py_DECREF(done);
  Py_RETURN_TRUE;
}

}  // namespace gradood
