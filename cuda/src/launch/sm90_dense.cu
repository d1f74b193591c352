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

template <class P, int tile_rows, bool is_gated>
cudaError_t launch_tiles(const DenseArgs& args, int multiprocessors, cudaStream_t stream) {
    using T = Sm90Dense<tile_rows>;
    const int outputs = T::outputs(is_gated);
    const std::int64_t token_tiles = (args.tokens + T::tokens - 1) / T::tokens,
                       row_tiles = (args.out_features + outputs - 1) / outputs, tiles = token_tiles * row_tiles;
    // Tile numbers are int in the kernel, a band or a wave beyond the end included.
    if (token_tiles > 0x7fffffff / T::band / 2 || tiles > 0x7fffffff - 65536) return cudaErrorNotSupported;
    ptx::TensorMap x_map = {}, w_map = {}, gate_map = {};
    const auto rows = [&](const void* data, std::int64_t stride, std::int64_t count) {
        return ptx::TensorRows{data, args.row_bytes, count, stride, 0, 0};
    };
    const int box_rows = outputs < T::box_rows ? outputs : T::box_rows;
    if (!ptx::make_tensor_map(&x_map, rows(args.x, args.x_stride, args.tokens), T::tokens) ||
        !ptx::make_tensor_map(&w_map, rows(args.w, args.w_stride, args.out_features), box_rows) ||
        (is_gated && !ptx::make_tensor_map(&gate_map, rows(args.w_gate, args.w_stride, args.out_features), box_rows)))
        return cudaErrorNotSupported;
    const auto blocks = static_cast<unsigned>(tiles < multiprocessors ? tiles : multiprocessors);
    return launch(sm90_dense_kernel<P, tile_rows, is_gated>,
                  {dim3(blocks), dim3(T::threads), T::shared_bytes, stream, "sm90_dense"}, x_map, w_map, gate_map, args,
                  AllTokens{args.tokens}, row_tiles);
}

std::int64_t tiles_of(const DenseArgs& args, int tile_rows) {
    const std::int64_t outputs = args.w_gate ? tile_rows / 2 : tile_rows;
    return (args.tokens + 127) / 128 * ((args.out_features + outputs - 1) / outputs);
}

template <class P>
cudaError_t launch_product(const DenseArgs& args, cudaStream_t stream) {
    const bool is_gated = args.w_gate != nullptr;
    const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
    if (multiprocessors <= 0) return cudaErrorNotSupported;
    // The time of all waves, in small tiles. A small tile loads a third more bytes per product: estimated to cost a sixth.
    const auto waves = [&](int tile_rows) {
        return (tiles_of(args, tile_rows) + multiprocessors - 1) / multiprocessors;
    };
    if (12 * waves(256) <= 7 * waves(128))
        return is_gated ? launch_tiles<P, 256, true>(args, multiprocessors, stream)
                        : launch_tiles<P, 256, false>(args, multiprocessors, stream);
    return is_gated ? launch_tiles<P, 128, true>(args, multiprocessors, stream)
                    : launch_tiles<P, 128, false>(args, multiprocessors, stream);
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
    return sm90_dense_serves(args) && 4 * tiles_of(args, 128) >= device_attribute(cudaDevAttrMultiProcessorCount);
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
