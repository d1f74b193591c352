// Integer instructions that CUDA C++ has no name for.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

// Any function of three bits, on 32 of them: `table` is the function applied to 0xF0, 0xCC, 0xAA.
template <int table>
__device__ __forceinline__ unsigned lop3(unsigned a, unsigned b, unsigned c) {
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(table));
    return result;
}

// x, of which the compiler knows nothing: what a loop's passes compute from it is not kept in registers from one to the next.
__device__ __forceinline__ int unknown(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// sum + Σ a_i · b_i over four bytes, a unsigned and b signed. Both signed: __dp4a.
__device__ __forceinline__ int dp4a_u8s8(unsigned a, unsigned b, int sum) {
    int result;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
    return result;
}

// a · b + c of two bf16 each, every result rounded once. Neighbours in the lower and the upper half.
__device__ __forceinline__ unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
    unsigned result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

}  // namespace fastffn::ptx
