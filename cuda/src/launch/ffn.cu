#include "launch/ffn.hpp"

#include "launch/codes.hpp"
#include "launch/dense.hpp"
#include "launch/rows.hpp"
#include "layout.hpp"

namespace fastffn::cuda {

namespace {

constexpr std::int64_t round_to(std::int64_t bytes, std::int64_t multiple) {
    return (bytes + multiple - 1) / multiple * multiple;
}

std::int64_t bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Hands out pieces of the workspace; without one it only counts.
struct Pieces {
    unsigned char* base;
    std::int64_t used = 0;
    template <class T = void>
    T* take(std::int64_t bytes) {
        void* piece = base ? base + used : nullptr;
        used += round_to(bytes, 256);
        return static_cast<T*>(piece);
    }
};

// Rows as the kernels of a matrix take them.
struct Input {
    const void* rows = nullptr;
    std::int64_t stride = 0, row_bytes = 0;
    float* scales = nullptr;
    std::int32_t* sums = nullptr;
};

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

// What the hidden activations are stored as.
DType hidden_dtype(const DeviceMatrix& down, DType x) { return is_quantised(down) ? DType::f32 : row_dtype(down, x); }

// Makes rows of x for w; with a workspace that only counts, says what that takes.
cudaError_t prepare(const DeviceRows& x, const DeviceMatrix& w, Pieces& pieces, cudaStream_t stream, Input* input) {
    const auto dtype = static_cast<DType>(x.dtype);
    const DeviceLayout layout = layout_of(w);
    const bool launches = pieces.base != nullptr;
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

const void* part(const DeviceMatrix& w, std::int64_t offset) {
    return w.payload ? static_cast<const unsigned char*>(w.payload) + offset : nullptr;
}

// y = act(x · wᵀ + b), or gated.
cudaError_t multiply(const Input& x, DType x_dtype, const DeviceMatrix& w, const DeviceMatrix& gate,
                     const DeviceBias& bias, const DeviceBias& gate_bias, Activation activation, const DeviceRows& y,
                     cudaStream_t stream) {
    const DeviceLayout layout = layout_of(w);
    if (w.format == format_ternary || w.format == format_int4) {
        CodesArgs args = {};
        args.x = x.rows;
        args.x_stride = x.stride;
        args.x_scales = x.scales;
        args.x_sums = x.sums;
        args.w = {w.payload, part(w, layout.scales_offset), part(w, layout.zeros_offset)};
        args.w_gate = {gate.payload, part(gate, layout.scales_offset), part(gate, layout.zeros_offset)};
        args.bits = layout.bits;
        const std::uint32_t zeros = w.flags & layout_zeros_mask;
        args.zeros = zeros == layout_zero_points ? CodesZeros::points
                     : zeros == layout_minima    ? CodesZeros::minima
                                                 : CodesZeros::fixed;
        args.padded_depth = layout.padded_depth;
        args.group = layout.group;
        args.groups = layout.groups;
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
        return launch_codes_few_tokens(args, stream);
    }
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
    if (w.format == format_f16 && row_dtype(w, x_dtype) == DType::f16) return launch_dense(Product::f16, args, stream);
    return launch_f32(w.format == format_f16 ? DType::f16 : DType::f32, args, stream);
}

const char* refusal(const DeviceMatrix& w) {
    const DeviceLayout layout = layout_of(w);
    if (layout.bytes == 0) return layout.reason;
    return layout.group % 32 != 0 ? "groups of codes on CUDA devices are multiples of 32" : nullptr;
}

cudaError_t run(const LinearCall& call, Pieces& pieces, cudaStream_t stream) {
    Input x;
    if (const cudaError_t status = prepare(call.x, call.w, pieces, stream, &x); status != cudaSuccess || !pieces.base)
        return status;
    return multiply(x, static_cast<DType>(call.x.dtype), call.w, {}, call.bias, {}, Activation::identity, call.y,
                    stream);
}

cudaError_t run(const FfnCall& call, Pieces& pieces, cudaStream_t stream) {
    Input x, hidden_input;
    const auto x_dtype = static_cast<DType>(call.x.dtype);
    const DType dtype = hidden_dtype(call.down, x_dtype);
    DeviceRows hidden = {nullptr, static_cast<std::int32_t>(dtype), call.x.rows, call.up.out_features, 0};
    hidden.stride = round_to(hidden.cols * bytes_of(dtype), 16) / bytes_of(dtype);
    hidden.data = pieces.take(hidden.rows * hidden.stride * bytes_of(dtype));
    if (cudaError_t status = prepare(call.x, call.up, pieces, stream, &x); status != cudaSuccess) return status;
    if (pieces.base) {
        const cudaError_t status = multiply(x, x_dtype, call.up, call.gate, call.b_up, call.b_gate,
                                            static_cast<Activation>(call.activation), hidden, stream);
        if (status != cudaSuccess) return status;
    }
    if (cudaError_t status = prepare(hidden, call.down, pieces, stream, &hidden_input);
        status != cudaSuccess || !pieces.base)
        return status;
    return multiply(hidden_input, dtype, call.down, {}, call.b_down, {}, Activation::identity, call.y, stream);
}

}  // namespace

const char* refusal(const LinearCall& call) { return refusal(call.w); }

const char* refusal(const FfnCall& call) {
    for (const DeviceMatrix* w : {&call.up, &call.down})
        if (const char* reason = refusal(*w)) return reason;
    if (!call.gate.payload) return nullptr;
    if (call.gate.format != call.up.format || call.gate.flags != call.up.flags ||
        call.gate.parameters[0] != call.up.parameters[0])
        return "w_gate and w_up of different formats or options have no CUDA kernels";
    return nullptr;
}

std::int64_t workspace_bytes(const LinearCall& call) {
    Pieces pieces{nullptr};
    run(call, pieces, nullptr);
    return pieces.used;
}

std::int64_t workspace_bytes(const FfnCall& call) {
    Pieces pieces{nullptr};
    run(call, pieces, nullptr);
    return pieces.used;
}

cudaError_t run(const LinearCall& call, void* workspace, cudaStream_t stream) {
    static unsigned char none;  // a call that needs no workspace launches all the same
    Pieces pieces{workspace ? static_cast<unsigned char*>(workspace) : &none};
    return run(call, pieces, stream);
}

cudaError_t run(const FfnCall& call, void* workspace, cudaStream_t stream) {
    Pieces pieces{static_cast<unsigned char*>(workspace)};
    return run(call, pieces, stream);
}

}  // namespace fastffn::cuda
