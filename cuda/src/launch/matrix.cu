#include "launch/matrix.hpp"

#include "launch/codes_matrix.hpp"
#include "launch/dense.hpp"
#include "launch/rows.hpp"
#include "layout.hpp"

namespace fastffn::cuda {

namespace {

DeviceLayout layout_of(const DeviceMatrix& w) {
    return device_layout(w.format, w.flags, w.parameters[0], w.out_features, w.in_features);
}

// The type that rows have in front of weights of 16 or 32 bits. f16 weights keep f32 rows, and bf16 ones, exactly: as f32.
DType row_dtype(const DeviceMatrix& w, DType x) {
    if (w.format == format_bf16) return DType::bf16;
    if (w.format == format_f16 && x == DType::f16) return DType::f16;
    return DType::f32;
}

bool is_quantised(const DeviceMatrix& w) {
    return w.format == format_int8 || w.format == format_ternary || w.format == format_int4;
}

const void* part(const DeviceMatrix& w, std::int64_t offset) {
    return w.payload ? static_cast<const unsigned char*>(w.payload) + offset : nullptr;
}

}  // namespace

bool shares_rows(const DeviceMatrix& up, const DeviceMatrix& gate) {
    return up.format == gate.format && up.flags == gate.flags && up.parameters[0] == gate.parameters[0] &&
           up.parameters[1] == gate.parameters[1];
}

DType hidden_dtype(const DeviceMatrix& down, DType x) {
    if (is_bf16_codes(down)) return DType::bf16;
    return is_quantised(down) ? DType::f32 : row_dtype(down, x);
}

cudaError_t prepare(const DeviceRows& x, const DeviceMatrix& w, Pieces& pieces, cudaStream_t stream, Input* input) {
    const auto dtype = static_cast<DType>(x.dtype);
    const DeviceLayout layout = layout_of(w);
    const bool launches = !pieces.counts_only();
    input->dtype = dtype;
    if (is_bf16_codes(w)) return prepare_bf16_codes(x, w, pieces, stream, input);
    if (!is_quantised(w)) {
        const DType to = row_dtype(w, dtype);
        input->row_bytes = round_to(x.cols * bytes_of(to), 16);
        const bool aligned =
            reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && (x.rows <= 1 || x.stride * bytes_of(to) % 16 == 0);
        if (dtype == to && aligned && x.cols * bytes_of(to) == input->row_bytes) {
            input->rows = x.data;
            input->stride = x.rows <= 1 ? input->row_bytes : x.stride * bytes_of(to);
            return cudaSuccess;
        }
        void* const rows = pieces.take(x.rows * input->row_bytes);
        input->rows = rows;
        input->stride = input->row_bytes;
        if (!launches) return cudaSuccess;
        return launch_copy_rows(to, {x.data, dtype, x.stride, x.rows, x.cols, rows, input->row_bytes, input->row_bytes},
                                stream);
    }
    const bool codes = w.format != format_int8;
    input->row_bytes = input->stride = codes ? layout.padded_depth : layout.row_bytes;
    QuantizeArgs args = {};
    void* const rows = pieces.take(x.rows * input->row_bytes);
    input->rows = rows;
    input->scales = args.scales = pieces.take<float>(x.rows * 4);
    if (codes) input->sums = args.sums = pieces.take<std::int32_t>(x.rows * layout.groups * 4);
    if (!launches) return cudaSuccess;
    args.rows = {x.data, dtype, x.stride, x.rows, x.cols, rows, input->row_bytes, input->stride};
    args.group = layout.group;
    args.groups = layout.groups;
    args.interleaved = codes;
    const bool four = codes && (w.flags & layout_act_mask) >> layout_act_shift == layout_act_int4;
    if (!codes) args.rule = RowRule::int8;
    else if (w.format == format_ternary) args.rule = four ? RowRule::mean4 : RowRule::ternary;
    else args.rule = four ? RowRule::mean4_int4 : RowRule::int4;
    return launch_quantize_rows(args, stream);
}

cudaError_t multiply(const Input& x, const DeviceMatrix& w, const DeviceMatrix& gate, const DeviceBias& bias,
                     const DeviceBias& gate_bias, Activation activation, const DeviceRows& y, const TokenGroups* groups,
                     cudaStream_t stream) {
    if (w.format == format_ternary || w.format == format_int4)
        return multiply_codes(x, w, gate, bias, gate_bias, activation, y, groups, stream);
    if (groups) return cudaErrorNotSupported;
    const DeviceLayout layout = layout_of(w);
    DenseArgs args = {};
    args.x = x.rows;
    args.x_stride = x.stride;
    args.w = w.payload;
    args.w_gate = gate.payload;
    args.row_bytes = x.row_bytes;
    args.w_stride = layout.row_bytes;
    if (w.format == format_int8) {
        args.x_scales = x.scales;
        args.w_scales = static_cast<const float*>(part(w, layout.scales_offset));
        args.w_gate_scales = static_cast<const float*>(part(gate, layout.scales_offset));
    }
    args.bias = bias.data;
    args.gate_bias = gate_bias.data;
    args.bias_dtype = static_cast<DType>(bias.dtype);
    args.gate_bias_dtype = static_cast<DType>(gate_bias.dtype);
    args.y = y.data;
    args.y_stride = y.stride;
    args.y_dtype = static_cast<DType>(y.dtype);
    args.tokens = y.rows;
    args.out_features = w.out_features;
    args.activation = activation;
    if (w.format == format_int8) return launch_dense(Product::int8, args, stream);
    if (w.format == format_bf16) return launch_dense(Product::bf16, args, stream);
    if (w.format == format_f16 && row_dtype(w, x.dtype) == DType::f16) return launch_dense(Product::f16, args, stream);
    return launch_f32(w.format == format_f16 ? DType::f16 : DType::f32, args, stream);
}

const char* refusal(const DeviceMatrix& w, bool is_grouped) {
    const DeviceLayout layout = layout_of(w);
    if (layout.bytes == 0) return layout.reason;
    return is_grouped && layout.bits == 0 ? "stacks of matrices have no CUDA kernels" : nullptr;
}

}  // namespace fastffn::cuda
