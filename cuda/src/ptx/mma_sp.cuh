// mma.sp.sync: acc[16×8] += a[16×k] · b[k×8] where two of every four elements along a row of a are zero and not stored. PTX
// ISA, "Matrix multiply-accumulate operation using mma.sp instruction with sparse matrix A". a holds the kept elements
// [16×k/2] as the dense mma of depth k/2 does; b holds [k×8] as two dense mma of depth k/2 behind each other. The metadata
// has 4 bits per group of four columns: the positions of the two kept elements, the lower one in the lower bits.
//
//   16-bit, k32   selector 0: lanes 4g and 4g+1, 1: lanes 4g+2 and 4g+3. The first of the two lanes has columns 0 to 15, the
//                 second 16 to 31; bits 0-15 are row g, bits 16-31 row g+8.
//   16-bit, k16   lane 4g + selector; bits 0-15 are row g, bits 16-31 row g+8.
//   8-bit, k64    every lane: 4g row g columns 0-31, 4g+1 row g+8 columns 0-31, 4g+2 and 4g+3 the same of columns 32-63.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

#if __CUDA_ARCH__ >= 900  // the unordered form is slow from Hopper on; pack() orders its positions everywhere
#define FASTFFN_MMA_SP "mma.sp::ordered_metadata.sync.aligned."
#else
#define FASTFFN_MMA_SP "mma.sp.sync.aligned."
#endif

#define FASTFFN_MMA_SP_4_4(name, acc_type, constraint, instruction)                                                   \
    template <int selector>                                                                                           \
    __device__ __forceinline__ void name(acc_type(&acc)[4], const unsigned (&a)[4], const unsigned (&b)[4],           \
                                         unsigned metadata) {                                                         \
        asm volatile(FASTFFN_MMA_SP instruction                                                                       \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"           \
                     : "+" constraint(acc[0]), "+" constraint(acc[1]), "+" constraint(acc[2]), "+" constraint(acc[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]),        \
                       "r"(metadata), "n"(selector));                                                                 \
    }

#define FASTFFN_MMA_SP_2_2(name, acc_type, constraint, instruction)                                                   \
    template <int selector>                                                                                           \
    __device__ __forceinline__ void name(acc_type(&acc)[4], const unsigned (&a)[2], const unsigned (&b)[2],           \
                                         unsigned metadata) {                                                         \
        asm volatile(FASTFFN_MMA_SP instruction " {%0, %1, %2, %3}, {%4, %5}, {%6, %7}, {%0, %1, %2, %3}, %8, %9;"    \
                     : "+" constraint(acc[0]), "+" constraint(acc[1]), "+" constraint(acc[2]), "+" constraint(acc[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]), "r"(metadata), "n"(selector));                     \
    }

FASTFFN_MMA_SP_4_4(mma_sp_m16n8k32_bf16, float, "f", "m16n8k32.row.col.f32.bf16.bf16.f32")
FASTFFN_MMA_SP_4_4(mma_sp_m16n8k32_f16, float, "f", "m16n8k32.row.col.f32.f16.f16.f32")
FASTFFN_MMA_SP_2_2(mma_sp_m16n8k16_bf16, float, "f", "m16n8k16.row.col.f32.bf16.bf16.f32")
FASTFFN_MMA_SP_2_2(mma_sp_m16n8k16_f16, float, "f", "m16n8k16.row.col.f32.f16.f16.f32")
FASTFFN_MMA_SP_4_4(mma_sp_m16n8k64_s8, int, "r", "m16n8k64.row.col.s32.s8.s8.s32")

#undef FASTFFN_MMA_SP_4_4
#undef FASTFFN_MMA_SP_2_2
#undef FASTFFN_MMA_SP

}  // namespace fastffn::ptx
