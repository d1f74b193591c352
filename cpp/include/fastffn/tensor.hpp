// DType and TensorView: how arrays reach the library. A view owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "fastffn/dtype.hpp"

namespace fastffn {

const char* dtype_name(DType dtype) noexcept;    // "f32", "bf16", …
std::int64_t dtype_bytes(DType dtype) noexcept;  // bytes of one element

constexpr int max_dims = 8;

// A strided n-dimensional array in CPU memory. Strides count elements. The data pointer needs no alignment.
struct TensorView {
    void* data = nullptr;
    DType dtype = DType::f32;
    int ndim = 0;
    std::int64_t shape[max_dims] = {};
    std::int64_t strides[max_dims] = {};

    TensorView() = default;
    // Row-major, contiguous.
    TensorView(void* data, DType dtype, std::initializer_list<std::int64_t> shape);
    TensorView(const void* data, DType dtype, std::initializer_list<std::int64_t> shape)
        : TensorView(const_cast<void*>(data), dtype, shape) {}

    std::int64_t size() const noexcept;  // number of elements; 1 for a scalar
    std::string shape_string() const;    // "(2, 3, 768)"
    std::string stride_string() const;   // the same of its strides
};

}  // namespace fastffn
