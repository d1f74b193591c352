// linear and ffn on CUDA devices: the CPU's checks, then the plugin.
#include "layers/cuda_calls.hpp"

#include <cstdint>

#include "layers/ffn.hpp"

namespace fastffn {

namespace {

Status invalid(const std::string& text) { return {StatusCode::invalid_argument, text}; }

}  // namespace

Status find_cuda_plugin(const char* operation, CudaStream stream, const cuda::Plugin** plugin) {
    *plugin = cuda_plugin();
    const CudaReport& report = cuda_report();
    if (!*plugin) return {StatusCode::unsupported, std::string(operation) + ": CUDA is unavailable: " + report.reason};
    const auto count = static_cast<int>(report.devices.size());
    if (stream.device < 0 || stream.device >= count)
        return invalid(std::string(operation) + ": device number " + std::to_string(stream.device) +
                       ", and there are " + std::to_string(count));
    const CudaDevice& device = report.devices[static_cast<std::size_t>(stream.device)];
    if (!device.has_code)
        return {StatusCode::unsupported, std::string(operation) + ": the CUDA plugin holds no code for " + device.name +
                                             " (compute capability " + std::to_string(device.major) + "." +
                                             std::to_string(device.minor) + "); it has " + report.architectures};
    return {};
}

Status cuda_status(const char* operation, const cuda::PluginError& error) {
    if (error.code == 0) return {};
    return {static_cast<StatusCode>(error.code), std::string(operation) + ": " + error.message};
}

Status cuda_rows(const char* operation, const char* name, const RowsView& rows, cuda::DeviceRows* result) {
    if (rows.dims != 1)
        return invalid(std::string(operation) + ": " + name +
                       " has rows without a common stride; on CUDA devices make it contiguous first");
    *result = {rows.data, static_cast<std::int32_t>(rows.dtype), rows.rows, rows.cols,
               rows.row_stride() / dtype_bytes(rows.dtype)};
    return {};
}

Status cuda_bias(const char* operation, const char* name, const TensorView* bias, cuda::DeviceBias* result) {
    if (!bias) return {};
    if (bias->shape[0] > 1 && bias->strides[0] != 1)
        return invalid(std::string(operation) + ": " + name + " has stride " + std::to_string(bias->strides[0]) +
                       ", expected 1 on CUDA devices");
    *result = {bias->data, static_cast<std::int32_t>(bias->dtype)};
    return {};
}

cuda::DeviceMatrix cuda_matrix(const PackedView& packed) {
    const PackedHeader& header = *packed.header;
    return {static_cast<const std::byte*>(packed.data) + sizeof header,
            header.format,
            header.flags,
            {header.parameters[0], header.parameters[1]},
            header.out_features,
            header.in_features,
            header.count,
            header.matrix_bytes};
}

Status check_cuda_header(const char* operation, const char* name, const PackedView& packed) {
    if (!packed.data || !packed.header)
        return invalid(std::string(operation) + ": " + name + " has no header on the host; see read_device_header()");
    // Kernels load 16 bytes at a time; a misaligned load ends the process's use of the device.
    if (reinterpret_cast<std::uintptr_t>(packed.data) % 16 != 0)
        return invalid(std::string(operation) + ": " + name + " is not 16-byte aligned; copy it to memory of its own");
    return {};
}

Status check_workspace(const char* operation, CudaStream stream, std::initializer_list<CudaOperand> operands) {
    if (!stream.workspace || stream.workspace_bytes <= 0) return {};
    const auto begin = reinterpret_cast<std::uintptr_t>(stream.workspace);
    const std::uintptr_t end = begin + static_cast<std::uintptr_t>(stream.workspace_bytes);
    for (const CudaOperand& operand : operands) {
        bool shares = operand.array && may_overlap(*operand.array, stream.workspace, stream.workspace_bytes);
        if (operand.packed && operand.packed->data) {
            const auto first = reinterpret_cast<std::uintptr_t>(operand.packed->data);
            shares = first < end && begin < first + static_cast<std::uintptr_t>(operand.packed->bytes);
        }
        if (shares)
            return invalid(std::string(operation) + ": workspace and " + operand.name +
                           " share a range of memory; give workspace memory of its own");
    }
    return {};
}

Status read_device_header(CudaStream stream, const void* data, std::int64_t bytes, PackedHeader* header) {
    constexpr const char* operation = "device_weight";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (!data || bytes < static_cast<std::int64_t>(sizeof *header))
        return {StatusCode::corrupt, std::string(operation) + ": packed has " + std::to_string(bytes) +
                                         " bytes, less than the 64-byte header of a packed weight"};
    cuda::PluginError error;
    plugin->read(stream.device, stream.stream, data, header, sizeof *header, &error);
    if (Status status = cuda_status(operation, error); !status.ok()) return status;
    return check_device_weight({data, bytes, header}, operation, "packed", nullptr);
}

Status read_device_bytes(CudaStream stream, const char* operation, const void* data, std::int64_t bytes, void* host) {
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    cuda::PluginError error;
    if (bytes > 0) plugin->read(stream.device, stream.stream, data, host, bytes, &error);
    return cuda_status(operation, error);
}

Status cuda_linear(CudaStream stream, const TensorView& x, const PackedView& w, const TensorView* bias,
                   const TensorView& y) {
    constexpr const char* operation = "linear";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (Status status = check_cuda_header(operation, "w", w); !status.ok()) return status;
    DenseLayer layer;
    layer.on_device = true;
    RowsView x_rows, y_rows;
    if (Status status = open_linear(x, w, bias, &y, &layer, &x_rows, &y_rows); !status.ok()) return status;
    cuda::LinearCall call{};
    if (Status status = cuda_rows(operation, "x", x_rows, &call.x); !status.ok()) return status;
    if (Status status = cuda_rows(operation, "out", y_rows, &call.y); !status.ok()) return status;
    if (Status status = cuda_bias(operation, "bias", bias, &call.bias); !status.ok()) return status;
    call.w = cuda_matrix(w);
    if (Status status =
            check_workspace(operation, stream, {{"x", &x}, {"out", &y}, {"bias", bias}, {"w", nullptr, &w}});
        !status.ok())
        return status;
    if (call.x.rows == 0) return {};
    return run_cuda(operation, plugin->linear, stream, call);
}

Status cuda_ffn_weights(const char* operation, const FfnWeights& weights, DenseLayer* layer, cuda::FfnCall* call,
                        std::vector<cuda::DeviceSegment>* segments) {
    if (Status status = choose_order(weights, layer); !status.ok()) return status;
    if (Status status = cuda_bias(operation, "b_up", weights.b_up, &call->b_up); !status.ok()) return status;
    if (Status status = cuda_bias(operation, "b_down", weights.b_down, &call->b_down); !status.ok()) return status;
    if (Status status = cuda_bias(operation, "b_gate", weights.b_gate, &call->b_gate); !status.ok()) return status;
    call->up = cuda_matrix(weights.w_up);
    call->down = cuda_matrix(weights.w_down);
    if (layer->has_gate) call->gate = cuda_matrix(weights.w_gate);
    call->activation = static_cast<std::int32_t>(weights.activation);
    if (weights.sub_norm) {
        call->sub_norm = {weights.sub_norm->data, static_cast<std::int32_t>(weights.sub_norm->dtype)};
        call->sub_norm_eps = weights.sub_norm_eps;
    }
    if (layer->gate_first) call->gate_first = weights.gate_first == GateFirst::always ? 2 : 1;
    for (std::int64_t i = 0; i < layer->segments.count; ++i)
        segments->push_back({weights.segments[i].start, weights.segments[i].length});
    call->segments = segments->data();
    call->segment_count = layer->segments.count;
    return {};
}

Status cuda_ffn(CudaStream stream, const TensorView& x, const FfnWeights& weights, const TensorView& y) {
    constexpr const char* operation = "ffn";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (Status status = check_cuda_header(operation, "w_up", weights.w_up); !status.ok()) return status;
    if (Status status = check_cuda_header(operation, "w_down", weights.w_down); !status.ok()) return status;
    if (weights.w_gate.data)
        if (Status status = check_cuda_header(operation, "w_gate", weights.w_gate); !status.ok()) return status;
    DenseLayer layer;
    layer.on_device = true;
    RowsView x_rows, y_rows;
    if (Status status = open_ffn(x, weights, &y, &layer, &x_rows, &y_rows); !status.ok()) return status;
    cuda::FfnCall call{};
    std::vector<cuda::DeviceSegment> segments;
    if (Status status = cuda_rows(operation, "x", x_rows, &call.x); !status.ok()) return status;
    if (Status status = cuda_rows(operation, "out", y_rows, &call.y); !status.ok()) return status;
    if (Status status = cuda_ffn_weights(operation, weights, &layer, &call, &segments); !status.ok()) return status;
    if (Status status = check_workspace(operation, stream,
                                        {{"x", &x},
                                         {"out", &y},
                                         {"b_up", weights.b_up},
                                         {"b_down", weights.b_down},
                                         {"b_gate", weights.b_gate},
                                         {"sub_norm", weights.sub_norm},
                                         {"w_up", nullptr, &weights.w_up},
                                         {"w_down", nullptr, &weights.w_down},
                                         {"w_gate", nullptr, &weights.w_gate}});
        !status.ok())
        return status;
    if (call.x.rows == 0) return {};
    return run_cuda(operation, plugin->ffn, stream, call);
}

}  // namespace fastffn
