// Calls the kernels of csrc/ without Python: what `module.cpp` asks of it is faked here, so that
// the same entry points run under an emulator of another processor.
//
//     run CALLS RESULTS    (see emulated.py for both files)
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "repeated.h"

namespace {

struct Number : PyObject {
  int64_t integer = 0;
  double real = 0;
};

struct Tuple : PyObject {
  std::vector<Number> items;
};

const char* error = nullptr;
PyModuleDef* module = nullptr;

template <class T>
T read(std::FILE* file) {
  T value;
  if (std::fread(&value, sizeof value, 1, file) != 1) std::exit(3);
  return value;
}

std::string read_bytes(std::FILE* file) {
  std::string bytes(read<uint64_t>(file), '\0');
  if (!bytes.empty() && std::fread(&bytes[0], bytes.size(), 1, file) != 1) std::exit(3);
  return bytes;
}

PyCFunction method(const std::string& name) {
  for (PyMethodDef* m = module->m_methods; m->ml_name != nullptr; ++m)
    if (name == m->ml_name) return m->ml_meth;
  std::fprintf(stderr, "no kernel %s\n", name.c_str());
  std::exit(3);
}

}  // namespace

// Of tensors of Python's; there are none here.
namespace gradood {
bool make_names() { return true; }
PyObject* again(PyObject*, PyObject*) { return nullptr; }
}  // namespace gradood

extern "C" {
PyObject _Py_NoneStruct;
PyObject *PyExc_RuntimeError, *PyExc_TypeError, *PyExc_ValueError;

PyObject* PyErr_Occurred() { return error == nullptr ? nullptr : &_Py_NoneStruct; }
void PyErr_SetString(PyObject*, const char* said) { error = said; }
PyObject* PyErr_Format(PyObject*, const char* said, ...) {
  error = said;
  return nullptr;
}
PyObject* PyErr_NoMemory() {
  error = "no memory";
  return nullptr;
}
PyThreadState* PyEval_SaveThread() { return nullptr; }
void PyEval_RestoreThread(PyThreadState*) {}
double PyFloat_AsDouble(PyObject* number) { return static_cast<Number*>(number)->real; }
long long PyLong_AsLongLong(PyObject* number) { return static_cast<Number*>(number)->integer; }
Py_ssize_t PyTuple_Size(PyObject* tuple) {
  return static_cast<Py_ssize_t>(static_cast<Tuple*>(tuple)->items.size());
}
PyObject* PyTuple_GetItem(PyObject* tuple, Py_ssize_t i) {
  return &static_cast<Tuple*>(tuple)->items[static_cast<size_t>(i)];
}
PyObject* PyModule_Create2(PyModuleDef* definition, int) {
  module = definition;
  return &_Py_NoneStruct;
}
PyObject* PyUnicode_FromString(const char*) { return &_Py_NoneStruct; }
PyMODINIT_FUNC PyInit__cpu();

int PyArg_ParseTuple(PyObject*, const char* format, ...) {  // of `select` alone
  std::va_list given;
  va_start(given, format);
  *va_arg(given, const char**) = "auto";
  va_end(given);
  return 1;
}
}  // extern "C"

int main(int count, char** arguments) {
  if (count != 3) return 3;
  std::FILE *in = std::fopen(arguments[1], "rb"), *out = std::fopen(arguments[2], "wb");
  if (in == nullptr || out == nullptr) return 3;
  PyInit__cpu();
  method("select")(nullptr, nullptr);
  for (uint64_t calls = read<uint64_t>(in); calls > 0; --calls) {
    const std::string name = read_bytes(in);
    std::vector<std::string> buffers(read<uint64_t>(in));
    std::vector<void*> memory;
    for (std::string& bytes : buffers) {
      bytes = read_bytes(in);
      memory.push_back(std::aligned_alloc(64, bytes.size() / 64 * 64 + 64));
      std::memcpy(memory.back(), bytes.data(), bytes.size());
    }
    Tuple numbers;
    numbers.items.resize(read<uint64_t>(in));
    for (Number& number : numbers.items) {
      const int64_t buffer = read<int64_t>(in);
      number.integer = read<int64_t>(in);
      number.real = read<double>(in);
      if (buffer >= 0) number.integer += reinterpret_cast<int64_t>(memory[buffer]);
    }
    error = nullptr;
    method(name)(nullptr, &numbers);
    if (error != nullptr) std::fprintf(stderr, "%s: %s\n", name.c_str(), error);
    if (error != nullptr) return 4;
    for (size_t i = 0; i < buffers.size(); ++i) {
      std::fwrite(memory[i], buffers[i].size(), 1, out);
      std::free(memory[i]);
    }
  }
  return std::fclose(out) == 0 ? 0 : 3;
}
