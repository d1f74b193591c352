// Compiled for sm_90a alone, whose code runs on no other device; without FASTFFN_CUDA_SM90 it says that there is none.
#include "launch/sm90_dense.hpp"

#include <atomic>

#ifdef FASTFFN_CUDA_SM90
#include "kernels/sm90_dense.cuh"
#include "launch/launch.hpp"
#include "launch/sm90_arguments.hpp"
#endif

namespace fastffn::cuda {

namespace {

std::atomic<bool> sm90_allowed{true};

#ifdef FASTFFN_CUDA_SM90

std::int64_t ceil_div(std::int64_t n, std::int64_t of) { return (n + of - 1) / of; }

// Tiles of tokens of a whole cluster, times tiles of rows.
std::int64_t tiles_of(const DenseArgs& args, int tile_rows, int cluster) {
    return ceil_div(ceil_div(args.tokens, 128), cluster) *
           ceil_div(args.out_features, args.w_gate ? tile_rows / 2 : tile_rows);
}

template <class P, int tile_rows, int cluster, bool is_gated>
cudaError_t launch_tiles(const DenseArgs& args, int multiprocessors, cudaStream_t stream) {
    using T = Sm90Dense<tile_rows, cluster>;
    constexpr int outputs = T::outputs(is_gated), box_rows = outputs < T::box_rows ? outputs : T::box_rows;
    const std::int64_t tiles = tiles_of(args, tile_rows, cluster), row_tiles = ceil_div(args.out_features, outputs);
    // Tile numbers are int in the kernel, a band or a wave beyond the end included.
    if (ceil_div(args.tokens, T::tokens) > 0x7fffffff / T::band / 2 || tiles > 0x7fffffff - 65536)
        return cudaErrorNotSupported;
    ptx::TensorMap x_map = {}, w_map = {}, gate_map = {};
    const auto rows = [&](const void* data, std::int64_t stride, std::int64_t count) {
        return ptx::TensorRows{data, args.row_bytes, count, stride, 0, 0};
    };
    if (!ptx::make_tensor_map(&x_map, rows(args.x, args.x_stride, args.tokens), T::tokens) ||
        !ptx::make_tensor_map(&w_map, rows(args.w, args.w_stride, args.out_features), box_rows) ||
        (is_gated && !ptx::make_tensor_map(&gate_map, rows(args.w_gate, args.w_stride, args.out_features), box_rows)))
        return cudaErrorNotSupported;
    const auto kernel = sm90_dense_kernel<P, tile_rows, cluster, is_gated>;
    Grid grid = {dim3(cluster), dim3(T::threads), T::shared_bytes, stream, "sm90_dense"};
    grid.cluster = cluster;
    // No more than run at once: a cluster that had to wait for others to return would double the time.
    const std::int64_t at_once = cluster == 1 ? multiprocessors : clusters_at_once(kernel, grid);
    if (at_once <= 0) return cudaErrorNotSupported;
    grid.blocks.x = static_cast<unsigned>(cluster * (tiles < at_once ? tiles : at_once));
    return launch(kernel, grid, x_map, w_map, gate_map, args, AllTokens{args.tokens}, row_tiles);
}

template <class P, int tile_rows, int cluster>
cudaError_t launch_tiles(const DenseArgs& args, int multiprocessors, cudaStream_t stream) {
    return args.w_gate ? launch_tiles<P, tile_rows, cluster, true>(args, multiprocessors, stream)
                       : launch_tiles<P, tile_rows, cluster, false>(args, multiprocessors, stream);
}

template <class P>
cudaError_t launch_product(const DenseArgs& args, cudaStream_t stream) {
    const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
    if (multiprocessors <= 0) return cudaErrorNotSupported;
    // Cycles per 128 bytes of depth, by what is scarcer: tensor cores, in whole waves, or L2, which gives 32 KiB to each block
    // of either kind of tile (kernels/sm90_dense.cuh has the estimates).
    const auto cycles = [&](int tile_rows, int cluster) {
        const std::int64_t tiles = tiles_of(args, tile_rows, cluster), at_once = multiprocessors / cluster;
        if (at_once == 0) return std::int64_t{0x7fffffffffffffff};
        const std::int64_t tensor_cores = ceil_div(tiles, at_once) * 4 * tile_rows;
        const std::int64_t l2 = tiles * cluster * 32768 / (30 * multiprocessors);
        return tensor_cores > l2 ? tensor_cores : l2;
    };
    if (cycles(256, 2) <= cycles(128, 1))
        if (const cudaError_t status = launch_tiles<P, 256, 2>(args, multiprocessors, stream);
            status != cudaErrorNotSupported)
            return status;
    return launch_tiles<P, 128, 1>(args, multiprocessors, stream);
}

#endif

}  // namespace

void allow_sm90(bool allowed) { sm90_allowed = allowed; }

#ifdef FASTFFN_CUDA_SM90

bool sm90_available() {
    return sm90_allowed && device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
           device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

bool sm90_dense_serves(const DenseArgs& args) {
    return fits_sm90(args) && reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 && args.tokens <= sm90_most &&
           args.x_stride >= args.row_bytes && args.x_stride < sm90_most_stride && sm90_available();
}

bool prefers_sm90_dense(const DenseArgs& args) {
    // A block's six stages under way are worth about four blocks of the other kernel: an estimate.
    return sm90_dense_serves(args) && 4 * tiles_of(args, 128, 1) >= device_attribute(cudaDevAttrMultiProcessorCount);
}

cudaError_t launch_sm90_dense(Product product, const DenseArgs& args, cudaStream_t stream) {
    if (!sm90_dense_serves(args)) return cudaErrorNotSupported;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    switch (product) {
        case Product::bf16: return launch_product<Bf16Wgmma>(args, stream);
        case Product::f16: return launch_product<F16Wgmma>(args, stream);
        case Product::int8: return launch_product<Int8Wgmma>(args, stream);
    }
    return cudaErrorInvalidValue;
}

#else

bool sm90_available() { return false; }
bool sm90_dense_serves(const DenseArgs&) { return false; }
bool prefers_sm90_dense(const DenseArgs&) { return false; }
cudaError_t launch_sm90_dense(Product, const DenseArgs&, cudaStream_t) { return cudaErrorNotSupported; }

#endif

}  // namespace fastffn::cuda
