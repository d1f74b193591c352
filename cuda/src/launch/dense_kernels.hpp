// What launchers of dense kernels share, for all tokens (dense.cu) and for groups (dense_groups.cu).
#pragma once

#include "kernels/f32_rows.cuh"
#include "kernels/products.cuh"
#include "launch/dense.hpp"
#include "launch/launch.hpp"

namespace fastffn::cuda {

inline bool wrong_rows(const DenseArgs& args) {
    return args.row_bytes % 16 != 0 || args.w_stride % 16 != 0 || args.x_stride % 16 != 0 ||
           args.matrix_bytes % 16 != 0;
}

namespace {

// Calls f with the product's type.
template <class F>
cudaError_t with_product(Product product, F f) {
    switch (product) {
        case Product::bf16: return f(Bf16Product());
        case Product::f16: return f(F16Product());
        case Product::int8: return f(Int8Product());
    }
    return cudaErrorInvalidValue;
}

template <class Tokens>
cudaError_t run_f32(DType weights, const DenseArgs& args, const Tokens& tokens, int tile_tokens, const Grid& grid) {
    if (weights == DType::f16)
        return args.w_gate ? launch(f32_rows_kernel<DType::f16, true, Tokens>, grid, args, tokens, tile_tokens)
                           : launch(f32_rows_kernel<DType::f16, false, Tokens>, grid, args, tokens, tile_tokens);
    return args.w_gate ? launch(f32_rows_kernel<DType::f32, true, Tokens>, grid, args, tokens, tile_tokens)
                       : launch(f32_rows_kernel<DType::f32, false, Tokens>, grid, args, tokens, tile_tokens);
}

}  // namespace

}  // namespace fastffn::cuda
