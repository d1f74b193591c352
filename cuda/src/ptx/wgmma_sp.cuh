// wgmma.sp: as wgmma, with two of every four elements along a row of a zero and not stored, so that a piece of depth is 64 bytes of b.
// PTX ISA, "wgmma.mma_async.sp". sm_90a. a is in registers: warp w of the four has rows 16w … 16w + 15 as mma.sp has them, the kept
// elements in a, their positions in `positions` (ptx/mma_sp.cuh; the figures are the same ones). None of these registers may be
// touched until the wgmma is done.
#pragma once

#include "ptx/wgmma.cuh"

namespace fastffn::ptx {

// clang-format off
#define FASTFFN_REGISTERS_96 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FASTFFN_OPERANDS_96(c) \
    "+" c(acc[0]), "+" c(acc[1]), "+" c(acc[2]), "+" c(acc[3]), "+" c(acc[4]), "+" c(acc[5]), "+" c(acc[6]), "+" c(acc[7]), \
    "+" c(acc[8]), "+" c(acc[9]), "+" c(acc[10]), "+" c(acc[11]), "+" c(acc[12]), "+" c(acc[13]), "+" c(acc[14]), "+" c(acc[15]), \
    "+" c(acc[16]), "+" c(acc[17]), "+" c(acc[18]), "+" c(acc[19]), "+" c(acc[20]), "+" c(acc[21]), "+" c(acc[22]), "+" c(acc[23]), \
    "+" c(acc[24]), "+" c(acc[25]), "+" c(acc[26]), "+" c(acc[27]), "+" c(acc[28]), "+" c(acc[29]), "+" c(acc[30]), "+" c(acc[31]), \
    "+" c(acc[32]), "+" c(acc[33]), "+" c(acc[34]), "+" c(acc[35]), "+" c(acc[36]), "+" c(acc[37]), "+" c(acc[38]), "+" c(acc[39]), \
    "+" c(acc[40]), "+" c(acc[41]), "+" c(acc[42]), "+" c(acc[43]), "+" c(acc[44]), "+" c(acc[45]), "+" c(acc[46]), "+" c(acc[47]), \
    "+" c(acc[48]), "+" c(acc[49]), "+" c(acc[50]), "+" c(acc[51]), "+" c(acc[52]), "+" c(acc[53]), "+" c(acc[54]), "+" c(acc[55]), \
    "+" c(acc[56]), "+" c(acc[57]), "+" c(acc[58]), "+" c(acc[59]), "+" c(acc[60]), "+" c(acc[61]), "+" c(acc[62]), "+" c(acc[63]), \
    "+" c(acc[64]), "+" c(acc[65]), "+" c(acc[66]), "+" c(acc[67]), "+" c(acc[68]), "+" c(acc[69]), "+" c(acc[70]), "+" c(acc[71]), \
    "+" c(acc[72]), "+" c(acc[73]), "+" c(acc[74]), "+" c(acc[75]), "+" c(acc[76]), "+" c(acc[77]), "+" c(acc[78]), "+" c(acc[79]), \
    "+" c(acc[80]), "+" c(acc[81]), "+" c(acc[82]), "+" c(acc[83]), "+" c(acc[84]), "+" c(acc[85]), "+" c(acc[86]), "+" c(acc[87]), \
    "+" c(acc[88]), "+" c(acc[89]), "+" c(acc[90]), "+" c(acc[91]), "+" c(acc[92]), "+" c(acc[93]), "+" c(acc[94]), "+" c(acc[95])
// clang-format on

__device__ __forceinline__ void wgmma_wait_all(float (&acc)[96]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" : FASTFFN_OPERANDS_96("f")::"memory");
}
__device__ __forceinline__ void wgmma_wait_all(int (&acc)[96]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" : FASTFFN_OPERANDS_96("r")::"memory");
}

// `signs`: of floats, both multiplicands as they are and b along its rows.
#define FASTFFN_WGMMA_SP(name, type, constraint, instruction, signs)                                 \
    __device__ __forceinline__ void name(type(&acc)[96], const unsigned (&a)[4], unsigned positions, \
                                         unsigned long long b) {                                     \
        asm volatile(                                                                                \
            "{\n.reg .pred adds;\nsetp.ne.b32 adds, 1, 0;\n"                                         \
            "wgmma.mma_async.sp.sync.aligned." instruction " {" FASTFFN_REGISTERS_96                 \
            "}, {%96, %97, %98, %99}, %100, %101, 0, adds" signs ";\n}"                              \
            : FASTFFN_OPERANDS_96(constraint)                                                        \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(positions));                   \
    }

FASTFFN_WGMMA_SP(wgmma_sp_m64n192k32_bf16, float, "f", "m64n192k32.f32.bf16.bf16", ", 1, 1, 0")
FASTFFN_WGMMA_SP(wgmma_sp_m64n192k32_f16, float, "f", "m64n192k32.f32.f16.f16", ", 1, 1, 0")
FASTFFN_WGMMA_SP(wgmma_sp_m64n192k64_s8, int, "r", "m64n192k64.s32.s8.s8", "")

#undef FASTFFN_WGMMA_SP
#undef FASTFFN_OPERANDS_96
#undef FASTFFN_REGISTERS_96

}  // namespace fastffn::ptx
