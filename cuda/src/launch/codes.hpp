// Products with weights of 2 or 4 bits (ternary, int4) and activations of 8: y = x · wᵀ, or gated.
//
//   w[row][k] = scale · (code - zero)     one f32 scale per row, or f16 scales per row and group of columns
//
// Codes lie as layout.hpp says.
// x is what launch_quantize_rows makes with sums, interleaved, row_bytes the padded depth.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"
#include "layout.hpp"

namespace fastffn::cuda {

enum class CodesZeros : std::uint8_t {
    fixed,   // 1 for 2 bits, 8 for 4
    points,  // u8 [rows, groups]
    minima,  // f16 [rows, groups]: w = scale · code + minimum
};

struct CodesMatrix {
    const void* codes;
    const void* scales;  // f32 [rows], or f16 [rows, groups]
    const void* zeros;
};

struct CodesArgs {
    const void* x;  // s8 [tokens], rows of padded_depth
    std::int64_t x_stride;
    const float* x_scales;
    const std::int32_t* x_sums;  // [tokens, groups]
    CodesMatrix w, w_gate;       // w_gate.codes == nullptr: not gated
    int bits;
    CodesZeros zeros;
    std::int64_t padded_depth;  // columns, whole chunks
    std::int64_t group;         // columns, a multiple of 32; 0: none
    std::int64_t groups;
    const void *bias, *gate_bias;  // nullptr: none
    DType bias_dtype, gate_bias_dtype;
    void* y;
    std::int64_t y_stride;  // elements
    DType y_dtype;
    std::int64_t tokens, out_features;
    Activation activation;
};

// Any number of tokens; each 16 of them read the weights once more.
cudaError_t launch_codes_few_tokens(const CodesArgs& args, cudaStream_t stream);

}  // namespace fastffn::cuda
