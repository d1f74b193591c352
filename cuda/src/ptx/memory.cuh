// Loads of weights that a launch reads once: they keep out of L1 and ask L2 for the sectors behind them. As with __ldg, what is
// loaded so may not be written while the kernel runs, and a dependent (ptx/dependent.cuh) runs while the launch before it writes:
// kernels that wait for it load its rows by plain loads.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

__device__ __forceinline__ uint4 load_once(const uint4* global) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global));
    return v;
}

__device__ __forceinline__ uint2 load_once(const uint2* global) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(global));
    return v;
}

__device__ __forceinline__ unsigned load_once(const unsigned* global) {
    unsigned v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.u32 %0, [%1];" : "=r"(v) : "l"(global));
    return v;
}

// Asks L2 for the line of 128 bytes around an address; nothing waits.
__device__ __forceinline__ void prefetch_l2(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

}  // namespace fastffn::ptx
