// The plugin's table. It loads on machines without a driver or a device and says there why CUDA cannot be used.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

#include "abi.hpp"
#include "fastffn/version.hpp"

namespace fastffn::cuda {

namespace {

constexpr std::int32_t unsupported = 2;  // StatusCode::unsupported

std::int32_t fail(cudaError_t status, const char* what, PluginError* error) {
    // Not kept for the next call: cudaGetLastError clears it.
    cudaGetLastError();
    error->code = unsupported;
    std::snprintf(error->message, sizeof error->message, "%s: %s (%s)", what, cudaGetErrorString(status),
                  cudaGetErrorName(status));
    return error->code;
}

std::int32_t device_count(std::int32_t* count, PluginError* error) {
    *count = 0;
    int driver = 0;
    if (const cudaError_t status = cudaDriverGetVersion(&driver); status != cudaSuccess)
        return fail(status, "cudaDriverGetVersion", error);
    if (driver == 0) {
        error->code = unsupported;
        std::snprintf(error->message, sizeof error->message, "no NVIDIA driver is loaded on this machine");
        return error->code;
    }
    int found = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&found); status != cudaSuccess) {
        char what[96];
        std::snprintf(what, sizeof what, "the driver (CUDA %d.%d) lists no devices", driver / 1000, driver % 1000 / 10);
        return fail(status, what, error);
    }
    *count = found;
    return 0;
}

// Does nothing; whether it has code for a device says whether the others have.
__global__ void probe() {}

std::int32_t device_info(std::int32_t device, DeviceInfo* info, PluginError* error) {
    cudaDeviceProp properties{};
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, device); status != cudaSuccess)
        return fail(status, "cudaGetDeviceProperties", error);
    std::memset(info, 0, sizeof *info);
    std::snprintf(info->name, sizeof info->name, "%s", properties.name);
    info->major = properties.major;
    info->minor = properties.minor;
    info->multiprocessors = properties.multiProcessorCount;
    info->memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
    info->l2_bytes = properties.l2CacheSize;
    info->shared_bytes = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
    int previous = 0;
    cudaGetDevice(&previous);
    cudaFuncAttributes attributes{};
    if (cudaSetDevice(device) == cudaSuccess) info->has_code = cudaFuncGetAttributes(&attributes, probe) == cudaSuccess;
    cudaGetLastError();
    cudaSetDevice(previous);
    return 0;
}

const Plugin table = {
    plugin_abi,     sizeof(Plugin), FASTFFN_VERSION, FASTFFN_CUDA_ARCHITECTURE_NAMES,
    CUDART_VERSION, device_count,   device_info,
};

}  // namespace

}  // namespace fastffn::cuda

extern "C" __attribute__((visibility("default"))) const fastffn::cuda::Plugin* fastffn_cuda_plugin() {
    return &fastffn::cuda::table;
}
