// The plugin's table. It loads on machines without a driver or a device and says there why CUDA cannot be used.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "abi.hpp"
#include "architectures.hpp"
#include "fastffn/version.hpp"
#include "launch/device_guard.hpp"
#include "launch/fff.hpp"
#include "launch/ffn.hpp"
#include "launch/hadamard.hpp"
#include "launch/launch.hpp"
#include "launch/moe.hpp"
#include "launch/route.hpp"
#include "launch/workspace_pool.hpp"

namespace fastffn::cuda {

namespace {

constexpr std::int32_t invalid_argument = 1, unsupported = 2, out_of_memory = 4;  // fastffn::StatusCode
constexpr std::int32_t cuda_failure = unsupported;                                // Python raises RuntimeError
constexpr std::uintptr_t workspace_alignment = 16;                                // what copies and vector loads need

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
    std::snprintf(info->name, sizeof info->name, "%.127s", properties.name);
    info->major = properties.major;
    info->minor = properties.minor;
    info->multiprocessors = properties.multiProcessorCount;
    info->memory_bytes = static_cast<std::int64_t>(properties.totalGlobalMem);
    info->l2_bytes = properties.l2CacheSize;
    info->shared_bytes = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
    // Asking the device makes a context on it, hundreds of megabytes: only where the list does not answer, for PTX.
    info->has_code = has_machine_code(FASTFFN_CUDA_ARCHITECTURE_NAMES, info->major, info->minor);
    if (info->has_code) return 0;
    const DeviceGuard guard(device);
    cudaFuncAttributes attributes{};
    info->has_code = guard.status() == cudaSuccess && cudaFuncGetAttributes(&attributes, probe) == cudaSuccess;
    cudaGetLastError();
    return 0;
}

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

std::int32_t refuse(std::int32_t code, const char* text, PluginError* error) {
    error->code = code;
    std::snprintf(error->message, sizeof error->message, "%s", text);
    return code;
}

std::int32_t launch_failed(int device, cudaError_t status, PluginError* error) {
    const Grid& grid = failed_launch();
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    error->code = cuda_failure;
    if (!*grid.kernel) {
        std::snprintf(error->message, sizeof error->message, "before a kernel was launched, sm_%d%d: %s (%s)", major,
                      minor, cudaGetErrorString(status), cudaGetErrorName(status));
        cudaGetLastError();
        return error->code;
    }
    std::snprintf(error->message, sizeof error->message,
                  "kernel %s, grid %u x %u x %u, %u threads, %d bytes of shared memory, sm_%d%d: %s (%s)", grid.kernel,
                  grid.blocks.x, grid.blocks.y, grid.blocks.z, grid.threads.x, grid.shared_bytes, major, minor,
                  cudaGetErrorString(status), cudaGetErrorName(status));
    cudaGetLastError();
    return error->code;
}

// Workspace that the caller does not bring comes from a stream-ordered pool: nothing waits, and a graph that is being captured
// takes it as a node of its own.
template <class Call>
std::int32_t run_call(std::int32_t device, void* stream, Workspace workspace, const Call& call, PluginError* error) {
    if (const char* reason = refusal(call)) return refuse(unsupported, reason, error);
    const std::int64_t bytes = workspace_bytes(call);
    char text[128];
    if (workspace.data && workspace.bytes < bytes) {
        std::snprintf(text, sizeof text, "workspace has %lld bytes, expected %lld",
                      static_cast<long long>(workspace.bytes), static_cast<long long>(bytes));
        return refuse(invalid_argument, text, error);
    }
    if (bytes > 0 && reinterpret_cast<std::uintptr_t>(workspace.data) % workspace_alignment != 0)
        return refuse(invalid_argument, "workspace is not 16-byte aligned", error);
    const DeviceGuard guard(device);
    if (guard.status() != cudaSuccess) return fail(guard.status(), "cudaSetDevice", error);
    failed_launch() = Grid{};  // what fails from here on is this call's
    auto* const queue = static_cast<cudaStream_t>(stream);
    void* own = nullptr;
    if (!workspace.data && bytes > 0) {
        const cudaError_t status = take_workspace(&own, bytes, device, queue);
        // A kernel that failed earlier shows here too: that is not for want of memory.
        if (status != cudaSuccess && status != cudaErrorMemoryAllocation)
            return fail(status, "the workspace's allocation", error);
        if (status != cudaSuccess) {
            cudaGetLastError();
            std::snprintf(text, sizeof text, "no device memory for a workspace of %lld bytes",
                          static_cast<long long>(bytes));
            return refuse(out_of_memory, text, error);
        }
        workspace.data = own;
    }
    const cudaError_t status = run(call, workspace.data, queue);
    if (own) cudaFreeAsync(own, queue);
    return status == cudaSuccess ? 0 : launch_failed(device, status, error);
}

template <class Call>
constexpr Operation<Call> operation() {
    return {run_call<Call>, [](const Call& call) { return workspace_bytes(call); }};
}

const Plugin table = {
    plugin_abi,
    sizeof(Plugin),
    FASTFFN_VERSION,
    FASTFFN_CUDA_ARCHITECTURE_NAMES,
    CUDART_VERSION,
    device_count,
    device_info,
    read,
    operation<LinearCall>(),
    operation<FfnCall>(),
    operation<MoeCall>(),
    operation<RouteCall>(),
    operation<FffCall>(),
    operation<FffRouteCall>(),
    operation<HadamardCall>(),
    operation<QuantizeCall>(),
};

}  // namespace

}  // namespace fastffn::cuda

extern "C" __attribute__((visibility("default"))) const fastffn::cuda::Plugin* fastffn_cuda_plugin() {
    return &fastffn::cuda::table;
}
