// A call of a kernel that is made again, with other tensors that lie in memory in the same way.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace gradood {

// Before the first `again`; false with a Python exception.
bool make_names();

// See its words in `module.cpp`.
PyObject* again(PyObject*, PyObject* args);

}  // namespace gradood
