// Shared memory whose size is the launch's: one block of bytes, 1024-aligned (what TMA's 128-byte swizzle wants).
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char fastffn_dynamic_shared[];
    return fastffn_dynamic_shared;
}

// Address in the shared window, as instructions of the .shared space take it.
__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}

}  // namespace fastffn::ptx
