#include "kernels/codes_few_tokens.cuh"
#include "launch/codes_kernels.hpp"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

template <class C, int token_tiles, bool is_grouped>
cudaError_t few(const CodesArgs& args, const CodesTokens& tokens, const Grid& grid) {
    return args.w_gate.codes ? launch(codes_few_tokens_kernel<C, token_tiles, true, is_grouped>, grid, args, tokens)
                             : launch(codes_few_tokens_kernel<C, token_tiles, false, is_grouped>, grid, args, tokens);
}

}  // namespace

cudaError_t launch_codes_few_tokens(const CodesArgs& args, const TokenGroups* groups, cudaStream_t stream) {
    if (wrong_codes(args) || (groups && groups->tile_tokens != 8 && groups->tile_tokens != 16))
        return cudaErrorInvalidValue;
    if (args.out_features == 0 || (groups ? groups->max_tiles : args.tokens) == 0) return cudaSuccess;
    const bool one_tile = groups ? groups->tile_tokens == 8 : args.tokens <= 8;
    const std::int64_t row_blocks = (args.out_features + codes_rows - 1) / codes_rows;
    const std::int64_t token_blocks = groups ? groups->max_tiles : one_tile ? 1 : (args.tokens + 15) / 16;
    if (row_blocks > 0x7fffffff / token_blocks || (!groups && args.tokens > 0x7fffffff)) return cudaErrorInvalidValue;
    // Blocks of four warps end one by one while others load; of eight where there are fewer blocks than places for them, on 132
    // multiprocessors, and rows that are long enough.
    const std::int64_t chunks = args.padded_depth / codes_chunk_columns(args.bits);
    const unsigned warps = chunks >= 24 && row_blocks * token_blocks < 4 * 132 ? codes_few_warps : chunks >= 4 ? 4 : 2;
    const Grid grid = {dim3(static_cast<unsigned>(row_blocks * token_blocks)),
                       dim3(warps * 32),
                       0,
                       stream,
                       "codes_few_tokens",
                       args.x_is_fresh};
    const CodesTokens tokens = tokens_of(args, groups);
    return with_codes(args, [&](auto codes, auto is_grouped) {
        using C = decltype(codes);
        return one_tile ? few<C, 1, is_grouped.value>(args, tokens, grid)
                        : few<C, 2, is_grouped.value>(args, tokens, grid);
    });
}

}  // namespace fastffn::cuda
