// The routers.
#pragma once

#include <pybind11/pybind11.h>

namespace fastffn::python {

void register_routes(pybind11::module_& module);

}  // namespace fastffn::python
