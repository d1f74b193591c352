// hadamard and quantize in the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace fastffn::python {

void register_hadamard(pybind11::module_& module);

}  // namespace fastffn::python
