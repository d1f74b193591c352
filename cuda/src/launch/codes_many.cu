#include "kernels/codes_many_tokens.cuh"
#include "launch/codes_kernels.hpp"
#include "launch/launch.hpp"

namespace fastffn::cuda {

cudaError_t launch_codes_many_tokens(const CodesArgs& args, const TokenGroups* groups, cudaStream_t stream) {
    using T = CodesMany;
    if (wrong_codes(args) || (groups && groups->tile_tokens != T::tokens)) return cudaErrorInvalidValue;
    if (args.out_features == 0 || (groups ? groups->max_tiles : args.tokens) == 0) return cudaSuccess;
    const int outputs = T::outputs(args.w_gate.codes != nullptr);
    const std::int64_t token_tiles = groups ? groups->max_tiles : (args.tokens + T::tokens - 1) / T::tokens;
    const std::int64_t row_tiles = (args.out_features + outputs - 1) / outputs;
    // Tile numbers are int in the kernel, a band beyond the end included, and so are rows of x and w.
    if ((!groups && args.tokens > 0x7fffffff) || args.out_features > 0x7fff0000) return cudaErrorInvalidValue;
    if (token_tiles > 0x7fffffff / T::band / 2 || row_tiles > 0x3fffffff / token_tiles) return cudaErrorInvalidValue;
    std::int64_t blocks = token_tiles * row_tiles;
    if (groups) {
        std::int64_t at_once = 0;
        if (const cudaError_t status = blocks_at_once(2, &at_once); status != cudaSuccess) return status;
        blocks = blocks < at_once ? blocks : at_once;
    }
    const CodesTokens tokens = tokens_of(args, groups);
    return with_codes(args, [&](auto codes, auto is_grouped) {
        using C = decltype(codes);
        constexpr bool grouped = is_grouped.value;
        static_assert(T::shared_bytes(C::pieces, grouped) <= shared_bytes_everywhere, "or some devices refuse it");
        const Grid grid = {dim3(static_cast<unsigned>(blocks)),
                           dim3(T::threads),
                           T::shared_bytes(C::pieces, grouped),
                           stream,
                           "codes_many_tokens",
                           args.x_is_fresh};
        return args.w_gate.codes ? launch(codes_many_tokens_kernel<C, true, grouped>, grid, args, tokens, row_tiles)
                                 : launch(codes_many_tokens_kernel<C, false, grouped>, grid, args, tokens, row_tiles);
    });
}

}  // namespace fastffn::cuda
