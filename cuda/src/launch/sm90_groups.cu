// Compiled for sm_90a alone; see launch/sm90_dense.cu.
#include "launch/sm90_dense.hpp"

#ifdef FASTFFN_CUDA_SM90
#include "kernels/sm90_groups.cuh"
#include "launch/launch.hpp"
#include "launch/sm90_arguments.hpp"
#endif

namespace fastffn::cuda {

#ifdef FASTFFN_CUDA_SM90

namespace {

using T = Sm90Dense<256>;

template <class P, bool is_gated>
cudaError_t launch_stack(const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream) {
    constexpr int outputs = T::outputs(is_gated), box_rows = outputs < T::box_rows ? outputs : T::box_rows;
    const std::int64_t row_tiles = (args.out_features + outputs - 1) / outputs;
    // Tile numbers are int in the kernel, a band or a wave beyond the end included.
    if (groups.max_tiles > 0x3fffffff / T::band || row_tiles > 0x3fffffff / groups.max_tiles)
        return cudaErrorNotSupported;
    ptx::TensorMap w_map = {}, gate_map = {};
    const auto stack = [&](const void* data) {
        return ptx::TensorRows{data,          args.row_bytes, args.out_features,
                               args.w_stride, groups.groups,  args.matrix_bytes};
    };
    if (!ptx::make_tensor_map(&w_map, stack(args.w), box_rows) ||
        (is_gated && !ptx::make_tensor_map(&gate_map, stack(args.w_gate), box_rows)))
        return cudaErrorNotSupported;
    std::int64_t blocks = 0;
    if (const cudaError_t status = blocks_at_once(1, &blocks); status != cudaSuccess) return status;
    blocks = blocks < groups.max_tiles * row_tiles ? blocks : groups.max_tiles * row_tiles;
    return launch(
        sm90_groups_kernel<P, T::rows, is_gated>,
        {dim3(static_cast<unsigned>(blocks)), dim3(T::threads), T::shared_bytes, stream, "sm90_dense of groups"}, w_map,
        gate_map, args, GroupedTokens{groups}, row_tiles);
}

template <class P>
cudaError_t launch_product(const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream) {
    return args.w_gate ? launch_stack<P, true>(args, groups, stream) : launch_stack<P, false>(args, groups, stream);
}

bool serves(const DenseArgs& args, const TokenGroups& groups) {
    return groups.tile_tokens == T::tokens && groups.groups > 0 && groups.groups <= sm90_most && groups.max_tiles > 0 &&
           args.out_features > 0 && args.matrix_bytes > 0 && args.matrix_bytes % 16 == 0 &&
           args.matrix_bytes < sm90_most_stride && reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 &&
           fits_sm90(args) && sm90_available();
}

}  // namespace

bool prefers_sm90_dense(const DenseArgs& args, const TokenGroups& groups) {
    // The large tile alone: narrow matrices would leave most of it empty.
    const std::int64_t outputs = T::outputs(args.w_gate != nullptr);
    return 4 * args.out_features >= 3 * ((args.out_features + outputs - 1) / outputs * outputs) && serves(args, groups);
}

cudaError_t launch_sm90_dense(Product product, const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream) {
    if (!serves(args, groups)) return cudaErrorNotSupported;
    switch (product) {
        case Product::bf16: return launch_product<Bf16Wgmma>(args, groups, stream);
        case Product::f16: return launch_product<F16Wgmma>(args, groups, stream);
        case Product::int8: return launch_product<Int8Wgmma>(args, groups, stream);
    }
    return cudaErrorInvalidValue;
}

#else

bool prefers_sm90_dense(const DenseArgs&, const TokenGroups&) { return false; }
cudaError_t launch_sm90_dense(Product, const DenseArgs&, const TokenGroups&, cudaStream_t) {
    return cudaErrorNotSupported;
}

#endif

}  // namespace fastffn::cuda
