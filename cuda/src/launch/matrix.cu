#include "launch/matrix.hpp"

#include "launch/codes_matrix.hpp"
#include "launch/dense.hpp"
#include "launch/hadamard.hpp"
#include "launch/lowrank.hpp"
#include "launch/product_ends.hpp"
#include "launch/rows.hpp"
#include "launch/sparse24.hpp"
#include "launch/transform.hpp"
#include "layout.hpp"
#include "layout/lowrank.hpp"

namespace fastffn::cuda {

namespace {

DeviceLayout layout_of(const DeviceMatrix& w) {
    return device_layout(w.format, w.flags, w.parameters[0], w.out_features, w.in_features);
}

// sparse24 takes the rows of x that dense weights of its values would.
int values_format(const DeviceMatrix& w) {
    if (w.format != format_sparse24) return w.format;
    constexpr int formats[] = {format_bf16, format_f16, format_f32, format_int8};
    return formats[w.flags & 3];
}

// The type that rows have in front of weights of 16 or 32 bits. f16 weights keep f32 rows, and bf16 ones, exactly: as f32.
DType row_dtype(const DeviceMatrix& w, DType x) {
    const int format = values_format(w);
    if (format == format_bf16) return DType::bf16;
    if (format == format_f16 && x == DType::f16) return DType::f16;
    return DType::f32;
}

bool is_quantised(const DeviceMatrix& w) {
    return values_format(w) == format_int8 || w.format == format_ternary || w.format == format_int4;
}

const void* at(const void* data, std::int64_t offset) {
    return data ? static_cast<const unsigned char*>(data) + offset : nullptr;
}

const void* part(const DeviceMatrix& w, std::int64_t offset) { return at(w.payload, offset); }

cudaError_t multiply_sparse24(const Input& x, const DeviceMatrix& w, const DeviceMatrix& gate, const DeviceBias& bias,
                              const DeviceBias& gate_bias, Activation activation, const DeviceRows& y,
                              const TokenGroups* groups, cudaStream_t stream) {
    const DeviceLayout layout = layout_of(w);
    Sparse24Args args = {};
    args.x = x.rows;
    args.x_stride = x.stride;
    args.row_bytes = x.row_bytes;
    args.w = w.payload;
    args.w_gate = gate.payload;
    args.tile_bytes = layout.tile_bytes;
    args.pieces = sparse24_pieces(w.flags, w.in_features);
    if (w.flags == sparse24_int8) {
        args.x_scales = x.scales;
        args.w_scales = static_cast<const float*>(part(w, layout.scales_offset));
        args.w_gate_scales = static_cast<const float*>(part(gate, layout.scales_offset));
    }
    args.matrix_bytes = w.matrix_bytes;
    args.x_is_fresh = x.is_fresh;
    set_ends(args, bias, gate_bias, activation, y);
    args.out_features = w.out_features;
    const auto product = [&] {
        if (w.flags == sparse24_int8) return Sparse24Product::int8;
        if (w.flags == sparse24_bf16) return Sparse24Product::bf16;
        if (w.flags == sparse24_f32) return Sparse24Product::f32;
        return row_dtype(w, x.dtype) == DType::f16 ? Sparse24Product::f16 : Sparse24Product::f32_f16;
    }();
    return launch_sparse24(product, args, groups, stream);
}

}  // namespace

bool shares_rows(const DeviceMatrix& up, const DeviceMatrix& gate) {
    return up.format == gate.format && up.flags == gate.flags && up.parameters[0] == gate.parameters[0] &&
           up.parameters[1] == gate.parameters[1];
}

DType hidden_dtype(const DeviceMatrix& down, DType x) {
    if (is_bf16_codes(down)) return down.flags & layout_hadamard_mask ? DType::f32 : DType::bf16;
    if (down.format == format_lowrank)  // its u may be of int8 with scales of its own, made from whole f32 numbers
        return lowrank_outer(down).format == format_int8 ? DType::f32 : row_dtype(lowrank_outer(down), x);
    return is_quantised(down) ? DType::f32 : row_dtype(down, x);
}

cudaError_t prepare(const DeviceRows& x, const DeviceMatrix& w, Pieces& pieces, cudaStream_t stream, Input* input,
                    const TokenGroups* groups, const RowNorm& norm) {
    if (w.format == format_lowrank && !norm.gamma) return prepare_lowrank(x, w, pieces, stream, input, groups);
    const auto dtype = static_cast<DType>(x.dtype);
    RowTransform transform = {norm, {}};
    if (is_quantised(w) && values_format(w) != format_int8)
        transform.hadamard = hadamard_of_flags(w.flags, w.parameters[1], x.cols);
    auto* const scratch = pieces.take<float>(transform_scratch_bytes(x.rows, x.cols, transform));
    const bool launches = !pieces.counts_only();
    if (w.format == format_lowrank) {  // its u meets rows as they are
        DeviceRows rows = {nullptr, static_cast<std::int32_t>(DType::f32), x.rows, x.cols, round_to(x.cols, 4)};
        const std::int64_t row_bytes = rows.stride * 4;
        rows.data = pieces.take(x.rows * row_bytes);
        if (launches) {
            const RowsArgs args = {x.data,    dtype,     x.stride,  x.rows,    x.cols,
                                   rows.data, row_bytes, row_bytes, transform, scratch};
            if (const cudaError_t status = launch_copy_rows(DType::f32, args, stream); status != cudaSuccess)
                return status;
        }
        return prepare_lowrank(rows, w, pieces, stream, input, groups);
    }
    const DeviceLayout layout = layout_of(w);
    input->dtype = dtype;
    if (is_bf16_codes(w)) return prepare_bf16_codes(x, w, transform, scratch, pieces, stream, input);
    if (!is_quantised(w)) {
        const DType to = row_dtype(w, dtype);
        input->row_bytes = round_to(x.cols * bytes_of(to), 16);
        const bool aligned =
            reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && (x.rows <= 1 || x.stride * bytes_of(to) % 16 == 0);
        if (!transform.any() && dtype == to && aligned && x.cols * bytes_of(to) == input->row_bytes) {
            input->rows = x.data;
            input->stride = x.rows <= 1 ? input->row_bytes : x.stride * bytes_of(to);
            return cudaSuccess;
        }
        void* const rows = pieces.take(x.rows * input->row_bytes);
        input->rows = rows;
        input->stride = input->row_bytes;
        if (!launches) return cudaSuccess;
        input->is_fresh = true;
        return launch_copy_rows(
            to, {x.data, dtype, x.stride, x.rows, x.cols, rows, input->row_bytes, input->row_bytes, transform, scratch},
            stream);
    }
    const bool codes = values_format(w) != format_int8;
    input->row_bytes = input->stride = codes ? layout.padded_depth : round_to(x.cols, 16);
    QuantizeArgs args = {};
    void* const rows = pieces.take(x.rows * input->row_bytes);
    input->rows = rows;
    input->scales = args.scales = pieces.take<float>(x.rows * 4);
    if (codes) input->sums = args.sums = pieces.take<std::int32_t>(x.rows * layout.groups * 4);
    if (!launches) return cudaSuccess;
    input->is_fresh = true;
    args.rows = {x.data, dtype, x.stride, x.rows, x.cols, rows, input->row_bytes, input->stride, transform, scratch};
    args.group = layout.group;
    args.groups = layout.groups;
    args.interleaved = codes;
    const bool four = codes && (w.flags & layout_act_mask) >> layout_act_shift == layout_act_int4;
    if (!codes) args.rule = RowRule::int8;
    else if (w.format == format_ternary) args.rule = four ? RowRule::mean4 : RowRule::ternary;
    else args.rule = four ? RowRule::mean4_int4 : RowRule::int4;
    return launch_quantize_rows(args, stream);
}

bool has_col_slices(const DeviceMatrix& w) {
    return w.format == format_f32 || w.format == format_f16 || w.format == format_bf16 || w.format == format_int8;
}

bool has_row_slices(const DeviceMatrix& w) {
    return has_col_slices(w) || (w.format == format_ternary && w.parameters[0] == 0);  // scales of groups lie by group
}

cudaError_t multiply(const Input& x, const DeviceMatrix& w, const DeviceMatrix& gate, const DeviceBias& all_biases,
                     const DeviceBias& all_gate_biases, Activation activation, const DeviceRows& y,
                     const TokenGroups* groups, cudaStream_t stream, const Slice& slice) {
    const bool is_slice = slice.first_row != 0 || slice.rows >= 0 || slice.first_col != 0 || slice.cols >= 0;
    if (is_slice && (groups || !has_row_slices(w) || slice.first_col % 16 != 0)) return cudaErrorNotSupported;
    const auto sliced_bias = [&](const DeviceBias& all) {
        return DeviceBias{at(all.data, slice.first_row * bytes_of(static_cast<DType>(all.dtype))), all.dtype};
    };
    const DeviceBias bias = sliced_bias(all_biases), gate_bias = sliced_bias(all_gate_biases);
    const std::int64_t row0 = slice.first_row, out_features = slice.rows < 0 ? w.out_features : slice.rows;
    if (w.format == format_sparse24)
        return multiply_sparse24(x, w, gate, bias, gate_bias, activation, y, groups, stream);
    if (w.format == format_lowrank) {
        TokenGroups positions = groups ? *groups : TokenGroups{};
        if (x.is_by_position) positions.rows = nullptr;
        return multiply(x, lowrank_outer(w), gate.payload ? lowrank_outer(gate) : DeviceMatrix{}, bias, gate_bias,
                        activation, y, groups ? &positions : nullptr, stream);
    }
    if (w.format == format_ternary || w.format == format_int4)
        return multiply_codes(x, w, gate, bias, gate_bias, activation, y, groups, stream, slice);
    const DeviceLayout layout = layout_of(w);
    DenseArgs args = {};
    const int x_element = w.format == format_int8 ? 1 : static_cast<int>(bytes_of(row_dtype(w, x.dtype))),
              w_element = w.format == format_f32    ? 4
                          : w.format == format_int8 ? 1
                                                    : 2;
    args.x = at(x.rows, slice.first_col * x_element);
    args.x_stride = x.stride;
    args.w = part(w, row0 * layout.row_bytes + slice.first_col * w_element);
    args.w_gate = part(gate, row0 * layout.row_bytes + slice.first_col * w_element);
    args.row_bytes = slice.cols < 0 ? x.row_bytes - slice.first_col * x_element : round_to(slice.cols * x_element, 16);
    args.w_stride = layout.row_bytes;
    args.matrix_bytes = w.matrix_bytes;
    if (w.format == format_int8) {
        args.x_scales = x.scales;
        args.w_scales = static_cast<const float*>(part(w, layout.scales_offset + row0 * 4));
        args.w_gate_scales = static_cast<const float*>(part(gate, layout.scales_offset + row0 * 4));
    }
    set_ends(args, bias, gate_bias, activation, y);
    args.out_features = out_features;
    args.x_is_fresh = x.is_fresh;
    const auto dense = [&](Product product) {
        return groups ? launch_dense(product, args, *groups, stream) : launch_dense(product, args, stream);
    };
    if (w.format == format_int8) return dense(Product::int8);
    if (w.format == format_bf16) return dense(Product::bf16);
    if (w.format == format_f16 && row_dtype(w, x.dtype) == DType::f16) return dense(Product::f16);
    const DType weights = w.format == format_f16 ? DType::f16 : DType::f32;
    return groups ? launch_f32(weights, args, *groups, stream) : launch_f32(weights, args, stream);
}

const char* refusal(const DeviceMatrix& w) {
    if (w.format == format_lowrank) return lowrank_refusal(w);
    const DeviceLayout layout = layout_of(w);
    return layout.bytes == 0 ? layout.reason : nullptr;
}

}  // namespace fastffn::cuda
