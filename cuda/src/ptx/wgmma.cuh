// wgmma: acc[64×n] += a[64×k] · b[k×n] by a warpgroup, four warps of which the first is divisible by four, with a and b in shared
// memory. It goes on beside the warps: until wgmma_wait says that its group is done, its tiles may not be written and its sums not
// be touched. PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". sm_90a.
//
//   acc     warp w of the four has rows 16w … 16w + 15; of these lane 4g + t has in acc[4j + 2h + c] row g + 8h, column 8j + 2t + c
//   a, b    rows of a and columns of b, 32 bytes of depth each, in tiles as matrix_descriptor says
//
// In this order: wgmma_fence, any number of wgmma, wgmma_commit; wgmma_wait.
#pragma once

#include "ptx/shared.cuh"

namespace fastffn::ptx {

// A tile of rows of 128 bytes, 128-byte swizzle, as make_tensor_map's boxes are: 1024-aligned. Depth is the row's direction; 32
// bytes further in the same tile: + 2.
__device__ __forceinline__ unsigned long long matrix_descriptor(const void* tile) {
    constexpr unsigned long long eight_rows = 1024 >> 4, swizzle_128 = 1;
    return (shared_address(tile) >> 4 & 0x3FFF) | 1ull << 16 | eight_rows << 32 | swizzle_128 << 62;
}

// Before the first wgmma, and before any that uses registers which the thread has touched since.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// What was issued since the last commit becomes one group.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most the `pending` newest groups are still under way; for tiles that are to be written over.
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// clang-format off
#define FASTFFN_REGISTERS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FASTFFN_OPERANDS_64(c) \
    "+" c(acc[0]), "+" c(acc[1]), "+" c(acc[2]), "+" c(acc[3]), "+" c(acc[4]), "+" c(acc[5]), "+" c(acc[6]), "+" c(acc[7]), \
    "+" c(acc[8]), "+" c(acc[9]), "+" c(acc[10]), "+" c(acc[11]), "+" c(acc[12]), "+" c(acc[13]), "+" c(acc[14]), "+" c(acc[15]), \
    "+" c(acc[16]), "+" c(acc[17]), "+" c(acc[18]), "+" c(acc[19]), "+" c(acc[20]), "+" c(acc[21]), "+" c(acc[22]), "+" c(acc[23]), \
    "+" c(acc[24]), "+" c(acc[25]), "+" c(acc[26]), "+" c(acc[27]), "+" c(acc[28]), "+" c(acc[29]), "+" c(acc[30]), "+" c(acc[31]), \
    "+" c(acc[32]), "+" c(acc[33]), "+" c(acc[34]), "+" c(acc[35]), "+" c(acc[36]), "+" c(acc[37]), "+" c(acc[38]), "+" c(acc[39]), \
    "+" c(acc[40]), "+" c(acc[41]), "+" c(acc[42]), "+" c(acc[43]), "+" c(acc[44]), "+" c(acc[45]), "+" c(acc[46]), "+" c(acc[47]), \
    "+" c(acc[48]), "+" c(acc[49]), "+" c(acc[50]), "+" c(acc[51]), "+" c(acc[52]), "+" c(acc[53]), "+" c(acc[54]), "+" c(acc[55]), \
    "+" c(acc[56]), "+" c(acc[57]), "+" c(acc[58]), "+" c(acc[59]), "+" c(acc[60]), "+" c(acc[61]), "+" c(acc[62]), "+" c(acc[63])
#define FASTFFN_REGISTERS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FASTFFN_OPERANDS_128(c) \
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
    "+" c(acc[88]), "+" c(acc[89]), "+" c(acc[90]), "+" c(acc[91]), "+" c(acc[92]), "+" c(acc[93]), "+" c(acc[94]), "+" c(acc[95]), \
    "+" c(acc[96]), "+" c(acc[97]), "+" c(acc[98]), "+" c(acc[99]), "+" c(acc[100]), "+" c(acc[101]), "+" c(acc[102]), "+" c(acc[103]), \
    "+" c(acc[104]), "+" c(acc[105]), "+" c(acc[106]), "+" c(acc[107]), "+" c(acc[108]), "+" c(acc[109]), "+" c(acc[110]), "+" c(acc[111]), \
    "+" c(acc[112]), "+" c(acc[113]), "+" c(acc[114]), "+" c(acc[115]), "+" c(acc[116]), "+" c(acc[117]), "+" c(acc[118]), "+" c(acc[119]), \
    "+" c(acc[120]), "+" c(acc[121]), "+" c(acc[122]), "+" c(acc[123]), "+" c(acc[124]), "+" c(acc[125]), "+" c(acc[126]), "+" c(acc[127])
// clang-format on

// Waits for all groups, behind which the sums are in their registers: the compiler may not read them before.
#define FASTFFN_WGMMA_WAIT(count, type, constraint)                                                        \
    __device__ __forceinline__ void wgmma_wait_all(type(&acc)[count]) {                                    \
        asm volatile("wgmma.wait_group.sync.aligned 0;" : FASTFFN_OPERANDS_##count(constraint)::"memory"); \
    }
FASTFFN_WGMMA_WAIT(64, float, "f")
FASTFFN_WGMMA_WAIT(64, int, "r")
FASTFFN_WGMMA_WAIT(128, float, "f")
FASTFFN_WGMMA_WAIT(128, int, "r")
#undef FASTFFN_WGMMA_WAIT

// `signs`: of floats, both multiplicands as they are and along their rows.
#define FASTFFN_WGMMA(name, count, a_operand, b_operand, type, constraint, instruction, signs)                        \
    __device__ __forceinline__ void name(type(&acc)[count], unsigned long long a, unsigned long long b) {             \
        asm volatile(                                                                                                 \
            "{\n.reg .pred adds;\nsetp.ne.b32 adds, 1, 0;\n"                                                          \
            "wgmma.mma_async.sync.aligned." instruction " {" FASTFFN_REGISTERS_##count "}, " a_operand ", " b_operand \
                                                                                       ", adds" signs ";\n}"          \
            : FASTFFN_OPERANDS_##count(constraint)                                                                    \
            : "l"(a), "l"(b));                                                                                        \
    }
#define FASTFFN_WGMMA_128(name, type, constraint, instruction, signs) \
    FASTFFN_WGMMA(name, 64, "%64", "%65", type, constraint, instruction, signs)
#define FASTFFN_WGMMA_256(name, type, constraint, instruction, signs) \
    FASTFFN_WGMMA(name, 128, "%128", "%129", type, constraint, instruction, signs)

FASTFFN_WGMMA_128(wgmma_m64n128k16_bf16, float, "f", "m64n128k16.f32.bf16.bf16", ", 1, 1, 0, 0")
FASTFFN_WGMMA_128(wgmma_m64n128k16_f16, float, "f", "m64n128k16.f32.f16.f16", ", 1, 1, 0, 0")
FASTFFN_WGMMA_128(wgmma_m64n128k32_s8, int, "r", "m64n128k32.s32.s8.s8", "")
FASTFFN_WGMMA_256(wgmma_m64n256k16_bf16, float, "f", "m64n256k16.f32.bf16.bf16", ", 1, 1, 0, 0")
FASTFFN_WGMMA_256(wgmma_m64n256k16_f16, float, "f", "m64n256k16.f32.f16.f16", ", 1, 1, 0, 0")
FASTFFN_WGMMA_256(wgmma_m64n256k32_s8, int, "r", "m64n256k32.s32.s8.s8", "")

#undef FASTFFN_WGMMA_256
#undef FASTFFN_WGMMA_128
#undef FASTFFN_WGMMA
#undef FASTFFN_OPERANDS_64
#undef FASTFFN_OPERANDS_128
#undef FASTFFN_REGISTERS_64
#undef FASTFFN_REGISTERS_128

}  // namespace fastffn::ptx
