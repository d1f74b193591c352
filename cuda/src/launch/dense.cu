#include "launch/dense.hpp"

#include "kernels/few_tokens.cuh"
#include "kernels/many_tokens.cuh"
#include "launch/dense_kernels.hpp"
#include "launch/launch.hpp"
#include "launch/sm90_dense.hpp"

namespace fastffn::cuda {

namespace {

template <class P, int warps, int token_tiles>
cudaError_t few(const DenseArgs& args, unsigned blocks, cudaStream_t stream) {
    const Grid grid = {dim3(blocks), dim3(warps * 32), 0, stream, "few_tokens", args.x_is_fresh};
    const AllTokens tokens{args.tokens};
    return args.w_gate ? launch(few_tokens_kernel<P, warps, token_tiles, true, AllTokens>, grid, args, tokens)
                       : launch(few_tokens_kernel<P, warps, token_tiles, false, AllTokens>, grid, args, tokens);
}

template <class T>
std::int64_t tiles(const DenseArgs& args) {
    const int outputs = T::outputs(args.w_gate != nullptr);
    return (args.tokens + T::tokens - 1) / T::tokens * ((args.out_features + outputs - 1) / outputs);
}

template <class T>
cudaError_t many(Product product, const DenseArgs& args, cudaStream_t stream) {
    static_assert(T::shared_bytes <= shared_bytes_everywhere, "or some devices refuse it");
    const int outputs = T::outputs(args.w_gate != nullptr);
    const std::int64_t row_tiles = (args.out_features + outputs - 1) / outputs;
    // Tile numbers are int in the kernel, a band beyond the end included.
    if (args.tokens / T::tokens >= 0x7fffffff / T::band / 2 || tiles<T>(args) > 0x7fffffff)
        return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(tiles<T>(args))), dim3(T::threads), T::shared_bytes, stream,
                       "many_tokens"};
    const AllTokens tokens{args.tokens};
    return with_product(product, [&](auto p) {
        using P = decltype(p);
        return args.w_gate ? launch(many_tokens_kernel<P, T, true, AllTokens>, grid, args, tokens, row_tiles)
                           : launch(many_tokens_kernel<P, T, false, AllTokens>, grid, args, tokens, row_tiles);
    });
}

}  // namespace

cudaError_t launch_few_tokens(Product product, const DenseArgs& args, cudaStream_t stream) {
    if (args.tokens > few_tokens_limit || wrong_rows(args)) return cudaErrorInvalidValue;
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
    if (wrong_rows(args)) return cudaErrorInvalidValue;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    // Both kinds of tiles sum in the same order: the choice changes no bit.
    std::int64_t blocks = 0;
    if (const cudaError_t status = blocks_at_once(1, &blocks); status != cudaSuccess) return status;
    return tiles<LargeTile>(args) < blocks ? many<SmallTile>(product, args, stream)
                                           : many<LargeTile>(product, args, stream);
}

cudaError_t launch_f32(DType weights, const DenseArgs& args, cudaStream_t stream) {
    if (wrong_rows(args) || (weights != DType::f32 && weights != DType::f16)) return cudaErrorInvalidValue;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    const std::int64_t blocks = (args.out_features + f32_warps - 1) / f32_warps,
                       columns = (args.tokens + f32_tokens - 1) / f32_tokens;
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    // The grid's second dimension ends at 65535; blocks go on to further tokens.
    const Grid grid = {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns < 65535 ? columns : 65535)),
                       dim3(f32_warps * 32), 0, stream, "f32_rows"};
    return run_f32(weights, args, AllTokens{args.tokens}, f32_tokens, grid);
}

cudaError_t launch_dense(Product product, const DenseArgs& args, cudaStream_t stream) {
    if (args.tokens <= few_tokens_limit) return launch_few_tokens(product, args, stream);
    if (prefers_sm90_dense(args))
        if (const cudaError_t status = launch_sm90_dense(product, args, stream); status != cudaErrorNotSupported)
            return status;
    return launch_many_tokens(product, args, stream);
}

}  // namespace fastffn::cuda
