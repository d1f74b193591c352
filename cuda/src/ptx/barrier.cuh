// Barriers among some of a block's warps. PTX ISA, "barrier". Ids 1 to 15 (0 is __syncthreads), threads a multiple of 32.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

// Waits until `threads` threads have come to barrier `id` by barrier_sync or barrier_arrive.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Counts without waiting.
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace fastffn::ptx
