#include "launch/live_rows.hpp"

#include "kernels/live_rows.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

template <int bits, bool is_grouped>
cudaError_t run(const LiveRowsArgs& args, const Grid& grid) {
    return args.tokens == 1 ? launch(live_rows_kernel<bits, 1, is_grouped>, grid, args)
                            : launch(live_rows_kernel<bits, 8, is_grouped>, grid, args);
}

}  // namespace

bool has_live_rows(const DeviceMatrix& up) {
    return (up.format == format_ternary || up.format == format_int4) &&
           (up.flags & layout_act_mask) >> layout_act_shift <= layout_act_int4;
}

cudaError_t launch_live_rows(const Input& x, const DeviceMatrix& up, const DeviceBias& bias, const DeviceRows& hidden,
                             cudaStream_t stream) {
    if (!has_live_rows(up) || hidden.rows > live_rows_limit || static_cast<DType>(hidden.dtype) != DType::f32)
        return cudaErrorInvalidValue;
    const DeviceLayout layout = device_layout(up.format, up.flags, up.parameters[0], up.out_features, up.in_features);
    const auto* const payload = static_cast<const unsigned char*>(up.payload);
    LiveRowsArgs args = {};
    args.x = static_cast<const unsigned char*>(x.rows);
    args.x_stride = x.stride;
    args.x_scales = x.scales;
    args.x_sums = x.sums;
    args.codes = payload;
    args.scales = payload + layout.scales_offset;
    args.zeros = payload + layout.zeros_offset;
    args.zeros_kind = static_cast<int>(up.flags & layout_zeros_mask);
    args.bias = bias.data;
    args.bias_dtype = static_cast<DType>(bias.dtype);
    args.hidden = static_cast<float*>(hidden.data);
    args.hidden_stride = hidden.stride;
    args.row_bytes = layout.row_bytes;
    args.group = layout.group;
    args.groups = layout.groups;
    args.table_rows = codes_table_rows(up.out_features);
    args.columns = up.out_features;
    args.tokens = static_cast<int>(hidden.rows);
    const std::int64_t blocks = (up.out_features + live_columns - 1) / live_columns;
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(live_warps * 32), 0, stream, "live_rows"};
    if (layout.bits == 4) return layout.group ? run<4, true>(args, grid) : cudaErrorInvalidValue;  // int4 has groups
    return layout.group ? run<2, true>(args, grid) : run<2, false>(args, grid);
}

}  // namespace fastffn::cuda
