#include "launch/ffn.hpp"

#include "launch/gate.hpp"
#include "launch/matrix.hpp"

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

// hidden = act(x · gateᵀ + b_gate) ⊙ (x · upᵀ + b_up), or act(x · upᵀ + b_up).
cudaError_t make_hidden(const FfnCall& call, const DeviceRows& hidden, Pieces& pieces, cudaStream_t stream) {
    const auto activation = static_cast<Activation>(call.activation);
    Input x;
    if (const cudaError_t status = prepare(call.x, call.up, pieces, stream, &x); status != cudaSuccess) return status;
    if (!call.gate.payload || shares_rows(call.up, call.gate)) {
        if (pieces.counts_only()) return cudaSuccess;
        return multiply(x, call.up, call.gate, call.b_up, call.b_gate, activation, hidden, nullptr, stream);
    }
    Input gate_x;
    if (const cudaError_t status = prepare(call.x, call.gate, pieces, stream, &gate_x); status != cudaSuccess)
        return status;
    const DeviceRows up = take_rows(pieces, DType::f32, hidden.rows, hidden.cols),
                     gate = take_rows(pieces, DType::f32, hidden.rows, hidden.cols);
    if (pieces.counts_only()) return cudaSuccess;
    if (const cudaError_t status = multiply(x, call.up, {}, call.b_up, {}, Activation::identity, up, nullptr, stream);
        status != cudaSuccess)
        return status;
    if (const cudaError_t status =
            multiply(gate_x, call.gate, {}, call.b_gate, {}, Activation::identity, gate, nullptr, stream);
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
    const DType dtype = hidden_dtype(call.down, static_cast<DType>(call.x.dtype));
    const DeviceRows hidden = take_rows(pieces, dtype, call.x.rows, call.up.out_features);
    if (const cudaError_t status = make_hidden(call, hidden, pieces, stream); status != cudaSuccess) return status;
    Input input;
    if (const cudaError_t status = prepare(hidden, call.down, pieces, stream, &input);
        status != cudaSuccess || pieces.counts_only())
        return status;
    return multiply(input, call.down, {}, call.b_down, {}, Activation::identity, call.y, nullptr, stream);
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
