// mma.sync: acc[16×8] += a[16×k] · b[k×8] by one warp; all 32 lanes take part. PTX ISA, "Matrix multiply-accumulate
// operation using mma instruction". With g = lane / 4 and t = lane % 4, registers hold, lowest bits first:
//
//   acc (f32, s32)  {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}
//   16-bit, k16     a: rows g, g+8, g, g+8; columns 2t, 2t+1 (registers 0, 1) and 2t+8, 2t+9 (2, 3)
//                   b: column g; rows 2t, 2t+1 (0) and 2t+8, 2t+9 (1)
//   16-bit, k8      a: rows g, g+8; columns 2t, 2t+1          b: rows 2t, 2t+1
//   tf32, k8        a: (g, t), (g+8, t), (g, t+4), (g+8, t+4)  b: (t, g), (t+4, g)
//   8-bit, k32      a: rows g, g+8, g, g+8; columns 4t .. 4t+3 (0, 1) and 4t+16 .. 4t+19 (2, 3)
//                   b: rows 4t .. 4t+3 (0) and 4t+16 .. 4t+19 (1)
//   8-bit, k16      a: rows g, g+8; columns 4t .. 4t+3         b: rows 4t .. 4t+3
//   4-bit, k64      a: rows g, g+8, g, g+8; columns 8t .. 8t+7 (0, 1) and 8t+32 .. 8t+39 (2, 3)
//                   b: rows 8t .. 8t+7 (0) and 8t+32 .. 8t+39 (1)
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

#define FASTFFN_MMA_4_2(name, acc_type, constraint, instruction)                                                      \
    __device__ __forceinline__ void name(acc_type(&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {         \
        asm volatile("mma.sync.aligned." instruction                                                                  \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "                                                \
                     "{%0, %1, %2, %3};"                                                                              \
                     : "+" constraint(acc[0]), "+" constraint(acc[1]), "+" constraint(acc[2]), "+" constraint(acc[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                             \
    }

#define FASTFFN_MMA_2_1(name, acc_type, constraint, instruction)                                                      \
    __device__ __forceinline__ void name(acc_type(&acc)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {         \
        asm volatile("mma.sync.aligned." instruction " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"           \
                     : "+" constraint(acc[0]), "+" constraint(acc[1]), "+" constraint(acc[2]), "+" constraint(acc[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(b[0]));                                                              \
    }

FASTFFN_MMA_4_2(mma_m16n8k16_bf16, float, "f", "m16n8k16.row.col.f32.bf16.bf16.f32")
FASTFFN_MMA_4_2(mma_m16n8k16_f16, float, "f", "m16n8k16.row.col.f32.f16.f16.f32")
FASTFFN_MMA_2_1(mma_m16n8k8_bf16, float, "f", "m16n8k8.row.col.f32.bf16.bf16.f32")
FASTFFN_MMA_2_1(mma_m16n8k8_f16, float, "f", "m16n8k8.row.col.f32.f16.f16.f32")
// f32 bits whose low 13 are ignored.
FASTFFN_MMA_4_2(mma_m16n8k8_tf32, float, "f", "m16n8k8.row.col.f32.tf32.tf32.f32")
FASTFFN_MMA_4_2(mma_m16n8k32_s8, int, "r", "m16n8k32.row.col.s32.s8.s8.s32")
FASTFFN_MMA_4_2(mma_m16n8k32_u8s8, int, "r", "m16n8k32.row.col.s32.u8.s8.s32")
FASTFFN_MMA_4_2(mma_m16n8k32_s8u8, int, "r", "m16n8k32.row.col.s32.s8.u8.s32")
FASTFFN_MMA_4_2(mma_m16n8k32_u8, int, "r", "m16n8k32.row.col.s32.u8.u8.s32")
FASTFFN_MMA_2_1(mma_m16n8k16_s8, int, "r", "m16n8k16.row.col.s32.s8.s8.s32")
FASTFFN_MMA_4_2(mma_m16n8k64_s4, int, "r", "m16n8k64.row.col.s32.s4.s4.s32")
FASTFFN_MMA_4_2(mma_m16n8k64_u4s4, int, "r", "m16n8k64.row.col.s32.u4.s4.s32")
FASTFFN_MMA_4_2(mma_m16n8k64_s4u4, int, "r", "m16n8k64.row.col.s32.s4.u4.s32")

#undef FASTFFN_MMA_4_2
#undef FASTFFN_MMA_2_1

}  // namespace fastffn::ptx
