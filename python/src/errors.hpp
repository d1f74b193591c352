// How this module reports errors: any function may throw; the module's entry points turn it into a Python exception.
#pragma once

#include <Python.h>

#include <string>
#include <utility>

#include "fastffn/status.hpp"

namespace fastffn::python {

struct PythonError {
    PyObject* type;  // a builtin exception: borrowed
    std::string message;
};

[[noreturn]] inline void raise(PyObject* type, std::string message) {
    throw PythonError{type, std::move(message)};
}

// Throws the Python exception that a failed Status stands for.
void check(const Status& status);

// Throws `type` with `message`; a Python exception that is set becomes its cause.
[[noreturn]] void raise_from_current(PyObject* type, const std::string& message);

// Turns the C++ exception in flight into a Python exception. Call inside a catch block.
void set_python_error() noexcept;

}  // namespace fastffn::python
