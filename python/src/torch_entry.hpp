// The functions of fastffn.torch: those of fastffn, but what torch traces, records or batches goes to a Python function that
// was registered for the operation, which calls the registered operator. The plain case pays two questions, some 40 ns.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "arguments.hpp"
#include "errors.hpp"

namespace fastffn::python {

// Whether torch has to see the call: a dispatch mode (fake tensors, make_fx) or autocast. torch.jit.trace, which torch has
// deprecated, is not asked for (70 ns): the modules do that.
bool torch_watches();

// Hands a call over: the pending Python error if there is one, the arguments. Raises that error where nothing is registered.
PyObject* hand_over(const char* operation, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept;

// The width that the caller expects of a result, where it is given as the keyword out_features.
void check_out_features(const char* operation, PyObject* expected, std::int64_t width);

// `call` is bound to slots and run; the last slot, after the operation's own, is out_features.
template <class Run>
PyObject* torch_call(const char* operation, Parameters& parameters, PyObject** slots, PyObject* const* args,
                     Py_ssize_t count, PyObject* keywords, Run run) noexcept {
    try {
        if (!torch_watches()) {
            parameters.bind(args, count, keywords, slots);
            return run();
        }
    } catch (...) {
        set_python_error();
    }
    return hand_over(operation, args, count, keywords);
}

void register_torch_entry(pybind11::module_& module);

}  // namespace fastffn::python
