// How every kernel is launched: explicit stream, no allocation, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

namespace fastffn::cuda {

// Shared memory that a block may have on every device since sm_80: sm_86, sm_89 and sm_120 give the least. Kernels that want more are
// Hopper's own, or ask the device.
constexpr int shared_bytes_everywhere = 99 * 1024;

struct Grid {
    dim3 blocks, threads;
    int shared_bytes = 0;  // dynamic
    cudaStream_t stream = nullptr;
    const char* kernel = "";  // its name, for errors
    // It may begin while the launch before it on the stream still runs (ptx/dependent.cuh). Only behind a kernel of ours that is no
    // dependent itself: that one began when everything before it was done, so a dependent's weights were written long ago.
    bool is_dependent = false;
    unsigned cluster = 1;  // blocks in direction x that run together; sm_90 and later
};

// The launch of this thread that failed last: what an error says about it.
inline Grid& failed_launch() {
    thread_local Grid grid;
    return grid;
}

// sm_90 and later.
inline bool launches_can_overlap() {
    int device = 0, major = 0;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major >= 9;
}

// More than 48 KiB of dynamic shared memory only for kernels that ask. Threads may launch one kernel with different sizes at the same
// time, so the limit of a kernel on a device only ever grows: a lower one, set between another thread's limit and its launch, would
// fail that launch. It is set every time all the same, as a reset of the device forgets it.
template <class... Parameters>
inline cudaError_t allow_shared(void (*kernel)(Parameters...), const Grid& grid) {
    if (grid.shared_bytes <= 48 * 1024) return cudaSuccess;
    static std::mutex mutex;
    static std::map<std::pair<const void*, int>, int> limits;
    const auto* const function = reinterpret_cast<const void*>(kernel);
    int device = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) {
        const std::lock_guard<std::mutex> lock(mutex);
        int& limit = limits[{function, device}];
        const int wanted = limit < grid.shared_bytes ? grid.shared_bytes : limit;
        status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, wanted);
        if (status == cudaSuccess) limit = wanted;
    }
    if (status != cudaSuccess) failed_launch() = grid;
    return status;
}

// `attributes`: room for two.
inline cudaLaunchConfig_t launch_config(const Grid& grid, cudaLaunchAttribute* attributes) {
    cudaLaunchConfig_t config = {};
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
    config.stream = grid.stream;
    config.attrs = attributes;
    if (grid.cluster > 1) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = grid.cluster;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    }
    if (grid.is_dependent && launches_can_overlap()) {
        cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
    }
    return config;
}

// Clusters of this grid that the device holds at once; 0 if it has none.
template <class... Parameters>
inline int clusters_at_once(void (*kernel)(Parameters...), const Grid& grid) {
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config = launch_config(grid, attributes);
    int count = 0;
    if (allow_shared(kernel, grid) == cudaSuccess &&
        cudaOccupancyMaxActiveClusters(&count, kernel, &config) == cudaSuccess)
        return count;
    cudaGetLastError();
    return 0;
}

// Arguments convert to the kernel's parameters. An empty grid is no launch and no error.
template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
    if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return cudaSuccess;
    if (const cudaError_t status = allow_shared(kernel, grid); status != cudaSuccess) return status;
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config = launch_config(grid, attributes);
    const cudaError_t status = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    if (status != cudaSuccess) failed_launch() = grid;
    return status;
}

// How many blocks the current device runs at once when a multiprocessor holds `each` of them.
inline cudaError_t blocks_at_once(int each, std::int64_t* blocks) {
    int device = 0, multiprocessors = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    *blocks = static_cast<std::int64_t>(multiprocessors) * each;
    return status;
}

}  // namespace fastffn::cuda
