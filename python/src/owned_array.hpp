// OwnedArray: memory of our own, for results whose framework cannot be asked for an array.
#pragma once

#include <cstdint>
#include <memory>

#include "arrays.hpp"

namespace fastffn::python {

// `bytes` of memory on a cache line, uninitialised.
std::shared_ptr<std::byte> allocate_aligned(std::int64_t bytes);

// Exports DLPack (both capsule versions) and, where the dtype has a buffer format, the buffer protocol.
struct OwnedArray {
    std::shared_ptr<std::byte> memory;
    TensorView view;  // contiguous
};

OwnedArray make_owned(DType dtype, int ndim, const std::int64_t* shape);

void register_owned_array(py::module_& module);

}  // namespace fastffn::python
