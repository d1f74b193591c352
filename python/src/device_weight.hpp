// DeviceWeight: packed weights in the memory of a CUDA device, with a copy of their header that the host can read without
// waiting for the device.
#pragma once

#include "arrays.hpp"
#include "fastffn/cuda.hpp"

namespace fastffn::python {

struct DeviceWeight {
    PackedHeader header;
    py::object array;  // the uint8 array on the device, of any framework
    py::object owner;  // what it exported, which keeps `view` valid
    PackedView view;   // of it; view.header is set by device_weight()
    int device = 0;
};

// The weight that an argument is, or nullptr for any other object. Fast: one comparison of types.
const DeviceWeight* device_weight(PyObject* object);

// The number of the CUDA device that an array lies on; -1: on none. Managed memory is a device's where CUDA is available. Errors name
// the operation and the argument.
int cuda_device_of(const char* operation, const char* name, py::handle array);

// The stream of a call: what `stream=` says (an int as __dlpack__ takes it, or an object with __cuda_stream__), else the one that
// the framework of x works on, else the legacy default stream.
CudaStream call_stream(const char* operation, PyObject* stream, py::handle x, int device);
// What `workspace=` brings, nullptr for none: a contiguous array of bytes on the call's device, aligned to 256 bytes.
void read_workspace(const Call& call, PyObject* workspace, CudaStream* stream);
// The number by which __dlpack__ knows it.
long long dlpack_stream(CudaStream stream);

void register_device_weights(py::module_& module);

}  // namespace fastffn::python
