// Array arguments: any kind of Python array becomes a TensorView without a copy.
//
//   NumPy                 its array struct (also carries ml_dtypes' bfloat16, which neither buffers nor DLPack export)
//   torch.Tensor          DLPack's C exchange API, for exactly this type and Parameter
//   other torch tensors   detached, then as below
//   anything else         __dlpack__, else the buffer protocol
//
// Everything here runs with the GIL held.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "fastffn/tensor.hpp"
#include "third_party/dlpack_abi.hpp"

namespace fastffn::python {

namespace py = pybind11;

enum class Kind : std::uint8_t { numpy, torch, torch_slow, other };

// What is known about an array type; looked up once per type.
struct TypeEntry {
    PyTypeObject* type;
    Kind kind;
    bool masked;                          // numpy.ma: refused, as ignoring the mask would be wrong
    const dlpack::ExchangeApi* exchange;  // for Kind::torch
};
const TypeEntry& type_entry(PyTypeObject* type);

enum class Role : std::uint8_t {
    input,   // read; must not carry gradients
    weight,  // read once into a format: may be a Parameter that requires grad
    packed,  // bytes
    output,  // written
};

// One call from Python: names its errors.
struct Call {
    const char* operation;
    bool on_device = false;  // arrays on CUDA devices are taken, and no others
    long long stream = 1;    // then: the stream that arrays must be ready on, as __dlpack__ takes it
    int device = 0;          // and the device's number; -1: any
    // What torch's tensors need to know once per call; -1: not yet asked.
    mutable std::int8_t records_gradients = -1;
    mutable std::int8_t forward_mode = -1;
};

struct Array {
    TensorView view;
    Kind kind = Kind::other;
    dlpack::Device device{dlpack::device_cpu, 0};
    py::object owner;  // keeps the memory where the argument alone does not
};

// `name` is what errors call the argument. Fills `array` where it lies: an Array is large, and three moves of one are
// felt in a call of 0.5 µs.
void read_array(const Call& call, const char* name, py::handle object, Role role, Array* array);

// A DLTensor as a view; throws for devices, dtypes and layouts that fastffn does not take.
void read_dltensor(const Call& call, const char* name, const dlpack::Tensor& tensor, Array* array);

// "float32 array of shape (2, 3)", for errors.
std::string describe(const TensorView& view);

std::string type_name(py::handle object);

}  // namespace fastffn::python
