// Threads that share a row: what all of them have together, and the factor of its RMSNorm.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastffn::cuda {
namespace {

// What all threads of a team have, given what every thread has. Barriers are the block's: its teams do the same steps.
struct TeamReduction {
    int first_warp, warps;  // of the team
    __device__ __forceinline__ unsigned largest(unsigned value) const {
        __shared__ unsigned slots[32];
        value = __reduce_max_sync(0xffffffffu, value);
        if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
        __syncthreads();
        for (int w = 0; w < warps; w++) value = max(value, slots[first_warp + w]);
        return value;
    }
    __device__ __forceinline__ float sum(float value) const {
        __shared__ float slots[32];
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
        if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
        __syncthreads();
        value = 0;
        for (int w = 0; w < warps; w++) value += slots[first_warp + w];
        return value;
    }
    __device__ __forceinline__ int sum(int value) const {
        __shared__ int slots[32];
        value = __reduce_add_sync(0xffffffffu, value);
        if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
        __syncthreads();
        value = 0;
        for (int w = 0; w < warps; w++) value += slots[first_warp + w];
        return value;
    }
};

// 1/√(mean of squares + eps): squares are of x · 2^-e, e the exponent of the largest, so that none leaves the range of f32. The last
// steps are in f64, by one thread: some devices have few units for it.
__device__ __forceinline__ float inverse_norm(const TeamReduction& team, int team_thread, unsigned largest,
                                              float squares, int exponent, std::int64_t mean_of, float eps) {
    __shared__ float results[32];
    const float total = team.sum(squares);
    if (team_thread == 0) {
        const double mean = static_cast<double>(total) / static_cast<double>(mean_of);
        float result = static_cast<float>(1.0 / sqrt(scalbn(mean, 2 * exponent) + static_cast<double>(eps)));
        if (largest >= 0x7f800000u) result = largest == 0x7f800000u ? 0.0f : __int_as_float(0x7fffffff);
        results[team.first_warp] = result;
    }
    __syncthreads();
    return results[team.first_warp];
}

// The group of a position: how many groups end at or before it.
__device__ __forceinline__ std::int64_t group_of(const std::int32_t* offsets, std::int64_t groups,
                                                 std::int64_t position) {
    std::int64_t low = 0, high = groups;
    while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (offsets[middle + 1] <= position) low = middle + 1;
        else high = middle;
    }
    return low;
}

}  // namespace
}  // namespace fastffn::cuda
