// fff, fff_route and packed trees.
#pragma once

#include <pybind11/pybind11.h>

namespace fastffn::python {

void register_fff(pybind11::module_& module);

}  // namespace fastffn::python
