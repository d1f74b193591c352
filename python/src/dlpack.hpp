// Reading arrays through DLPack: the C exchange API where a type has one, else the __dlpack__ method.
#pragma once

#include "arrays.hpp"

namespace fastffn::python {

// The exchange table of an array type, or nullptr.
const dlpack::ExchangeApi* exchange_api(PyTypeObject* type);

// Through the object's __dlpack__ method, in either capsule version.
void read_dlpack(const Call& call, const char* name, py::handle object, Role role, Array* array);

// Whether arrays of this package are immutable, though their capsules do not say so (measured: jax 0.10).
bool is_immutable(py::handle object);

// What the object's __dlpack_device__ says. Errors name the operation and the argument.
dlpack::Device dlpack_device(const char* operation, const char* name, py::handle object);

// Throws for memory that a CPU cannot address, naming the device.
void check_device(const Call& call, const char* name, dlpack::Device device);

}  // namespace fastffn::python
