#pragma once

#include <pybind11/pybind11.h>

namespace fastffn::python {

void register_sparse24(pybind11::module_& module);

}  // namespace fastffn::python
