// act(gate) ⊙ up, element by element: a product of two matrices has it in its epilogue; this is for rows that came from two.
#pragma once

#include "abi.hpp"
#include "kernels/elements.cuh"

namespace fastffn::cuda {
namespace {

constexpr int gate_threads = 256;

// Rows in the grid's first dimension, which has 2^31 - 1 of them, columns in the second.
__global__ void __launch_bounds__(gate_threads)
    gate_kernel(Activation activation, DeviceRows gate, DeviceRows up, DeviceRows y) {
    const auto g = static_cast<DType>(gate.dtype), u = static_cast<DType>(up.dtype), out = static_cast<DType>(y.dtype);
    for (std::int64_t row = blockIdx.x; row < y.rows; row += gridDim.x)
        for (std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * gate_threads + threadIdx.x; c < y.cols;
             c += static_cast<std::int64_t>(gridDim.y) * gate_threads)
            store_element(y.data, out, row * y.stride + c,
                          gated(activation, load_element(gate.data, g, row * gate.stride + c),
                                load_element(up.data, u, row * up.stride + c)));
}

}  // namespace
}  // namespace fastffn::cuda
