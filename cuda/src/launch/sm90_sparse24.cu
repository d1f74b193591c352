// Compiled for sm_90a alone, whose code runs on no other device; without FASTFFN_CUDA_SM90 it says that there is none.
#include "launch/sm90_sparse24.hpp"

#ifdef FASTFFN_CUDA_SM90
#include "kernels/sm90_sparse24.cuh"
#include "launch/launch.hpp"
#include "launch/sm90_arguments.hpp"
#include "launch/sm90_dense.hpp"
#include "launch/sparse24_tokens.hpp"
#endif

namespace fastffn::cuda {

#ifdef FASTFFN_CUDA_SM90

namespace {

template <class P, int cluster, bool is_gated>
cudaError_t run_tiles(const Sparse24Args& args, std::int64_t token_tiles, std::int64_t row_tiles, cudaStream_t stream) {
    using T = Sm90Sparse24;
    ptx::TensorMap x_map = {};
    if (!ptx::make_tensor_map(&x_map, {args.x, args.row_bytes, args.tokens, args.x_stride, 0, 0}, T::box_tokens))
        return cudaErrorNotSupported;
    const auto kernel = sm90_sparse24_kernel<P, cluster, is_gated>;
    Grid grid = {dim3(cluster), dim3(T::threads), Sm90Sparse24Bytes<P>::shared, stream, "sm90_sparse24"};
    grid.cluster = cluster;
    // No more than run at once: a cluster that had to wait for others to return would double the time.
    const std::int64_t tiles = token_tiles * ((row_tiles + cluster - 1) / cluster);
    const std::int64_t at_once =
        cluster == 1 ? device_attribute(cudaDevAttrMultiProcessorCount) : clusters_at_once(kernel, grid);
    if (at_once <= 0) return cudaErrorNotSupported;
    grid.blocks.x = static_cast<unsigned>(cluster * (tiles < at_once ? tiles : at_once));
    return launch(kernel, grid, x_map, args, sparse24_tokens(args, nullptr), token_tiles, row_tiles);
}

// Two blocks share tokens wherever there are rows for two.
template <class P, bool is_gated>
cudaError_t run(const Sparse24Args& args, std::int64_t token_tiles, std::int64_t row_tiles, cudaStream_t stream) {
    if (row_tiles > 1)
        if (const cudaError_t status = run_tiles<P, 2, is_gated>(args, token_tiles, row_tiles, stream);
            status != cudaErrorNotSupported)
            return status;
    return run_tiles<P, 1, is_gated>(args, token_tiles, row_tiles, stream);
}

std::int64_t token_tiles_of(const Sparse24Args& args) {
    return (args.tokens + Sm90Sparse24::tokens - 1) / Sm90Sparse24::tokens;
}
std::int64_t row_tiles_of(const Sparse24Args& args) {
    const int outputs = args.w_gate ? Sm90Sparse24::rows / 2 : Sm90Sparse24::rows;
    return (args.out_features + outputs - 1) / outputs;
}

// Coordinates of maps and numbers of tiles are int, a band or a wave beyond the end included.
bool serves(Sparse24Product product, const Sparse24Args& args) {
    const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
    return product != Sparse24Product::f32 && product != Sparse24Product::f32_f16 && !sparse24_out_of_range(args) &&
           aligned(args.x) && aligned(args.w) && aligned(args.w_gate) && args.row_bytes > 0 && args.pieces > 0 &&
           args.row_bytes <= sm90_most && args.x_stride >= args.row_bytes && args.x_stride < sm90_most_stride &&
           args.tokens <= sm90_most && args.out_features <= sm90_most &&
           token_tiles_of(args) <= 0x7fffffff / Sm90Sparse24::band / 2 &&
           token_tiles_of(args) * row_tiles_of(args) <= sm90_most && sm90_available();
}

template <class P>
cudaError_t run(const Sparse24Args& args, cudaStream_t stream) {
    const std::int64_t token_tiles = token_tiles_of(args), row_tiles = row_tiles_of(args);
    return args.w_gate ? run<P, true>(args, token_tiles, row_tiles, stream)
                       : run<P, false>(args, token_tiles, row_tiles, stream);
}

}  // namespace

bool prefers_sm90_sparse24(Sparse24Product product, const Sparse24Args& args) {
    // Half the multiprocessors with it are worth all of them with mma.sp, by the estimates of both kernels.
    return serves(product, args) &&
           2 * token_tiles_of(args) * row_tiles_of(args) >= device_attribute(cudaDevAttrMultiProcessorCount);
}

cudaError_t launch_sm90_sparse24(Sparse24Product product, const Sparse24Args& args, cudaStream_t stream) {
    if (!serves(product, args)) return cudaErrorNotSupported;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    switch (product) {
        case Sparse24Product::bf16: return run<Sm90Sparse24Bf16>(args, stream);
        case Sparse24Product::f16: return run<Sm90Sparse24F16>(args, stream);
        case Sparse24Product::int8: return run<Sm90Sparse24Int8>(args, stream);
        default: return cudaErrorInvalidValue;
    }
}

#else

bool prefers_sm90_sparse24(Sparse24Product, const Sparse24Args&) { return false; }
cudaError_t launch_sm90_sparse24(Sparse24Product, const Sparse24Args&, cudaStream_t) { return cudaErrorNotSupported; }

#endif

}  // namespace fastffn::cuda
