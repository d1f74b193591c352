// DeviceTree: a packed tree in the memory of a CUDA device, with a copy of its header that the host can read without waiting for the
// device.
#pragma once

#include "arrays.hpp"
#include "fastffn/cuda.hpp"

namespace fastffn::python {

struct DeviceTree {
    DeviceTreeHeader header;
    py::object array;  // the uint8 array on the device, of any framework
    const void* data = nullptr;
    std::int64_t bytes = 0;
    int device = 0;

    // Valid as long as this object.
    PackedView view() const { return {data, bytes, header.as_header()}; }
};

// The tree that an argument is, or nullptr for any other object. Fast: one comparison of types.
const DeviceTree* device_tree(PyObject* object);

void register_device_trees(py::module_& module);

}  // namespace fastffn::python
