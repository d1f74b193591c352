// Workspace of calls that bring none: stream-ordered, from a pool of ours on each device.
//
// The device's default pool gives its memory back at every synchronisation (its release threshold is 0), and a decode loop that looks at
// each token would have it mapped anew for each. This one keeps up to kept_bytes that nobody uses.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>

namespace fastffn::cuda {

// What a call of some thousand tokens takes; more goes back when the device is synchronised.
constexpr std::uint64_t kept_bytes = std::uint64_t{256} << 20;

// nullptr: none could be made, or it may not be made now (no pool is made while a graph is captured).
inline cudaMemPool_t workspace_pool(int device, cudaStream_t stream) {
    constexpr int most_devices = 64;
    static std::mutex mutex;
    static cudaMemPool_t pools[most_devices] = {};
    static bool failed[most_devices] = {};
    if (device < 0 || device >= most_devices) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    if (pools[device] || failed[device]) return pools[device];
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &capturing) != cudaSuccess || capturing != cudaStreamCaptureStatusNone) {
        cudaGetLastError();
        return nullptr;
    }
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location.type = cudaMemLocationTypeDevice;
    properties.location.id = device;
    std::uint64_t kept = kept_bytes;
    if (cudaMemPoolCreate(&pools[device], &properties) != cudaSuccess) {
        cudaGetLastError();
        pools[device] = nullptr;
        failed[device] = true;
    } else if (cudaMemPoolSetAttribute(pools[device], cudaMemPoolAttrReleaseThreshold, &kept) != cudaSuccess) {
        cudaGetLastError();
    }
    return pools[device];
}

inline cudaError_t take_workspace(void** data, std::int64_t bytes, int device, cudaStream_t stream) {
    const auto size = static_cast<std::size_t>(bytes);
    if (const cudaMemPool_t pool = workspace_pool(device, stream))
        return cudaMallocFromPoolAsync(data, size, pool, stream);
    return cudaMallocAsync(data, size, stream);
}

}  // namespace fastffn::cuda
