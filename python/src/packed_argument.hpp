// Packed weights as arguments.
#pragma once

#include "arrays.hpp"
#include "fastffn/packed.hpp"

namespace fastffn::python {

struct PackedArray {
    Array array;
    PackedView view;
};

// A contiguous one-dimensional uint8 array of any kind. Plain weights, passed by mistake, get an error that says so.
void read_packed(const Call& call, const char* name, py::handle object, PackedArray* packed);

void register_weights(py::module_& module);

}  // namespace fastffn::python
