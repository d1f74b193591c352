// Plugins without CUDA, for test_cuda_plugin and the Python tests: what they claim is chosen by FAKE_PLUGIN at compile time.
// The good one has two devices; number 1 computes, in plain loops on the host's memory, and notes the stream of each call.
#include <cstdio>
#include <cstring>
#include <vector>

#include "core/convert.hpp"
#include "core/kernel.hpp"
#include "cuda/src/abi.hpp"
#include "fastffn/activation.hpp"
#include "fastffn/packed.hpp"
#include "fastffn/version.hpp"

namespace {

using namespace fastffn;
using namespace fastffn::cuda;

enum Kind { good, other_abi, other_version, no_driver, no_devices, no_code };

void* last_stream = nullptr;
std::int32_t last_device = -1, calls = 0;

std::int32_t device_count(std::int32_t* count, PluginError* error) {
    *count = FAKE_PLUGIN == no_devices ? 0 : 2;
    if (FAKE_PLUGIN != no_driver) return 0;
    error->code = 2;
    std::strcpy(error->message, "no NVIDIA driver is loaded on this machine");
    return 2;
}

std::int32_t device_info(std::int32_t device, DeviceInfo* info, PluginError*) {
    *info = {};
    std::snprintf(info->name, sizeof info->name, "Imaginary %d", device);
    info->major = 7 + device;
    info->minor = 5;
    info->multiprocessors = 3;
    info->memory_bytes = 1 << 20;
    info->has_code = FAKE_PLUGIN != no_code && device == 1;
    return 0;
}

float element(const void* data, std::int32_t dtype, std::int64_t index) {
    const auto type = static_cast<DType>(dtype);
    return load_f32(static_cast<const std::byte*>(data) + index * element_bytes(type), type);
}

// One output of x · wᵀ + b; rows are padded to 16 bytes.
float output(const DeviceMatrix& w, const DeviceBias& bias, const float* x, std::int64_t column) {
    const DType type = w.format == 1 ? DType::f32 : w.format == 2 ? DType::f16 : DType::bf16;
    const std::int64_t row = round_up(w.in_features * element_bytes(type), 16) / element_bytes(type);
    double sum = bias.data ? element(bias.data, bias.dtype, column) : 0;
    for (std::int64_t k = 0; k < w.in_features; ++k)
        sum += static_cast<double>(x[k]) * element(w.payload, static_cast<std::int32_t>(type), column * row + k);
    return static_cast<float>(sum);
}

std::int32_t start(std::int32_t device, void* stream, PluginError* error) {
    last_device = device;
    last_stream = stream;
    ++calls;
    if (stream != reinterpret_cast<void*>(0xbad)) return 0;
    error->code = 2;
    std::strcpy(error->message, "kernel imaginary<1>, grid (1, 2, 3), sm_85: an imaginary failure");
    return 2;
}

std::vector<float> row_of(const DeviceRows& rows, std::int64_t index) {
    std::vector<float> row(static_cast<std::size_t>(rows.cols));
    for (std::int64_t k = 0; k < rows.cols; ++k)
        row[static_cast<std::size_t>(k)] = element(rows.data, rows.dtype, index * rows.stride + k);
    return row;
}

void store_row(const DeviceRows& rows, std::int64_t index, const DeviceMatrix& w, const DeviceBias& bias,
               const float* x) {
    const auto type = static_cast<DType>(rows.dtype);
    for (std::int64_t o = 0; o < rows.cols; ++o)
        store_f32(static_cast<std::byte*>(rows.data) + (index * rows.stride + o) * element_bytes(type), type,
                  output(w, bias, x, o));
}

std::int32_t linear(std::int32_t device, void* stream, Workspace, const LinearCall& call, PluginError* error) {
    if (start(device, stream, error)) return error->code;
    for (std::int64_t r = 0; r < call.x.rows; ++r) store_row(call.y, r, call.w, call.bias, row_of(call.x, r).data());
    return 0;
}

std::int32_t ffn(std::int32_t device, void* stream, Workspace, const FfnCall& call, PluginError* error) {
    if (start(device, stream, error)) return error->code;
    if (call.activation != static_cast<std::int32_t>(Activation::relu)) {
        error->code = 2;
        std::strcpy(error->message, "activation without a kernel");
        return 2;
    }
    if (call.segment_count || call.sub_norm.data) {
        error->code = 2;
        std::strcpy(error->message, call.segment_count ? "segments without a kernel" : "sub_norm without a kernel");
        return 2;
    }
    for (std::int64_t r = 0; r < call.x.rows; ++r) {
        const std::vector<float> x = row_of(call.x, r);
        std::vector<float> hidden(static_cast<std::size_t>(call.up.out_features));
        for (std::int64_t h = 0; h < call.up.out_features; ++h) {
            const float up = output(call.up, call.b_up, x.data(), h);
            const float gate = call.gate.payload ? output(call.gate, call.b_gate, x.data(), h) : up;
            const float active = gate > 0 ? gate : 0;
            hidden[static_cast<std::size_t>(h)] = call.gate.payload ? active * up : active;
        }
        store_row(call.y, r, call.down, call.b_down, hidden.data());
    }
    return 0;
}

template <class Call>
std::int64_t no_workspace(const Call&) {
    return 0;
}

std::int32_t read(std::int32_t, void*, const void* source, void* host, std::int64_t bytes, PluginError*) {
    std::memcpy(host, source, static_cast<std::size_t>(bytes));
    return 0;
}

const Plugin table = {
    FAKE_PLUGIN == other_abi ? 99 : plugin_abi,
    sizeof(Plugin),
    FAKE_PLUGIN == other_version ? "0.0.9" : FASTFFN_VERSION,
    "85 ptx85",
    13000,
    device_count,
    device_info,
    read,
    {linear, no_workspace<LinearCall>},
    {ffn, no_workspace<FfnCall>},
    {},  // the other operations: not in this plugin
    {},
    {},
    {},
    {},
    {},
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const Plugin* fastffn_cuda_plugin() { return &table; }

// What the last call got, for tests.
extern "C" __attribute__((visibility("default"))) void fake_last_call(void** stream, std::int32_t* device,
                                                                      std::int32_t* count) {
    *stream = last_stream;
    *device = last_device;
    *count = calls;
}
