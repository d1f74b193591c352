// The border between fastffn and its CUDA plugin, libfastffn_cuda.so: one exported function that returns one table.
//
// The plugin is a library of its own, so that fastffn needs neither CUDA nor a driver: it holds the kernels and a static CUDA
// runtime, no Python and no libcuda. Both sides compile this header; plain structs only. A change to anything here raises
// plugin_abi, and a plugin of another number is refused by name.
#pragma once

#include <cstdint>

namespace fastffn::cuda {

constexpr std::uint32_t plugin_abi = 1;
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

struct Plugin {
    std::uint32_t abi;          // plugin_abi; nothing behind it may be read when it differs
    std::uint32_t bytes;        // sizeof(Plugin)
    const char* version;        // FASTFFN_VERSION it was built from
    const char* architectures;  // "80 86 89 90 90a 100 120 ptx120"
    std::int32_t runtime;       // CUDA runtime, 13000 for 13.0
    // Number of devices; without a driver an error that says why.
    std::int32_t (*device_count)(std::int32_t* count, PluginError* error);
    std::int32_t (*device_info)(std::int32_t device, DeviceInfo* info, PluginError* error);
};

// The type of the exported function.
using PluginFunction = const Plugin* (*)();

}  // namespace fastffn::cuda
