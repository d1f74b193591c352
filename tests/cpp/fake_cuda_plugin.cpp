// Plugins without CUDA, for test_cuda_plugin: what they say is chosen by FAKE_PLUGIN at compile time.
#include <cstdio>
#include <cstring>

#include "cuda/src/abi.hpp"
#include "fastffn/version.hpp"

namespace {

using namespace fastffn::cuda;

enum Kind { good, other_abi, other_version, no_driver, no_devices, no_code };

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

const Plugin table = {
    FAKE_PLUGIN == other_abi ? plugin_abi + 98 : plugin_abi,
    sizeof(Plugin),
    FAKE_PLUGIN == other_version ? "0.0.9" : FASTFFN_VERSION,
    "85 ptx85",
    13000,
    device_count,
    device_info,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const Plugin* fastffn_cuda_plugin() { return &table; }
