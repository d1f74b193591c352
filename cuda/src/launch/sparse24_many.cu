#include "kernels/sparse24_many_tokens.cuh"
#include "launch/launch.hpp"
#include "launch/sparse24_tokens.hpp"

namespace fastffn::cuda {

namespace {

template <class P>
cudaError_t many(const Sparse24Args& args, const Sparse24Tokens& tokens, cudaStream_t stream) {
    using T = Sparse24Many;
    const int outputs = args.w_gate ? T::outputs<true> : T::outputs<false>;
    const std::int64_t token_tiles = sparse24_token_blocks(tokens, T::tokens),
                       row_tiles = (args.out_features + outputs - 1) / outputs;
    // Tile numbers are int in the kernel, a band beyond the end included.
    if (token_tiles > 0x7fffffff / T::band / 2 || token_tiles * row_tiles > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(token_tiles * row_tiles)), dim3(T::threads), T::shared_bytes<P>,
                       stream, "sparse24_many_tokens"};
    return args.w_gate ? launch(sparse24_many_tokens_kernel<P, true>, grid, args, tokens, token_tiles, row_tiles)
                       : launch(sparse24_many_tokens_kernel<P, false>, grid, args, tokens, token_tiles, row_tiles);
}

}  // namespace

cudaError_t launch_sparse24_many(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                                 cudaStream_t stream) {
    const Sparse24Tokens tokens = sparse24_tokens(args, groups);
    if (sparse24_out_of_range(args) || (groups && groups->tile_tokens != Sparse24Many::tokens))
        return cudaErrorInvalidValue;
    if (sparse24_is_empty(args, tokens)) return cudaSuccess;
    switch (product) {
        case Sparse24Product::bf16: return many<Sparse24Bf16>(args, tokens, stream);
        case Sparse24Product::f16: return many<Sparse24F16>(args, tokens, stream);
        case Sparse24Product::int8: return many<Sparse24Int8>(args, tokens, stream);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace fastffn::cuda
