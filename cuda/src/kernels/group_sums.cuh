// Sums of bf16 rows over each group of columns. One warp per row and group, in a fixed order.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "ptx/dependent.cuh"

namespace fastffn::cuda {
namespace {

constexpr int group_sums_warps = 8;

__global__ void __launch_bounds__(group_sums_warps * 32)
    group_sums_kernel(const void* x, std::int64_t x_stride, std::int64_t rows, std::int64_t depth, std::int64_t group,
                      std::int64_t groups, float* sums) {
    ptx::let_next_launch_begin();
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * group_sums_warps;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * group_sums_warps + threadIdx.x / 32;
         i < rows * groups; i += step) {
        const auto* const row =
            reinterpret_cast<const __nv_bfloat16*>(static_cast<const unsigned char*>(x) + i / groups * x_stride);
        const std::int64_t begin = i % groups * group, end = min(begin + group, depth);
        float sum = 0;
        for (std::int64_t k = begin + lane; k < end; k += 32) sum += __bfloat162float(row[k]);
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        if (lane == 0) sums[i] = sum;
    }
}

}  // namespace
}  // namespace fastffn::cuda
