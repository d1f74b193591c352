// Machine report, threads and kernels in use.
#pragma once

#include <pybind11/pybind11.h>

namespace fastffn::python {

void register_machine(pybind11::module_& module);

}  // namespace fastffn::python
