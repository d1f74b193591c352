#include "launch/codes_matrix.hpp"

#include "launch/codes.hpp"
#include "launch/product_ends.hpp"
#include "launch/rows.hpp"

namespace fastffn::cuda {

namespace {

DeviceLayout layout_of(const DeviceMatrix& w) {
    return device_layout(w.format, w.flags, w.parameters[0], w.out_features, w.in_features);
}

// From row0 on, which is 0 where there are groups.
CodesMatrix parts_of(const DeviceMatrix& w, const DeviceLayout& layout, std::int64_t row0) {
    if (!w.payload) return {};
    const auto* const payload = static_cast<const unsigned char*>(w.payload);
    return {payload + row0 * layout.row_bytes, payload + layout.scales_offset + row0 * 4,
            payload + layout.zeros_offset};
}

CodesZeros zeros_of(const DeviceMatrix& w) {
    const std::uint32_t zeros = w.flags & layout_zeros_mask;
    return zeros == layout_zero_points ? CodesZeros::points
           : zeros == layout_minima    ? CodesZeros::minima
                                       : CodesZeros::fixed;
}

}  // namespace

bool is_bf16_codes(const DeviceMatrix& w) {
    return (w.format == format_ternary || w.format == format_int4) && layout_of(w).is_bf16;
}

cudaError_t prepare_bf16_codes(const DeviceRows& x, const DeviceMatrix& w, const RowTransform& transform,
                               float* scratch, Pieces& pieces, cudaStream_t stream, Input* input) {
    const DeviceLayout layout = layout_of(w);
    const auto dtype = static_cast<DType>(x.dtype);
    input->row_bytes = layout.padded_depth * 2;
    const bool aligned = reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && (x.rows <= 1 || x.stride * 2 % 16 == 0);
    const bool is_ready = !transform.any() && dtype == DType::bf16 && aligned && x.cols == layout.padded_depth;
    void* const rows = is_ready ? x.data : pieces.take(x.rows * input->row_bytes);
    input->rows = rows;
    input->stride = is_ready && x.rows > 1 ? x.stride * 2 : input->row_bytes;
    if (zeros_of(w) != CodesZeros::fixed) input->bf16_sums = pieces.take<float>(x.rows * layout.groups * 4);
    if (pieces.counts_only()) return cudaSuccess;
    input->is_fresh = !is_ready || input->bf16_sums;
    if (!is_ready) {
        const RowsArgs args = {x.data,           dtype,         x.stride,  x.rows, x.cols, rows,
                               input->row_bytes, input->stride, transform, scratch};
        if (const cudaError_t status = launch_copy_rows(DType::bf16, args, stream); status != cudaSuccess)
            return status;
    }
    if (!input->bf16_sums) return cudaSuccess;
    return launch_group_sums(rows, input->stride, x.rows, x.cols, layout.group, layout.groups, input->bf16_sums,
                             stream);
}

cudaError_t multiply_codes(const Input& x, const DeviceMatrix& w, const DeviceMatrix& gate, const DeviceBias& bias,
                           const DeviceBias& gate_bias, Activation activation, const DeviceRows& y,
                           const TokenGroups* groups, cudaStream_t stream, const Slice& slice) {
    const DeviceLayout layout = layout_of(w);
    CodesArgs args = {};
    args.x = x.rows;
    args.x_stride = x.stride;
    args.x_scales = layout.is_bf16 ? nullptr : x.scales;
    args.x_sums = layout.is_bf16 ? static_cast<const void*>(x.bf16_sums) : x.sums;
    args.w = parts_of(w, layout, slice.first_row);
    args.w_gate = parts_of(gate, layout, slice.first_row);
    args.matrix_bytes = w.matrix_bytes;
    args.bits = layout.bits;
    args.is_bf16 = layout.is_bf16;
    args.zeros = zeros_of(w);
    args.padded_depth = layout.padded_depth;
    args.group = layout.group;
    args.groups = layout.groups;
    set_ends(args, bias, gate_bias, activation, y);
    args.out_features = slice.rows < 0 ? w.out_features : slice.rows;
    args.x_is_fresh = x.is_fresh;
    return launch_codes(args, groups, stream);
}

}  // namespace fastffn::cuda
