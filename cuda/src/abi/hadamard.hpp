// hadamard and quantize of the plugin's table.
#pragma once

#include "../abi.hpp"

namespace fastffn::cuda {

// y = H · x along the rows, as fastffn/hadamard.hpp defines it. y may be x itself.
struct HadamardCall {
    DeviceRows x, y;
    std::int32_t mode;        // fastffn::Hadamard; x.cols has such a transform
    std::int32_t is_inverse;  // 1: Hᵀ
    std::int64_t block;       // 0: the largest
};

// Codes s8 [rows, cols] and a scale per row, contiguous.
struct QuantizeCall {
    DeviceRows x;
    void* codes;
    float* scales;
    std::int32_t kind;  // fastffn::ActivationCodes
};

}  // namespace fastffn::cuda
