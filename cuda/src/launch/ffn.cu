#include "launch/ffn.hpp"

#include "launch/matrix.hpp"

namespace fastffn::cuda {

namespace {

cudaError_t run(const LinearCall& call, Pieces& pieces, cudaStream_t stream) {
    Input x;
    if (const cudaError_t status = prepare(call.x, call.w, pieces, stream, &x); status != cudaSuccess || !pieces.base)
        return status;
    return multiply(x, call.w, {}, call.bias, {}, Activation::identity, call.y, nullptr, stream);
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
        const cudaError_t status = multiply(x, call.up, call.gate, call.b_up, call.b_gate,
                                            static_cast<Activation>(call.activation), hidden, nullptr, stream);
        if (status != cudaSuccess) return status;
    }
    if (cudaError_t status = prepare(hidden, call.down, pieces, stream, &hidden_input);
        status != cudaSuccess || !pieces.base)
        return status;
    return multiply(hidden_input, call.down, {}, call.b_down, {}, Activation::identity, call.y, nullptr, stream);
}

}  // namespace

const char* refusal(const LinearCall& call) { return refusal(call.w); }

const char* refusal(const FfnCall& call) {
    for (const DeviceMatrix* w : {&call.up, &call.down})
        if (const char* reason = refusal(*w)) return reason;
    if (!call.gate.payload) return nullptr;
    if (!shares_rows(call.up, call.gate)) return "w_gate and w_up of different formats or options have no CUDA kernels";
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
