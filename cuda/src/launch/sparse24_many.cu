#include "kernels/sparse24_many_tokens.cuh"
#include "launch/launch.hpp"
#include "launch/sparse24_tokens.hpp"

namespace fastffn::cuda {

namespace {

template <class T>
std::int64_t row_tiles_of(const Sparse24Args& args) {
    const int outputs = args.w_gate ? T::rows / 2 : T::rows;
    return (args.out_features + outputs - 1) / outputs;
}

template <class P, class T>
cudaError_t many(const Sparse24Args& args, const Sparse24Tokens& tokens, cudaStream_t stream) {
    static_assert(Sparse24Bytes<P, T>::shared <= shared_bytes_everywhere, "or some devices refuse it");
    const std::int64_t token_tiles = sparse24_token_blocks(tokens, T::tokens), row_tiles = row_tiles_of<T>(args);
    // Tile numbers are int in the kernel, a band beyond the end included.
    if (token_tiles > 0x7fffffff / T::band / 2 || token_tiles * row_tiles > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(token_tiles * row_tiles)),
                       dim3(T::threads),
                       (Sparse24Bytes<P, T>::shared),
                       stream,
                       "sparse24_many_tokens",
                       args.x_is_fresh};
    return args.w_gate ? launch(sparse24_many_tokens_kernel<P, T, true>, grid, args, tokens, token_tiles, row_tiles)
                       : launch(sparse24_many_tokens_kernel<P, T, false>, grid, args, tokens, token_tiles, row_tiles);
}

// Large tiles, unless most multiprocessors would be idle: small ones take some 2.2 times as long for the same products. Both sum
// in the same order.
template <class P>
cudaError_t many(const Sparse24Args& args, const Sparse24Tokens& tokens, cudaStream_t stream) {
    if (tokens.is_grouped) return many<P, Sparse24Large>(args, tokens, stream);
    std::int64_t blocks = 0;
    if (const cudaError_t status = blocks_at_once(1, &blocks); status != cudaSuccess) return status;
    const bool small =
        sparse24_token_blocks(tokens, Sparse24Large::tokens) * row_tiles_of<Sparse24Large>(args) * 2 < blocks;
    return small ? many<P, Sparse24Small>(args, tokens, stream) : many<P, Sparse24Large>(args, tokens, stream);
}

}  // namespace

cudaError_t launch_sparse24_many(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                                 cudaStream_t stream) {
    const Sparse24Tokens tokens = sparse24_tokens(args, groups);
    if (sparse24_out_of_range(args) || (groups && groups->tile_tokens != Sparse24Large::tokens))
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
