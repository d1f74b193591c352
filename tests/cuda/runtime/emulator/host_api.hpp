// The part of the CUDA runtime API that launchers and the plugin use. Everything happens at once, in order.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulator/control.hpp"
#include "emulator/vector_types.hpp"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNotSupported = 801,
    cudaErrorLaunchFailure = 719,
};
using cudaStream_t = struct CUstream_st*;
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaLaunchAttributeID {
    cudaLaunchAttributeIgnore = 0,
    cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        dim3 clusterDim;
        int programmaticStreamSerializationAllowed;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute* attrs = nullptr;
    unsigned numAttrs = 0;
};

namespace emulator {
int multiprocessors();
cudaError_t& pending_error();
// What a block may have: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
inline int optin_shared_bytes() {
    const int level = architecture();
    return (level == 90 || level == 100 ? 227 : level == 80 ? 163 : 99) * 1024;
}
}  // namespace emulator

inline const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration:
        case cudaErrorLaunchFailure: return emulator::last_failure();
        default: return "error of the emulated device";
    }
}
inline const char* cudaGetErrorName(cudaError_t error) { return error == cudaSuccess ? "cudaSuccess" : "cudaError"; }
inline cudaError_t cudaPeekAtLastError() { return emulator::pending_error(); }
inline cudaError_t cudaGetLastError() { return std::exchange(emulator::pending_error(), cudaSuccess); }

inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = emulator::multiprocessors(); break;
        case cudaDevAttrComputeCapabilityMajor: *value = emulator::architecture() / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = emulator::architecture() % 10; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = 48 * 1024; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = emulator::optin_shared_bytes(); break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = emulator::optin_shared_bytes() + 1024; break;
        default: return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}
#define CUDART_VERSION 13000
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, l2CacheSize;
    std::size_t totalGlobalMem, sharedMemPerBlockOptin;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (device != 0) return cudaErrorInvalidDevice;
    *properties = {"CPU in place of a GPU",
                   emulator::architecture() / 10,
                   emulator::architecture() % 10,
                   emulator::multiprocessors(),
                   1 << 20,
                   std::size_t{1} << 32,
                   static_cast<std::size_t>(emulator::optin_shared_bytes())};
    return cudaSuccess;
}
struct cudaFuncAttributes {
    int numRegs;
};
template <class T>
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, T*) {
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

inline cudaError_t cudaMalloc(void** data, std::size_t bytes) {
    *data = emulator::allocate(bytes);
    return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
template <class T>
inline cudaError_t cudaMalloc(T** data, std::size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(data), bytes);
}
inline cudaError_t cudaFree(void* data) { return emulator::release(data), cudaSuccess; }
inline cudaError_t cudaMallocAsync(void** data, std::size_t bytes, cudaStream_t) { return cudaMalloc(data, bytes); }
inline cudaError_t cudaFreeAsync(void* data, cudaStream_t) { return cudaFree(data); }
// Pools give what malloc gives; nothing is captured here.
using cudaMemPool_t = struct EmulatedPool*;
enum cudaMemAllocationType { cudaMemAllocationTypePinned = 1 };
enum cudaMemLocationType { cudaMemLocationTypeDevice = 1 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0 };
struct cudaMemLocation {
    cudaMemLocationType type;
    int id;
};
struct cudaMemPoolProps {
    cudaMemAllocationType allocType;
    cudaMemLocation location;
};
inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
    static int something;
    return *pool = reinterpret_cast<cudaMemPool_t>(&something), cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
inline cudaError_t cudaMallocFromPoolAsync(void** data, std::size_t bytes, cudaMemPool_t, cudaStream_t) {
    return cudaMalloc(data, bytes);
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
    const emulator::DeviceAccess access;
    if (bytes) std::memmove(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t = nullptr) {
    const emulator::DeviceAccess access;
    if (bytes) std::memset(to, value, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMemset2DAsync(void* to, std::size_t pitch, int value, std::size_t width, std::size_t height,
                                     cudaStream_t = nullptr) {
    if (width > pitch && height > 1) return cudaErrorInvalidValue;
    const emulator::DeviceAccess access;
    for (std::size_t row = 0; row < height; row++) std::memset(static_cast<char*>(to) + row * pitch, value, width);
    return cudaSuccess;
}

template <class T>
inline cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    int most = 0;
    cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
    if (value < 0 || value > most) return emulator::pending_error() = cudaErrorInvalidValue;
    emulator::allow_shared_bytes(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(value));
    return cudaSuccess;
}
template <class T>
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T*, int, std::size_t) {
    return *blocks = 1, cudaSuccess;
}

namespace emulator {
inline unsigned cluster_of(const cudaLaunchConfig_t& config) {
    for (unsigned i = 0; i < config.numAttrs; i++)
        if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) return config.attrs[i].val.clusterDim.x;
    return 1;
}
}  // namespace emulator

template <class T>
inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, T*, const cudaLaunchConfig_t* config) {
    const auto blocks = static_cast<int>(emulator::cluster_of(*config));
    *clusters = emulator::architecture() < 90 ? 0 : emulator::multiprocessors() / blocks;
    return cudaSuccess;
}

template <class... Parameters, class... Arguments>
inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                                      Arguments&&... arguments) {
    const std::tuple<std::remove_cv_t<Parameters>...> parameters(std::forward<Arguments>(arguments)...);
    bool is_dependent = false;
    for (unsigned i = 0; i < config->numAttrs; i++)
        is_dependent |= config->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization &&
                        config->attrs[i].val.programmaticStreamSerializationAllowed;
    const emulator::LaunchShape shape = {{config->gridDim.x, config->gridDim.y, config->gridDim.z},
                                         {config->blockDim.x, config->blockDim.y, config->blockDim.z},
                                         config->dynamicSmemBytes,
                                         reinterpret_cast<const void*>(kernel),
                                         is_dependent,
                                         emulator::cluster_of(*config)};
    const bool ok = emulator::run_launch(shape, [&] { std::apply(kernel, parameters); });
    if (!ok) emulator::pending_error() = cudaErrorLaunchFailure;
    return ok ? cudaSuccess : cudaErrorLaunchFailure;
}
