// Dense products of stacks: each group's tokens with its matrix.
#include "kernels/few_tokens.cuh"
#include "kernels/many_tokens.cuh"
#include "launch/dense.hpp"
#include "launch/dense_kernels.hpp"
#include "launch/launch.hpp"
#include "launch/sm90_dense.hpp"

namespace fastffn::cuda {

namespace {

template <class P, int token_tiles>
cudaError_t few(const DenseArgs& args, const GroupedTokens& tokens, const Grid& grid) {
    return args.w_gate ? launch(few_tokens_kernel<P, 8, token_tiles, true, GroupedTokens>, grid, args, tokens)
                       : launch(few_tokens_kernel<P, 8, token_tiles, false, GroupedTokens>, grid, args, tokens);
}

bool wrong_groups(const TokenGroups& groups) {
    return !groups.offsets || !groups.tiles || !groups.tile_count || groups.max_tiles < 0 ||
           groups.max_tiles > 0x7fffffff;
}

}  // namespace

cudaError_t launch_dense(Product product, const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream) {
    using T = LargeTile;
    if (wrong_rows(args) || wrong_groups(groups)) return cudaErrorInvalidValue;
    if (groups.max_tiles == 0 || args.out_features == 0) return cudaSuccess;
    const GroupedTokens tokens{groups};
    if (groups.tile_tokens != T::tokens) {
        const std::int64_t row_blocks = (args.out_features + few_rows - 1) / few_rows;
        if ((groups.tile_tokens != 8 && groups.tile_tokens != 16) || row_blocks > 0x7fffffff / groups.max_tiles)
            return cudaErrorInvalidValue;
        const Grid grid = {dim3(static_cast<unsigned>(row_blocks * groups.max_tiles)), dim3(256), 0, stream,
                           "few_tokens of groups"};
        return with_product(product, [&](auto p) {
            using P = decltype(p);
            return groups.tile_tokens == 8 ? few<P, 1>(args, tokens, grid) : few<P, 2>(args, tokens, grid);
        });
    }
    if (prefers_sm90_dense(args, groups))
        if (const cudaError_t status = launch_sm90_dense(product, args, groups, stream);
            status != cudaErrorNotSupported)
            return status;
    const int outputs = T::outputs(args.w_gate != nullptr);
    const std::int64_t row_tiles = (args.out_features + outputs - 1) / outputs;
    // Tile numbers are int in the kernel, those that blocks look for behind the last included.
    if (groups.max_tiles > 0x3fffffff / T::band || row_tiles > 0x3fffffff / groups.max_tiles)
        return cudaErrorInvalidValue;
    std::int64_t blocks = 0;
    if (const cudaError_t status = blocks_at_once(2, &blocks); status != cudaSuccess) return status;
    blocks = blocks < groups.max_tiles * row_tiles ? blocks : groups.max_tiles * row_tiles;
    const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(T::threads), T::shared_bytes, stream,
                       "many_tokens of groups"};
    return with_product(product, [&](auto p) {
        using P = decltype(p);
        return args.w_gate ? launch(many_tokens_kernel<P, T, true, GroupedTokens>, grid, args, tokens, row_tiles)
                           : launch(many_tokens_kernel<P, T, false, GroupedTokens>, grid, args, tokens, row_tiles);
    });
}

cudaError_t launch_f32(DType weights, const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream) {
    if (wrong_rows(args) || wrong_groups(groups) || groups.tile_tokens < 1 ||
        (weights != DType::f32 && weights != DType::f16))
        return cudaErrorInvalidValue;
    if (groups.max_tiles == 0 || args.out_features == 0) return cudaSuccess;
    const std::int64_t blocks = (args.out_features + f32_warps - 1) / f32_warps;
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {
        dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(groups.max_tiles < 65535 ? groups.max_tiles : 65535)),
        dim3(f32_warps * 32), 0, stream, "f32_rows of groups"};
    return run_f32(weights, args, GroupedTokens{groups}, groups.tile_tokens, grid);
}

}  // namespace fastffn::cuda
