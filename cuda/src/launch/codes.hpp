// Products with weights of 2 or 4 bits (ternary, int4): y = x · wᵀ, or gated.
//
//   w[row][k] = scale · (code - zero)     one f32 scale per row, or f16 scales per group of columns and row
//
// Codes, scales and zeros lie as layout.hpp says. x is of 8 bits, what launch_quantize_rows makes with sums, interleaved, row_bytes
// the padded depth; or, for 4 bits with groups, bf16 rows of the padded depth with sums of launch_group_sums.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"
#include "launch/groups.hpp"
#include "layout.hpp"

namespace fastffn::cuda {

enum class CodesZeros : std::uint8_t {
    fixed,   // 1 for 2 bits, 8 for 4
    points,  // u8 [groups, rows]
    minima,  // f16 [groups, rows]: w = scale · code + minimum
};

struct CodesMatrix {
    const void* codes;
    const void* scales;  // f32 [rows], or f16 [groups, table_rows]
    const void* zeros;   // [groups, table_rows]
};

struct CodesArgs {
    const void* x;              // rows of padded_depth
    std::int64_t x_stride;      // bytes
    const float* x_scales;      // [tokens]; nullptr for bf16
    const void* x_sums;         // [tokens, groups], s32 or for bf16 f32, which only zero points and minima need
    CodesMatrix w, w_gate;      // w_gate.codes == nullptr: not gated
    std::int64_t matrix_bytes;  // of a stack: from one matrix to the next
    int bits;
    bool is_bf16;  // x
    CodesZeros zeros;
    std::int64_t padded_depth;  // columns, whole chunks
    std::int64_t group;         // columns, a power of two from 32 to 1024; 0: none
    std::int64_t groups;
    const void *bias, *gate_bias;  // nullptr: none; of a stack [matrices, out_features]
    DType bias_dtype, gate_bias_dtype;
    void* y;
    std::int64_t y_stride;  // elements
    DType y_dtype;
    std::int64_t tokens, out_features;
    Activation activation;
    // x was made by the launch before on this stream, one of ours that is no dependent: the product may begin while it runs.
    bool x_is_fresh;
};

// Any number of tokens. With groups each group's positions meet its matrix, and args.tokens is not looked at: few_tokens for
// tiles of 8 or 16 of them, many_tokens for 128.
cudaError_t launch_codes_few_tokens(const CodesArgs& args, const TokenGroups* groups, cudaStream_t stream);
cudaError_t launch_codes_many_tokens(const CodesArgs& args, const TokenGroups* groups, cudaStream_t stream);
// Chooses between them.
cudaError_t launch_codes(const CodesArgs& args, const TokenGroups* groups, cudaStream_t stream);

// sums[row][g] = Σ of bf16 x[row][k] over the columns of group g.
cudaError_t launch_group_sums(const void* x, std::int64_t x_stride, std::int64_t rows, std::int64_t depth,
                              std::int64_t group, std::int64_t groups, float* sums, cudaStream_t stream);

}  // namespace fastffn::cuda
