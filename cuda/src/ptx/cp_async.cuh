// cp.async: global → shared without registers; data is there only after the wait for its group, and for other threads
// only after a barrier behind that. PTX ISA, "Non-bulk copy". Both addresses are aligned to the size of the copy.
#pragma once

#include "ptx/shared.cuh"

namespace fastffn::ptx {

// 16 bytes past L1. Only the first `bytes` (0 to 16) are read; the rest of the destination becomes zeros.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
}

// 4 or 8 bytes, through L1.
template <int size>
__device__ __forceinline__ void cp_async_small(void* shared, const void* global, int bytes = size) {
    static_assert(size == 4 || size == 8, "cp.async.ca copies 4, 8 or 16 bytes");
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global), "n"(size),
                 "r"(bytes)
                 : "memory");
}

// What was issued since the last commit becomes one group; an empty group counts too.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the `pending` newest groups of this thread are still under way.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace fastffn::ptx
