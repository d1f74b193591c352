// A sum over the threads of a block before each of them.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::cuda {
namespace {

// What comes before this thread's value, and the sum of all; every thread of the block calls it.
template <int threads>
__device__ __forceinline__ int before(int value, int* sum) {
    __shared__ int of_warp[threads / 32];
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    int inclusive = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, inclusive, distance);
        if (lane >= distance) inclusive += other;
    }
    __syncthreads();  // the call before this one has read its sums
    if (lane == 31) of_warp[warp] = inclusive;
    __syncthreads();
    int earlier = 0;
    *sum = 0;
    for (int w = 0; w < threads / 32; w++) {
        if (w < warp) earlier += of_warp[w];
        *sum += of_warp[w];
    }
    return earlier + inclusive - value;
}

}  // namespace
}  // namespace fastffn::cuda
