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

std::int32_t no_kernels(const char* operation, PluginError* error) {
    error->code = unsupported;
    std::snprintf(error->message, sizeof error->message, "%s has no CUDA kernels in this version", operation);
    return error->code;
}
std::int32_t linear(std::int32_t, void*, const LinearCall&, PluginError* error) { return no_kernels("linear", error); }
std::int32_t ffn(std::int32_t, void*, const FfnCall&, PluginError* error) { return no_kernels("ffn", error); }
std::int64_t ffn_workspace(const FfnCall&) { return 0; }

// Sets the device for a call and puts the caller's back.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        cudaGetDevice(&previous_);
        if (device != previous_) status_ = cudaSetDevice(device);
    }
    ~DeviceGuard() { cudaSetDevice(previous_); }
    DeviceGuard(const DeviceGuard&) = delete;
    cudaError_t status() const { return status_; }

  private:
    int previous_ = 0;
    cudaError_t status_ = cudaSuccess;
};

std::int32_t read(std::int32_t device, void* stream, const void* source, void* host, std::int64_t bytes,
                  PluginError* error) {
    const DeviceGuard guard(device);
    if (guard.status() != cudaSuccess) return fail(guard.status(), "cudaSetDevice", error);
    auto* queue = static_cast<cudaStream_t>(stream);
    if (const cudaError_t status =
            cudaMemcpyAsync(host, source, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, queue);
        status != cudaSuccess)
        return fail(status, "cudaMemcpyAsync", error);
    if (const cudaError_t status = cudaStreamSynchronize(queue); status != cudaSuccess)
        return fail(status, "cudaStreamSynchronize", error);
    return 0;
}

const Plugin table = {
    plugin_abi,
    sizeof(Plugin),
    FASTFFN_VERSION,
    FASTFFN_CUDA_ARCHITECTURE_NAMES,
    CUDART_VERSION,
    device_count,
    device_info,
    linear,
    ffn,
    ffn_workspace,
    read,
};

}  // namespace

}  // namespace fastffn::cuda

extern "C" __attribute__((visibility("default"))) const fastffn::cuda::Plugin* fastffn_cuda_plugin() {
    return &fastffn::cuda::table;
}
