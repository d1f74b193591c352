// Stands for the emulator where the kernels' tests run on a GPU: the same programs, device memory in place of the host's. What they
// say to the emulated device (schedules, multiprocessors) has no meaning there. compute-sanitizer looks for what red zones and the
// race check find on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <tuple>
#include <utility>

namespace emulator {

inline void set_seed(std::uint64_t) {}
inline void set_multiprocessors(int) {}
inline void set_architecture(int) {}
inline void set_tensor_maps(bool) {}
inline std::uint64_t launches() { return 0; }
inline int threads_of_last_block() { return 0; }

// Of the device, not of one launch.
inline const char* last_failure() {
    const cudaError_t status = cudaPeekAtLastError();
    return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

inline int architecture() {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    return 10 * major + minor;
}

// Not zero: what nobody writes shows.
inline void* allocate(std::size_t bytes) {
    void* data = nullptr;
    if (cudaMalloc(&data, bytes ? bytes : 1) != cudaSuccess || cudaMemset(data, 0xFF, bytes) != cudaSuccess) {
        std::fprintf(stderr, "no device memory for %zu bytes: %s\n", bytes, last_failure());
        std::exit(1);
    }
    return data;
}
inline void release(void* data) { cudaFree(data); }

// ctest counts 77 as skipped.
struct NeedsDevice {
    NeedsDevice() {
        int devices = 0;
        const cudaError_t status = cudaGetDeviceCount(&devices);
        if (status == cudaSuccess && devices > 0) return;
        std::printf("no CUDA device: %s\n", cudaGetErrorString(status));
        std::exit(77);
    }
};
inline const NeedsDevice needs_device;

}  // namespace emulator
