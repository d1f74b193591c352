// Dense products on the GPU: y = x · wᵀ, and gated act(x · w_gateᵀ + b_gate) ⊙ (x · w_upᵀ + b_up) in one pass over x.
//
// Weights are plain rows [out_features, in_features] of the product's type, each row padded with zeros to a multiple of 16
// bytes, and 16-aligned. Rows of x likewise (prepare_rows makes them from any strides and type); bytes behind in_features
// within the last 16 are multiplied with the weights' zeros, so they must be zeros too.
// Launchers take the stream, allocate nothing and never wait. Sums have a fixed order: same bits in every run.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"
#include "launch/groups.hpp"

namespace fastffn::cuda {

enum class Product : std::uint8_t { bf16, f16, int8 };

struct DenseArgs {
    const void* x;           // [tokens], rows of row_bytes
    std::int64_t x_stride;   // bytes
    const void* w;           // the only matrix, or w_up
    const void* w_gate;      // nullptr: not gated
    std::int64_t row_bytes;  // of x and the weights, a multiple of 16: the padded depth
    std::int64_t w_stride;   // bytes
    // Of a stack: from one matrix, and from its scales, to the next. Biases are [matrices, out_features].
    std::int64_t matrix_bytes;
    // int8: w ≈ code · scale of its row; x ≈ code · scale of its token. nullptr for the others.
    const float *x_scales, *w_scales, *w_gate_scales;
    const void *bias, *gate_bias;  // nullptr: none
    DType bias_dtype, gate_bias_dtype;
    void* y;
    std::int64_t y_stride;  // elements
    DType y_dtype;
    std::int64_t tokens, out_features;
    Activation activation;
    // x was made by the launch before on this stream, one of ours that is no dependent: few_tokens may begin while it runs.
    bool x_is_fresh;
};

// Up to this many tokens few_tokens reads each weight once and is limited by memory alone.
constexpr std::int64_t few_tokens_limit = 16;

cudaError_t launch_few_tokens(Product product, const DenseArgs& args, cudaStream_t stream);
cudaError_t launch_many_tokens(Product product, const DenseArgs& args, cudaStream_t stream);

// f32 rows of x and f32 or f16 weights, by plain multiply-adds: no tensor core keeps 24 bits.
cudaError_t launch_f32(DType weights, const DenseArgs& args, cudaStream_t stream);

// Chooses between few_tokens and many_tokens.
cudaError_t launch_dense(Product product, const DenseArgs& args, cudaStream_t stream);

// The same of a stack, each group's positions with its matrix; args.tokens is not looked at. few_tokens where the groups were cut
// into tiles of 8 or 16 tokens, many_tokens for 128.
cudaError_t launch_dense(Product product, const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream);
cudaError_t launch_f32(DType weights, const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream);

}  // namespace fastffn::cuda
