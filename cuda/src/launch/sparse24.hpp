// Products with sparse24 weights: y = x · wᵀ where w keeps two of every four weights of a row, and gated.
//
// Weights lie as layout/sparse24.hpp says. Rows of x are those of the dense product of the same values (bf16, f16, int8 codes with
// their scales, or f32), zeros up to a multiple of 16 bytes. Positions that are not kept meet no x, NaN and infinity included.
// With groups, each group's positions meet their matrix of a stack (launch/groups.hpp).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"
#include "launch/groups.hpp"

namespace fastffn::cuda {

// What is multiplied: both of bf16, f16 or s8 by mma.sp; or f32 rows with f32 or f16 weights by plain multiply-adds.
enum class Sparse24Product : std::uint8_t { bf16, f16, int8, f32, f32_f16 };

struct Sparse24Args {
    const void* x;
    std::int64_t x_stride, row_bytes;  // bytes, multiples of 16
    const void* w;                     // the only matrix, or w_up
    const void* w_gate;                // nullptr: not gated
    std::int64_t tile_bytes, pieces;
    // int8; nullptr for the others.
    const float *x_scales, *w_scales, *w_gate_scales;
    std::int64_t matrix_bytes;     // from one matrix, or its scales, to the next of a stack
    const void *bias, *gate_bias;  // [matrices, out_features]; nullptr: none
    DType bias_dtype, gate_bias_dtype;
    void* y;
    std::int64_t y_stride;  // elements
    DType y_dtype;
    std::int64_t tokens, out_features;
    Activation activation;
    // x was made by the launch before on this stream, one of ours that is no dependent: the product may begin while it runs.
    bool x_is_fresh;
};

// Up to this many tokens each weight is read once and its kernel is limited by memory alone.
constexpr std::int64_t sparse24_few_limit = 16;

cudaError_t launch_sparse24_few(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                                cudaStream_t stream);
cudaError_t launch_sparse24_many(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                                 cudaStream_t stream);
cudaError_t launch_sparse24_f32(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                                cudaStream_t stream);

// Chooses among them. With groups their tile_tokens decides: 8 and 16 are few.
cudaError_t launch_sparse24(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                            cudaStream_t stream);

}  // namespace fastffn::cuda
