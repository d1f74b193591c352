// moe.
#pragma once

#include <pybind11/pybind11.h>

namespace fastffn::python {

void register_moe(pybind11::module_& module);

}  // namespace fastffn::python
