#include "launch/ffn.hpp"

#include "launch/gate.hpp"
#include "launch/live_rows.hpp"
#include "launch/matrix.hpp"
#include "launch/segments.hpp"
#include "layout.hpp"

namespace fastffn::cuda {

namespace {

// Hidden rows that are kept at once, and the fewest tokens: 32 MiB stay in the L2 of an A100 (40 MB) or H100 (50 MB) between the two products; below
// 2048 tokens tiles are too few for every multiprocessor. Estimates, not measured yet.
constexpr std::int64_t hidden_limit = std::int64_t{32} << 20;
constexpr std::int64_t least_chunk = 2048;

cudaError_t run(const LinearCall& call, Pieces& pieces, cudaStream_t stream) {
    Input x;
    if (const cudaError_t status = prepare(call.x, call.w, pieces, stream, &x); status != cudaSuccess || !pieces.base)
        return status;
    return multiply(x, call.w, {}, call.bias, {}, Activation::identity, call.y, nullptr, stream);
}

DeviceRows take_rows(Pieces& pieces, DType dtype, std::int64_t rows, std::int64_t cols) {
    const std::int64_t row_bytes = round_to(cols * bytes_of(dtype), 16);
    return {pieces.take(rows * row_bytes), static_cast<std::int32_t>(dtype), rows, cols, row_bytes / bytes_of(dtype)};
}

// Gate first, then rows of w_up that live: worth a launch of its own where most of w_up is left out and takes long to read. 8 MiB are
// 2 µs of an H200's HBM, of which two thirds are saved for one token at BitNet a4.8's 67.5 % of zeros. An estimate, not measured yet.
constexpr std::int64_t gate_first_bytes = std::int64_t{8} << 20, gate_first_tokens = 2;

bool runs_gate_first(const FfnCall& call) {
    if (call.gate_first == 0 || !call.gate.payload || call.segment_count || !has_live_rows(call.up)) return false;
    if (call.gate_first == 2) return call.x.rows <= live_rows_limit;
    return call.x.rows <= gate_first_tokens && call.up.matrix_bytes >= gate_first_bytes;
}

cudaError_t make_hidden_gate_first(const FfnCall& call, const DeviceRows& hidden, Pieces& pieces, cudaStream_t stream) {
    Input x, gate_x;
    if (const cudaError_t status = prepare(call.x, call.up, pieces, stream, &x); status != cudaSuccess) return status;
    if (shares_rows(call.up, call.gate)) gate_x = x;
    else if (const cudaError_t status = prepare(call.x, call.gate, pieces, stream, &gate_x); status != cudaSuccess)
        return status;
    if (pieces.counts_only()) return cudaSuccess;
    if (const cudaError_t status = multiply(gate_x, call.gate, {}, call.b_gate, {},
                                            static_cast<Activation>(call.activation), hidden, nullptr, stream);
        status != cudaSuccess)
        return status;
    return launch_live_rows(x, call.up, call.b_up, hidden, stream);
}

// The columns of a product's result that are used: all of them at once, or, where segments are given and the format has slices, each
// segment by a product of its own. What lies between segments may hold anything afterwards.
cudaError_t multiply_used(const FfnCall& call, const Input& x, const DeviceMatrix& w, const DeviceMatrix& gate,
                          const DeviceBias& bias, const DeviceBias& gate_bias, Activation activation,
                          const DeviceRows& hidden, cudaStream_t stream) {
    if (!call.segment_count || !has_row_slices(w))
        return multiply(x, w, gate, bias, gate_bias, activation, hidden, nullptr, stream);
    Input rows = x;
    for (std::int64_t i = 0; i < call.segment_count; ++i) {
        const DeviceSegment& segment = call.segments[i];
        Slice slice;
        slice.first_row = segment.start;
        slice.rows = segment.length;
        rows.is_fresh = rows.is_fresh && i == 0;
        const cudaError_t status = multiply(rows, w, gate, bias, gate_bias, activation,
                                            columns_of(hidden, segment.start, segment.length), nullptr, stream, slice);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

// hidden = act(x · gateᵀ + b_gate) ⊙ (x · upᵀ + b_up), or act(x · upᵀ + b_up).
cudaError_t make_hidden(const FfnCall& call, const DeviceRows& hidden, Pieces& pieces, cudaStream_t stream) {
    if (runs_gate_first(call)) return make_hidden_gate_first(call, hidden, pieces, stream);
    const auto activation = static_cast<Activation>(call.activation);
    Input x;
    if (const cudaError_t status = prepare(call.x, call.up, pieces, stream, &x); status != cudaSuccess) return status;
    if (!call.gate.payload || shares_rows(call.up, call.gate)) {
        if (pieces.counts_only()) return cudaSuccess;
        return multiply_used(call, x, call.up, call.gate, call.b_up, call.b_gate, activation, hidden, stream);
    }
    Input gate_x;
    if (const cudaError_t status = prepare(call.x, call.gate, pieces, stream, &gate_x); status != cudaSuccess)
        return status;
    const DeviceRows up = take_rows(pieces, DType::f32, hidden.rows, hidden.cols),
                     gate = take_rows(pieces, DType::f32, hidden.rows, hidden.cols);
    if (pieces.counts_only()) return cudaSuccess;
    x.is_fresh = false;  // the gate's rows were made since
    if (const cudaError_t status = multiply_used(call, x, call.up, {}, call.b_up, {}, Activation::identity, up, stream);
        status != cudaSuccess)
        return status;
    if (const cudaError_t status =
            multiply_used(call, gate_x, call.gate, {}, call.b_gate, {}, Activation::identity, gate, stream);
        status != cudaSuccess)
        return status;
    return launch_gate(activation, gate, up, hidden, stream);
}

// Tokens that run together: all, or as many as bound the hidden rows.
std::int64_t chunk_tokens(const FfnCall& call) {
    const std::int64_t row_bytes =
        call.up.out_features * (call.gate.payload && !shares_rows(call.up, call.gate) ? 8 : 4);
    const std::int64_t bounded = hidden_limit / row_bytes / 128 * 128;
    const std::int64_t chunk = bounded < least_chunk ? least_chunk : bounded;
    return call.x.rows < chunk ? call.x.rows : chunk;
}

cudaError_t run_chunk(const FfnCall& call, Pieces& pieces, cudaStream_t stream) {
    // A norm takes f32: relu² may leave the range of f16 before it.
    const DType dtype = call.sub_norm.data || runs_gate_first(call)
                            ? DType::f32
                            : hidden_dtype(call.down, static_cast<DType>(call.x.dtype));
    const DeviceRows hidden = take_rows(pieces, dtype, call.x.rows, call.up.out_features);
    if (const cudaError_t status = make_hidden(call, hidden, pieces, stream); status != cudaSuccess) return status;
    RowNorm norm;
    Slice slice;
    if (call.segment_count) {
        if (const cudaError_t status = zero_between(call, hidden, pieces, stream); status != cudaSuccess) return status;
        slice = used_columns(call);
    }
    if (call.sub_norm.data)
        if (const cudaError_t status = hidden_norm(call, pieces, stream, &norm); status != cudaSuccess) return status;
    Input input;
    if (const cudaError_t status = prepare(hidden, call.down, pieces, stream, &input, nullptr, norm);
        status != cudaSuccess || pieces.counts_only())
        return status;
    return multiply(input, call.down, {}, call.b_down, {}, Activation::identity, call.y, nullptr, stream, slice);
}

DeviceRows rows_from(const DeviceRows& rows, std::int64_t first, std::int64_t count) {
    DeviceRows part = rows;
    part.data = static_cast<unsigned char*>(rows.data) + first * rows.stride * bytes_of(static_cast<DType>(rows.dtype));
    part.rows = count;
    return part;
}

// The chunks use the same workspace, one after the other.
cudaError_t run(const FfnCall& call, Pieces& pieces, cudaStream_t stream) {
    const std::int64_t chunk = chunk_tokens(call);
    if (pieces.counts_only()) {
        FfnCall first = call;
        first.x.rows = first.y.rows = chunk;
        return run_chunk(first, pieces, stream);
    }
    for (std::int64_t token = 0; token < call.x.rows; token += chunk) {
        const std::int64_t count = call.x.rows - token < chunk ? call.x.rows - token : chunk;
        FfnCall part = call;
        part.x = rows_from(call.x, token, count);
        part.y = rows_from(call.y, token, count);
        Pieces again{pieces.base};
        if (const cudaError_t status = run_chunk(part, again, stream); status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace

const char* refusal(const LinearCall& call) { return refusal(call.w); }

const char* refusal(const FfnCall& call) {
    for (const DeviceMatrix* w : {&call.up, &call.down})
        if (const char* reason = refusal(*w)) return reason;
    return call.gate.payload ? refusal(call.gate) : nullptr;
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
