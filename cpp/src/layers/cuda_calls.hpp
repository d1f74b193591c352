// What calls on CUDA devices share: the plugin, and views as its table takes them. Every error names the operation.
#pragma once

#include <initializer_list>

#include "core/cuda_plugin.hpp"
#include "cuda/src/abi.hpp"
#include "fastffn/cuda.hpp"
#include "layers/rows.hpp"

namespace fastffn {

struct DenseLayer;

// The plugin for a device that exists and that it has code for, or why there is none.
Status find_cuda_plugin(const char* operation, CudaStream stream, const cuda::Plugin** plugin);

Status cuda_status(const char* operation, const cuda::PluginError& error);

// Rows with one stride, as kernels take them; others are refused.
Status cuda_rows(const char* operation, const char* name, const RowsView& rows, cuda::DeviceRows* result);

// A bias that is contiguous; nullptr: none.
Status cuda_bias(const char* operation, const char* name, const TensorView* bias, cuda::DeviceBias* result);

// Weights on a device whose header was checked.
cuda::DeviceMatrix cuda_matrix(const PackedView& packed);
Status check_cuda_header(const char* operation, const char* name, const PackedView& packed);

// Weights of an ffn whose checks were made (open_ffn), as the plugin takes them; `segments` holds what the call points to.
Status cuda_ffn_weights(const char* operation, const FfnWeights& weights, DenseLayer* layer, cuda::FfnCall* call,
                        std::vector<cuda::DeviceSegment>* segments);

// What a call reads or writes; one of `array` and `packed`, or neither.
struct CudaOperand {
    const char* name;
    const TensorView* array;
    const PackedView* packed = nullptr;
};
// The caller's workspace must be memory of its own: a call writes to all of it.
Status check_workspace(const char* operation, CudaStream stream, std::initializer_list<CudaOperand> operands);

// Runs one operation of the plugin, or asks how much workspace it would use; a plugin without it says so.
template <class Call>
Status run_cuda(const char* operation, const cuda::Operation<Call>& entry, CudaStream stream, const Call& call) {
    if (!entry.run)
        return {StatusCode::unsupported, std::string(operation) + ": this CUDA plugin has no kernels for it"};
    cuda::PluginError error;
    if (stream.query) {
        const std::int64_t bytes = entry.workspace ? entry.workspace(call) : 0;
        if (bytes > *stream.query) *stream.query = bytes;
        return {};
    }
    entry.run(stream.device, stream.stream, {stream.workspace, stream.workspace_bytes}, call, &error);
    return cuda_status(operation, error);
}

}  // namespace fastffn
