// What one wgmma multiplies: 64 rows of x by 128 or 256 weight rows, 32 bytes of depth. All types have the same tiles and sums, so
// one kernel serves them.
#pragma once

#include "ptx/wgmma.cuh"

namespace fastffn::cuda {
namespace {

struct Bf16Wgmma {
    using Sum = float;
    static __device__ __forceinline__ void step(Sum (&acc)[64], unsigned long long x, unsigned long long w) {
        ptx::wgmma_m64n128k16_bf16(acc, x, w);
    }
    static __device__ __forceinline__ void step(Sum (&acc)[128], unsigned long long x, unsigned long long w) {
        ptx::wgmma_m64n256k16_bf16(acc, x, w);
    }
};

struct F16Wgmma {
    using Sum = float;
    static __device__ __forceinline__ void step(Sum (&acc)[64], unsigned long long x, unsigned long long w) {
        ptx::wgmma_m64n128k16_f16(acc, x, w);
    }
    static __device__ __forceinline__ void step(Sum (&acc)[128], unsigned long long x, unsigned long long w) {
        ptx::wgmma_m64n256k16_f16(acc, x, w);
    }
};

struct Int8Wgmma {
    using Sum = int;
    static __device__ __forceinline__ void step(Sum (&acc)[64], unsigned long long x, unsigned long long w) {
        ptx::wgmma_m64n128k32_s8(acc, x, w);
    }
    static __device__ __forceinline__ void step(Sum (&acc)[128], unsigned long long x, unsigned long long w) {
        ptx::wgmma_m64n256k32_s8(acc, x, w);
    }
};

}  // namespace
}  // namespace fastffn::cuda
