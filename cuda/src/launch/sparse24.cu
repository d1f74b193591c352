#include "launch/sparse24.hpp"

#include "kernels/sparse24_f32_rows.cuh"
#include "kernels/sparse24_few_tokens.cuh"
#include "launch/launch.hpp"
#include "launch/sm90_sparse24.hpp"
#include "launch/sparse24_tokens.hpp"

namespace fastffn::cuda {

namespace {

template <class P, int token_tiles>
cudaError_t few(const Sparse24Args& args, const Sparse24Tokens& tokens, cudaStream_t stream) {
    const int rows = args.w_gate ? Sparse24Few<token_tiles, true>::rows : Sparse24Few<token_tiles, false>::rows;
    const std::int64_t of_tokens = sparse24_token_blocks(tokens, 8 * token_tiles),
                       of_rows = (args.out_features + rows - 1) / rows;
    if (of_tokens > 0x7fffffff || of_tokens * of_rows > 0x7fffffff) return cudaErrorInvalidValue;
    // With fewer blocks than would fill the device, more warps share a block's depth. 264 = two blocks on each of 132.
    const int warps = token_tiles == 1 && of_tokens * of_rows < 264 ? 16 : 8;
    const Grid grid = {dim3(static_cast<unsigned>(of_tokens * of_rows)),
                       dim3(static_cast<unsigned>(warps * 32)),
                       0,
                       stream,
                       "sparse24_few_tokens",
                       args.x_is_fresh};
    return args.w_gate ? launch(sparse24_few_tokens_kernel<P, token_tiles, true>, grid, args, tokens, of_tokens)
                       : launch(sparse24_few_tokens_kernel<P, token_tiles, false>, grid, args, tokens, of_tokens);
}

template <class P>
cudaError_t few(const Sparse24Args& args, const Sparse24Tokens& tokens, cudaStream_t stream) {
    const std::int64_t most = tokens.is_grouped ? tokens.groups.tile_tokens : args.tokens;
    return most <= 8 ? few<P, 1>(args, tokens, stream) : few<P, 2>(args, tokens, stream);
}

template <DType weights>
cudaError_t f32(const Sparse24Args& args, const Sparse24Tokens& tokens, cudaStream_t stream) {
    const std::int64_t of_tokens =
        sparse24_token_blocks(tokens, tokens.is_grouped ? tokens.groups.tile_tokens : sparse24_f32_tokens);
    const std::int64_t of_rows = sparse24_tiles(args.out_features);
    if (of_tokens > 0x7fffffff || of_tokens * of_rows > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(of_tokens * of_rows)), dim3(sparse24_f32_warps * 32), 0, stream,
                       "sparse24_f32_rows"};
    return args.w_gate ? launch(sparse24_f32_rows_kernel<weights, true>, grid, args, tokens, of_tokens)
                       : launch(sparse24_f32_rows_kernel<weights, false>, grid, args, tokens, of_tokens);
}

}  // namespace

cudaError_t launch_sparse24_few(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                                cudaStream_t stream) {
    const Sparse24Tokens tokens = sparse24_tokens(args, groups);
    if (sparse24_out_of_range(args) || (groups && groups->tile_tokens != 8 && groups->tile_tokens != 16))
        return cudaErrorInvalidValue;
    if (sparse24_is_empty(args, tokens)) return cudaSuccess;
    switch (product) {
        case Sparse24Product::bf16: return few<Sparse24Bf16>(args, tokens, stream);
        case Sparse24Product::f16: return few<Sparse24F16>(args, tokens, stream);
        case Sparse24Product::int8: return few<Sparse24Int8>(args, tokens, stream);
        default: return cudaErrorInvalidValue;
    }
}

cudaError_t launch_sparse24_f32(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                                cudaStream_t stream) {
    const Sparse24Tokens tokens = sparse24_tokens(args, groups);
    if (sparse24_out_of_range(args)) return cudaErrorInvalidValue;
    if (sparse24_is_empty(args, tokens)) return cudaSuccess;
    if (product == Sparse24Product::f32) return f32<DType::f32>(args, tokens, stream);
    if (product == Sparse24Product::f32_f16) return f32<DType::f16>(args, tokens, stream);
    return cudaErrorInvalidValue;
}

cudaError_t launch_sparse24(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                            cudaStream_t stream) {
    if (product == Sparse24Product::f32 || product == Sparse24Product::f32_f16)
        return launch_sparse24_f32(product, args, groups, stream);
    const bool few_tokens = groups ? groups->tile_tokens <= 16 : args.tokens <= sparse24_few_limit;
    if (!groups && !few_tokens && prefers_sm90_sparse24(product, args)) {
        const cudaError_t status = launch_sm90_sparse24(product, args, stream);
        if (status != cudaErrorNotSupported) return status;
    }
    return few_tokens ? launch_sparse24_few(product, args, groups, stream)
                      : launch_sparse24_many(product, args, groups, stream);
}

}  // namespace fastffn::cuda
