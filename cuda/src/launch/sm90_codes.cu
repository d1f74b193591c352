// Compiled for sm_90a alone, as sm90_dense.cu.
#include "launch/sm90_codes.hpp"

#include "launch/sm90_dense.hpp"

#ifdef FASTFFN_CUDA_SM90
#include "kernels/sm90_codes.cuh"
#include "launch/launch.hpp"
#include "launch/sm90_arguments.hpp"
#endif

namespace fastffn::cuda {

#ifdef FASTFFN_CUDA_SM90

namespace {

std::int64_t tiles_of(const CodesArgs& args) {
    const int outputs = Sm90Codes::outputs(args.w_gate.codes != nullptr);
    return (args.tokens + Sm90Codes::tokens - 1) / Sm90Codes::tokens * ((args.out_features + outputs - 1) / outputs);
}

// Sums are exact while 127 · depth fits.
constexpr std::int64_t most_depth = 0x7fffffff / 127;

}  // namespace

bool sm90_codes_serves(const CodesArgs& args) {
    const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
    return args.bits == 2 && args.group == 0 && args.padded_depth > 0 && args.padded_depth <= most_depth &&
           args.tokens <= sm90_most && args.out_features <= sm90_most && aligned(args.x) && aligned(args.w.codes) &&
           aligned(args.w_gate.codes) && args.x_stride >= args.padded_depth && args.x_stride < sm90_most_stride &&
           sm90_available();
}

bool prefers_sm90_codes(const CodesArgs& args) {
    // A tile is four of the other kernel's, at less than twice their speed: with fewer than about half a wave it would lose.
    return sm90_codes_serves(args) && 2 * tiles_of(args) >= device_attribute(cudaDevAttrMultiProcessorCount);
}

cudaError_t launch_sm90_codes(const CodesArgs& args, cudaStream_t stream) {
    using T = Sm90Codes;
    if (!sm90_codes_serves(args) || args.x_stride % 16 != 0 || args.padded_depth % codes_chunk_columns(2) != 0)
        return cudaErrorNotSupported;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    const bool is_gated = args.w_gate.codes != nullptr;
    const int outputs = T::outputs(is_gated), multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
    const std::int64_t token_tiles = (args.tokens + T::tokens - 1) / T::tokens,
                       row_tiles = (args.out_features + outputs - 1) / outputs, tiles = token_tiles * row_tiles;
    if (multiprocessors <= 0 || token_tiles > 0x7fffffff / T::band / 2 || tiles > 0x7fffffff - 65536)
        return cudaErrorNotSupported;
    ptx::TensorMap x_map = {};
    if (!ptx::make_tensor_map(&x_map, {args.x, args.padded_depth, args.tokens, args.x_stride, 0, 0}, T::tokens))
        return cudaErrorNotSupported;
    DenseArgs dense = {};
    dense.x = args.x;
    dense.x_stride = args.x_stride;
    dense.w = args.w.codes;
    dense.w_gate = args.w_gate.codes;
    dense.row_bytes = args.padded_depth;
    dense.w_stride = args.padded_depth / 4;
    dense.x_scales = args.x_scales;
    dense.w_scales = static_cast<const float*>(args.w.scales);
    dense.w_gate_scales = static_cast<const float*>(args.w_gate.scales);
    dense.bias = args.bias;
    dense.gate_bias = args.gate_bias;
    dense.bias_dtype = args.bias_dtype;
    dense.gate_bias_dtype = args.gate_bias_dtype;
    dense.y = args.y;
    dense.y_stride = args.y_stride;
    dense.y_dtype = args.y_dtype;
    dense.tokens = args.tokens;
    dense.out_features = args.out_features;
    dense.activation = args.activation;
    const Grid grid = {dim3(static_cast<unsigned>(tiles < multiprocessors ? tiles : multiprocessors)),
                       dim3(T::threads),
                       T::shared_bytes,
                       stream,
                       "sm90_ternary",
                       args.x_is_fresh};
    const AllTokens tokens{args.tokens};
    return is_gated ? launch(sm90_ternary_kernel<true>, grid, x_map, dense, tokens, row_tiles)
                    : launch(sm90_ternary_kernel<false>, grid, x_map, dense, tokens, row_tiles);
}

#else

bool sm90_codes_serves(const CodesArgs&) { return false; }
bool prefers_sm90_codes(const CodesArgs&) { return false; }
cudaError_t launch_sm90_codes(const CodesArgs&, cudaStream_t) { return cudaErrorNotSupported; }

#endif

}  // namespace fastffn::cuda
