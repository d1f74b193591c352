// How every kernel is launched: explicit stream, no allocation, no synchronisation.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastffn::cuda {

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

// More than 48 KiB of dynamic shared memory only for kernels that ask.
template <class... Parameters>
inline cudaError_t allow_shared(void (*kernel)(Parameters...), const Grid& grid) {
    if (grid.shared_bytes <= 48 * 1024) return cudaSuccess;
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
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
