// hadamard and quantize on CUDA devices: the CPU's checks, then the plugin.
#include "cuda/src/abi/hadamard.hpp"
#include "layers/cuda_calls.hpp"
#include "layers/hadamard.hpp"

namespace fastffn {

Status cuda_hadamard(CudaStream stream, const TensorView& x, const HadamardOptions& options, const TensorView& y) {
    constexpr const char* operation = "hadamard";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    HadamardRows rows{};
    if (Status status = open_hadamard(x, options, &y, &rows); !status.ok()) return status;
    cuda::HadamardCall call{};
    if (Status status = cuda_rows(operation, "x", rows.x, &call.x); !status.ok()) return status;
    if (Status status = cuda_rows(operation, "out", rows.y, &call.y); !status.ok()) return status;
    call.mode = static_cast<std::int32_t>(options.mode);
    call.block = options.block;
    call.is_inverse = options.inverse;
    if (Status status = check_workspace(operation, stream, {{"x", &x}, {"out", &y}}); !status.ok()) return status;
    if (call.x.rows == 0) return {};
    return run_cuda(operation, plugin->hadamard, stream, call);
}

Status cuda_quantize(CudaStream stream, const TensorView& x, ActivationCodes kind, const TensorView& codes,
                     const TensorView& scale) {
    constexpr const char* operation = "quantize";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    RowsView rows;
    if (Status status = check_quantize(x, kind, &codes, &scale, &rows); !status.ok()) return status;
    cuda::QuantizeCall call{};
    if (Status status = cuda_rows(operation, "x", rows, &call.x); !status.ok()) return status;
    call.codes = codes.data;
    call.scales = static_cast<float*>(scale.data);
    call.kind = static_cast<std::int32_t>(kind);
    if (call.x.rows == 0) return {};
    return run_cuda(operation, plugin->quantize, stream, call);
}

}  // namespace fastffn
