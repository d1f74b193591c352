// How this module reports errors: any function may throw; the module's entry points turn it into a Python exception.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "fastffn/status.hpp"

namespace fastffn::python {

struct PythonError {
    PyObject* type;  // a builtin exception: borrowed
    std::string message;
};

[[noreturn]] inline void raise(PyObject* type, std::string message) { throw PythonError{type, std::move(message)}; }

// Throws the Python exception that a failed Status stands for.
void check(const Status& status);

// Throws `type` with `message` and the first line of the reason, which is `cause`; `cause` stays attached. A cause that is no
// Exception is thrown itself.
[[noreturn]] void raise_from(PyObject* type, std::string message, pybind11::error_already_set& cause);

// The same status with the name of the operation that the Python caller used: `from` is the prefix to replace, "" to
// add.
Status renamed(const Status& status, const std::string& from, const std::string& to);

// Turns the C++ exception in flight into a Python exception. Call inside a catch block.
void set_python_error() noexcept;

}  // namespace fastffn::python
