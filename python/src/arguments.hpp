// Arguments of functions registered as METH_FASTCALL | METH_KEYWORDS: pybind11's own way of passing keywords costs more
// than a small layer (measured 213 ns against 35).
#pragma once

#include <Python.h>

#include <cstddef>

namespace fastffn::python {

constexpr std::size_t max_parameters = 24;

struct Parameters {
    const char* function;
    const char* names[max_parameters];  // ends with nullptr
    int required;                       // the first ones, which have no default
    int positional;                     // the first ones, which may be passed by position; the others by keyword only
    PyObject* interned[max_parameters] = {};

    // The same with one more keyword at the end: slots have a place more.
    Parameters with(const char* name) const;

    // Fills slots[i] with the borrowed argument called names[i], or nullptr where none was passed.
    void bind(PyObject* const* args, Py_ssize_t count, PyObject* keywords, PyObject** slots);
};

}  // namespace fastffn::python
