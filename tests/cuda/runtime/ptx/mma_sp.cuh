// cuda/src/ptx/mma_sp.cuh on the CPU.
#pragma once

#include <cuda_runtime.h>

#include "emulator/matrix.hpp"

namespace fastffn::ptx {

#define FASTFFN_MMA_SP(name, acc_type, registers, depth, element, selectors)                            \
    template <int selector>                                                                             \
    inline void name(acc_type(&acc)[4], const unsigned (&a)[registers], const unsigned (&b)[registers], \
                     unsigned metadata, FASTFFN_SITE) {                                                 \
        static_assert(selector >= 0 && selector < selectors, "which lanes have the metadata");          \
        static constexpr emulator::Mma shape = {                                                        \
            #name, depth, emulator::Element::element, emulator::Element::element, true, selector};      \
        emulator::mma(site, shape, acc, a, b, metadata);                                                \
    }

FASTFFN_MMA_SP(mma_sp_m16n8k32_bf16, float, 4, 32, bf16, 2)
FASTFFN_MMA_SP(mma_sp_m16n8k32_f16, float, 4, 32, f16, 2)
FASTFFN_MMA_SP(mma_sp_m16n8k16_bf16, float, 2, 16, bf16, 4)
FASTFFN_MMA_SP(mma_sp_m16n8k16_f16, float, 2, 16, f16, 4)
FASTFFN_MMA_SP(mma_sp_m16n8k64_s8, int, 4, 64, s8, 1)

#undef FASTFFN_MMA_SP

}  // namespace fastffn::ptx
