#include "launch/dense.hpp"

#include "kernels/f32_rows.cuh"
#include "kernels/few_tokens.cuh"
#include "kernels/many_tokens.cuh"
#include "launch/launch.hpp"
#include "launch/sm90_dense.hpp"

namespace fastffn::cuda {

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

template <class P, int warps, int token_tiles>
cudaError_t few(const DenseArgs& args, unsigned blocks, cudaStream_t stream) {
    const Grid grid = {dim3(blocks), dim3(warps * 32), 0, stream, "few_tokens"};
    return args.w_gate ? launch(few_tokens_kernel<P, warps, token_tiles, true>, grid, args)
                       : launch(few_tokens_kernel<P, warps, token_tiles, false>, grid, args);
}

bool out_of_range(const DenseArgs& args) {
    return args.row_bytes % 16 != 0 || args.w_stride % 16 != 0 || args.x_stride % 16 != 0;
}

}  // namespace

cudaError_t launch_few_tokens(Product product, const DenseArgs& args, cudaStream_t stream) {
    if (args.tokens > few_tokens_limit || out_of_range(args)) return cudaErrorInvalidValue;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    const std::int64_t blocks = (args.out_features + few_rows - 1) / few_rows;
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    const auto count = static_cast<unsigned>(blocks);
    // With fewer blocks than would fill the device, more warps share a block's depth. 264 = two blocks on each of 132.
    const bool deep = blocks < 264;
    return with_product(product, [&](auto p) {
        using P = decltype(p);
        if (args.tokens <= 8) return deep ? few<P, 16, 1>(args, count, stream) : few<P, 8, 1>(args, count, stream);
        return few<P, 8, 2>(args, count, stream);
    });
}

cudaError_t launch_many_tokens(Product product, const DenseArgs& args, cudaStream_t stream) {
    using T = ManyTokens;
    if (out_of_range(args)) return cudaErrorInvalidValue;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    const int outputs = T::outputs(args.w_gate != nullptr);
    const std::int64_t token_tiles = (args.tokens + T::tokens - 1) / T::tokens;
    const std::int64_t row_tiles = (args.out_features + outputs - 1) / outputs;
    // Tile numbers are int in the kernel, a band beyond the end included.
    if (token_tiles > 0x7fffffff / T::band / 2 || token_tiles * row_tiles > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(token_tiles * row_tiles)), dim3(T::threads), T::shared_bytes, stream,
                       "many_tokens"};
    return with_product(product, [&](auto p) {
        using P = decltype(p);
        return args.w_gate ? launch(many_tokens_kernel<P, true>, grid, args, token_tiles, row_tiles)
                           : launch(many_tokens_kernel<P, false>, grid, args, token_tiles, row_tiles);
    });
}

cudaError_t launch_f32(DType weights, const DenseArgs& args, cudaStream_t stream) {
    if (out_of_range(args) || (weights != DType::f32 && weights != DType::f16)) return cudaErrorInvalidValue;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    const std::int64_t blocks = (args.out_features + f32_warps - 1) / f32_warps,
                       columns = (args.tokens + f32_tokens - 1) / f32_tokens;
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    // The grid's second dimension ends at 65535; blocks go on to further tokens.
    const Grid grid = {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns < 65535 ? columns : 65535)),
                       dim3(f32_warps * 32), 0, stream, "f32_rows"};
    if (weights == DType::f16)
        return args.w_gate ? launch(f32_rows_kernel<DType::f16, true>, grid, args)
                           : launch(f32_rows_kernel<DType::f16, false>, grid, args);
    return args.w_gate ? launch(f32_rows_kernel<DType::f32, true>, grid, args)
                       : launch(f32_rows_kernel<DType::f32, false>, grid, args);
}

cudaError_t launch_dense(Product product, const DenseArgs& args, cudaStream_t stream) {
    if (args.tokens <= few_tokens_limit) return launch_few_tokens(product, args, stream);
    if (sm90_dense_serves(args))
        if (const cudaError_t status = launch_sm90_dense(product, args, stream); status != cudaErrorNotSupported)
            return status;
    return launch_many_tokens(product, args, stream);
}

}  // namespace fastffn::cuda
