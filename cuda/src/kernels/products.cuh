// What one tensor-core step multiplies: 32 bytes of depth, 16 rows by 8. All types have the same lanes and registers (ptx/mma.cuh),
// so one kernel serves all of them.
#pragma once

#include "ptx/mma.cuh"

namespace fastffn::cuda {
namespace {

struct Bf16Product {
    using Sum = float;
    static constexpr bool is_scaled = false;
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        ptx::mma_m16n8k16_bf16(acc, a, b);
    }
};

struct F16Product {
    using Sum = float;
    static constexpr bool is_scaled = false;
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        ptx::mma_m16n8k16_f16(acc, a, b);
    }
};

struct Int8Product {
    using Sum = int;
    static constexpr bool is_scaled = true;  // codes: rows and tokens have scales
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        ptx::mma_m16n8k32_s8(acc, a, b);
    }
};

}  // namespace
}  // namespace fastffn::cuda
