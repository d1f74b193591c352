// Compiled for sm_90a alone, as sm90_dense.cu.
#include "launch/sm90_codes.hpp"

#include "launch/sm90_dense.hpp"

#ifdef FASTFFN_CUDA_SM90
#include "kernels/sm90_codes.cuh"
#include "kernels/sm90_int4.cuh"
#include "launch/codes_kernels.hpp"
#include "launch/launch.hpp"
#include "launch/sm90_arguments.hpp"
#endif

namespace fastffn::cuda {

#ifdef FASTFFN_CUDA_SM90

namespace {

bool is_ternary(const CodesArgs& args) { return args.bits == 2; }

std::int64_t outputs_of(const CodesArgs& args) {
    const bool is_gated = args.w_gate.codes != nullptr;
    return is_ternary(args) ? Sm90Codes::outputs(is_gated) : Sm90Int4::outputs(is_gated);
}

std::int64_t tiles_of(const CodesArgs& args) {
    static_assert(Sm90Codes::tokens == 128 && Sm90Int4::tokens == 128, "of tokens");
    return (args.tokens + 127) / 128 * ((args.out_features + outputs_of(args) - 1) / outputs_of(args));
}

// Sums of a whole depth are exact while 127 times it fits.
constexpr std::int64_t most_depth = 0x7fffffff / 127;

// What the end of a product needs; without scales where sums have theirs already.
DenseArgs output_of(const CodesArgs& args) {
    DenseArgs dense = {};
    dense.x = args.x;
    dense.x_stride = args.x_stride;
    dense.w = args.w.codes;
    dense.w_gate = args.w_gate.codes;
    dense.row_bytes = args.padded_depth;
    dense.w_stride = args.padded_depth * args.bits / 8;
    if (is_ternary(args)) {
        dense.x_scales = args.x_scales;
        dense.w_scales = static_cast<const float*>(args.w.scales);
        dense.w_gate_scales = static_cast<const float*>(args.w_gate.scales);
    }
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
    return dense;
}

}  // namespace

bool sm90_codes_serves(const CodesArgs& args) {
    const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
    const bool has_kernel =
        is_ternary(args) ? args.group == 0 : args.group >= 64 && !args.is_bf16 && args.zeros != CodesZeros::minima;
    return has_kernel && args.padded_depth > 0 && args.padded_depth <= most_depth && args.tokens <= sm90_most &&
           args.out_features <= sm90_most && aligned(args.x) && aligned(args.w.codes) && aligned(args.w_gate.codes) &&
           args.x_stride % 16 == 0 && args.x_stride >= args.padded_depth && args.x_stride < sm90_most_stride &&
           sm90_available();
}

bool prefers_sm90_codes(const CodesArgs& args) {
    // A tile is one or two of the other kernel's, of which a multiprocessor has one or two at once: below half a wave they win.
    return sm90_codes_serves(args) && 2 * tiles_of(args) >= device_attribute(cudaDevAttrMultiProcessorCount);
}

cudaError_t launch_sm90_codes(const CodesArgs& args, cudaStream_t stream) {
    if (wrong_codes(args) || !sm90_codes_serves(args)) return cudaErrorNotSupported;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    const bool is_gated = args.w_gate.codes != nullptr;
    const int multiprocessors = device_attribute(cudaDevAttrMultiProcessorCount);
    const std::int64_t tiles = tiles_of(args),
                       row_tiles = (args.out_features + outputs_of(args) - 1) / outputs_of(args);
    // Tile numbers are int in the kernel, a band or a wave beyond the end included.
    if (multiprocessors <= 0 || (args.tokens + 127) / 128 > 0x7fffffff / 32 || tiles > 0x7fffffff - 65536)
        return cudaErrorNotSupported;
    ptx::TensorMap x_map = {};
    if (!ptx::make_tensor_map(&x_map, {args.x, args.padded_depth, args.tokens, args.x_stride, 0, 0}, 128))
        return cudaErrorNotSupported;
    Grid grid = {dim3(static_cast<unsigned>(tiles < multiprocessors ? tiles : multiprocessors)),
                 dim3(is_ternary(args) ? Sm90Codes::threads : Sm90Int4::threads),
                 is_ternary(args) ? Sm90Codes::shared_bytes : Sm90Int4::shared_bytes,
                 stream,
                 is_ternary(args) ? "sm90_ternary" : "sm90_int4",
                 args.x_is_fresh};
    const AllTokens tokens{args.tokens};
    const DenseArgs output = output_of(args);
    if (is_ternary(args))
        return is_gated ? launch(sm90_ternary_kernel<true>, grid, x_map, output, tokens, row_tiles)
                        : launch(sm90_ternary_kernel<false>, grid, x_map, output, tokens, row_tiles);
    return is_gated ? launch(sm90_int4_kernel<true>, grid, x_map, args, output, tokens, row_tiles)
                    : launch(sm90_int4_kernel<false>, grid, x_map, args, output, tokens, row_tiles);
}

#else

bool sm90_codes_serves(const CodesArgs&) { return false; }
bool prefers_sm90_codes(const CodesArgs&) { return false; }
cudaError_t launch_sm90_codes(const CodesArgs&, cudaStream_t) { return cudaErrorNotSupported; }

#endif

}  // namespace fastffn::cuda
