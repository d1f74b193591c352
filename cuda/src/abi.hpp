// The border between fastffn and its CUDA plugin, libfastffn_cuda.so: one exported function that returns one table.
//
// The plugin is a library of its own, so that fastffn needs neither CUDA nor a driver: it holds the kernels and a static CUDA
// runtime, no Python and no libcuda. Both sides compile this header; plain structs only. A change to anything here raises
// plugin_abi, and a plugin of another number is refused by name.
#pragma once

#include <cstdint>

namespace fastffn::cuda {

constexpr std::uint32_t plugin_abi = 2;
constexpr const char* plugin_symbol = "fastffn_cuda_plugin";

// What functions of the table return, and the reason.
struct PluginError {
    std::int32_t code = 0;  // 0: none; else a fastffn::StatusCode
    char message[508] = {};
};

struct DeviceInfo {
    char name[128];
    std::int32_t major, minor;  // compute capability
    std::int32_t multiprocessors;
    std::int32_t has_code;                              // whether the plugin holds native code or PTX for it
    std::int64_t memory_bytes, l2_bytes, shared_bytes;  // shared memory of a block, opt-in maximum
};

// [rows, cols] in device memory, the last dimension contiguous.
struct DeviceRows {
    void* data;
    std::int32_t dtype;  // fastffn::DType: f32, f16 or bf16
    std::int64_t rows, cols;
    std::int64_t stride;  // elements from row to row
};

// One matrix packed for devices (header layout 2; see cuda/src/layout.hpp), or a stack of them, its payload in device memory.
struct DeviceMatrix {
    const void* payload;  // nullptr: none
    std::int32_t format;  // fastffn::Format
    std::uint32_t flags, parameters[2];
    std::int64_t out_features, in_features;
    std::int64_t count;         // matrices in the stack
    std::int64_t matrix_bytes;  // from one to the next
};

// [out_features], or [count, out_features] of a stack, contiguous, in device memory.
struct DeviceBias {
    const void* data;  // nullptr: none
    std::int32_t dtype;
};

struct LinearCall {
    DeviceRows x, y;
    DeviceMatrix w;
    DeviceBias bias;
};

// Hidden columns [start, start + length).
struct DeviceSegment {
    std::int64_t start, length;
};

struct FfnCall {
    DeviceRows x, y;
    DeviceMatrix up, gate, down;
    DeviceBias b_up, b_gate, b_down;
    std::int32_t activation;  // fastffn::Activation
    DeviceBias sub_norm;      // γ [d_ff]; nullptr: none
    float sub_norm_eps;
    std::int32_t gate_first;        // 0: never, 1: where it is faster, 2: where the tokens are few enough
    const DeviceSegment* segments;  // in the host's memory; nullptr: all hidden columns
    std::int64_t segment_count;
};

// Calls of other layers have a header each.
struct MoeCall;       // abi/moe.hpp
struct RouteCall;     // abi/route.hpp: top-k of logits
struct FffCall;       // abi/fff.hpp
struct FffRouteCall;  // abi/fff.hpp
struct HadamardCall;  // abi/hadamard.hpp
struct QuantizeCall;  // abi/hadamard.hpp

// Device memory that a call may use until it is done, 256-byte aligned.
struct Workspace {
    void* data;  // nullptr: the call takes what it needs from the device's stream-ordered pool
    std::int64_t bytes;
};

// One operation. Arguments were checked by the caller; a format, dtype or device without kernels is an error by name. It launches on
// `stream` (a cudaStream_t) of `device`, allocates nothing but from that pool, and waits for nothing.
template <class Call>
struct Operation {
    std::int32_t (*run)(std::int32_t device, void* stream, Workspace workspace, const Call& call, PluginError* error);
    std::int64_t (*workspace)(const Call& call);  // bytes that it needs; 0: none
};

struct Plugin {
    std::uint32_t abi;          // plugin_abi; nothing behind it may be read when it differs
    std::uint32_t bytes;        // sizeof(Plugin)
    const char* version;        // FASTFFN_VERSION it was built from
    const char* architectures;  // "80 86 89 90 90a 100 120 ptx120"
    std::int32_t runtime;       // CUDA runtime, 13000 for 13.0
    // Number of devices; without a driver an error that says why.
    std::int32_t (*device_count)(std::int32_t* count, PluginError* error);
    std::int32_t (*device_info)(std::int32_t device, DeviceInfo* info, PluginError* error);
    // Waits for the stream: for headers of weights, once at load.
    std::int32_t (*read)(std::int32_t device, void* stream, const void* source, void* host, std::int64_t bytes,
                         PluginError* error);
    Operation<LinearCall> linear;
    Operation<FfnCall> ffn;
    Operation<MoeCall> moe;
    Operation<RouteCall> route;
    Operation<FffCall> fff;
    Operation<FffRouteCall> fff_route;
    Operation<HadamardCall> hadamard;
    Operation<QuantizeCall> quantize;
};

// The type of the exported function.
using PluginFunction = const Plugin* (*)();

}  // namespace fastffn::cuda
