// fastffn._core: the compiled half of the Python package.
#include <pybind11/pybind11.h>

#include <exception>

#include "calls.hpp"
#include "device_tree.hpp"
#include "device_weight.hpp"
#include "errors.hpp"
#include "fff.hpp"
#include "hadamard.hpp"
#include "machine.hpp"
#include "moe.hpp"
#include "owned_array.hpp"
#include "packed_argument.hpp"
#include "route.hpp"
#include "sparse24.hpp"
#include "torch_entry.hpp"

namespace py = pybind11;

PYBIND11_MODULE(_core, module) {
    using namespace fastffn::python;
    py::register_local_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const PythonError&) {
            set_python_error();
        }
    });
    register_machine(module);
    register_owned_array(module);
    register_weights(module);
    register_device_weights(module);
    register_device_trees(module);
    register_calls(module);
    register_moe(module);
    register_routes(module);
    register_fff(module);
    register_sparse24(module);
    register_torch_entry(module);
    register_hadamard(module);
}
