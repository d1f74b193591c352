// cuda/src/ptx/mma.cuh on the CPU.
#pragma once

#include <cuda_runtime.h>

#include "emulator/matrix.hpp"

namespace fastffn::ptx {

#define FASTFFN_MMA(name, acc_type, a_registers, b_registers, depth, a_element, b_element)                  \
    inline void name(acc_type(&acc)[4], const unsigned (&a)[a_registers], const unsigned (&b)[b_registers], \
                     FASTFFN_SITE) {                                                                        \
        static constexpr emulator::Mma shape = {#name, depth, emulator::Element::a_element,                 \
                                                emulator::Element::b_element};                              \
        emulator::mma(site, shape, acc, a, b);                                                              \
    }

FASTFFN_MMA(mma_m16n8k16_bf16, float, 4, 2, 16, bf16, bf16)
FASTFFN_MMA(mma_m16n8k16_f16, float, 4, 2, 16, f16, f16)
FASTFFN_MMA(mma_m16n8k8_bf16, float, 2, 1, 8, bf16, bf16)
FASTFFN_MMA(mma_m16n8k8_f16, float, 2, 1, 8, f16, f16)
FASTFFN_MMA(mma_m16n8k8_tf32, float, 4, 2, 8, tf32, tf32)
FASTFFN_MMA(mma_m16n8k32_s8, int, 4, 2, 32, s8, s8)
FASTFFN_MMA(mma_m16n8k32_u8s8, int, 4, 2, 32, u8, s8)
FASTFFN_MMA(mma_m16n8k32_s8u8, int, 4, 2, 32, s8, u8)
FASTFFN_MMA(mma_m16n8k32_u8, int, 4, 2, 32, u8, u8)
FASTFFN_MMA(mma_m16n8k16_s8, int, 2, 1, 16, s8, s8)
FASTFFN_MMA(mma_m16n8k64_s4, int, 4, 2, 64, s4, s4)
FASTFFN_MMA(mma_m16n8k64_u4s4, int, 4, 2, 64, u4, s4)
FASTFFN_MMA(mma_m16n8k64_s4u4, int, 4, 2, 64, s4, u4)

#undef FASTFFN_MMA

}  // namespace fastffn::ptx
