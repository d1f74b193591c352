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

// Arguments convert to the kernel's parameters. An empty grid is no launch and no error.
template <class... Parameters, class... Arguments>
inline cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, const Arguments&... arguments) {
    if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return cudaSuccess;
    // More than 48 KiB only for kernels that ask.
    if (grid.shared_bytes > 48 * 1024) {
        const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                        cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
        if (status != cudaSuccess) {
            failed_launch() = grid;
            return status;
        }
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
    config.stream = grid.stream;
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    if (grid.is_dependent && launches_can_overlap()) {
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
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
