// Products with weights of 2 or 4 bits (ternary, int4) and activations of 8: y = x · wᵀ, or gated.
//
//   w[row][k] = scale · (code - zero)     one f32 scale per row, or f16 scales per row and group of columns
//
// Codes are rows of chunks of 64 bytes, padded to whole chunks: 256 columns of 2 bits or 128 of 4. The four lanes that share a
// row load 16 bytes each, one after another. Column k of a chunk (k = 32 s + 8 t + 4 q + b) is in byte 16 t + 4 word + b:
//
//   4 bits   word s,      bits 4 q and up
//   2 bits   word s / 2,  bits 4 (s % 2) + 2 q and up
//
// so that a shift and a mask make four codes of neighbouring columns, and eight neighbours a lane's share of an mma of depth 32.
// x is what launch_quantize_rows makes with sums, interleaved, row_bytes the padded depth.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"

namespace fastffn::cuda {

enum class CodeZeros : std::uint8_t {
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
    CodeZeros zeros;
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

constexpr std::int64_t codes_chunk_columns(int bits) { return 512 / bits; }
constexpr std::int64_t codes_padded_depth(int bits, std::int64_t depth) {
    return (depth + codes_chunk_columns(bits) - 1) / codes_chunk_columns(bits) * codes_chunk_columns(bits);
}
// Where the code of column k of a row is: the byte from the row's first, and the shift.
constexpr std::int64_t codes_byte(int bits, std::int64_t k) {
    const std::int64_t in_chunk = k % codes_chunk_columns(bits), span = in_chunk / 32;
    return k / codes_chunk_columns(bits) * 64 + in_chunk % 32 / 8 * 16 + (bits == 4 ? span : span / 2) * 4 + k % 4;
}
constexpr int codes_shift(int bits, std::int64_t k) {
    const int quad = static_cast<int>(k % 8 / 4), odd_span = static_cast<int>(k / 32 % 2);
    return bits == 4 ? 4 * quad : 4 * odd_span + 2 * quad;
}

// Any number of tokens; each 16 of them read the weights once more.
cudaError_t launch_codes_few_tokens(const CodesArgs& args, cudaStream_t stream);

}  // namespace fastffn::cuda
