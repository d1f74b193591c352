// cuda/src/ptx/wgmma_sp.cuh on the CPU.
#pragma once

#include "ptx/wgmma.cuh"

namespace fastffn::ptx {

#define FASTFFN_WGMMA_SP(name, type, element)                                                                 \
    inline void name(type(&acc)[96], const unsigned (&a)[4], const unsigned& positions, unsigned long long b, \
                     FASTFFN_SITE) {                                                                          \
        static constexpr emulator::Wgmma shape = {#name, 192, emulator::Element::element, true};              \
        emulator::wgmma(site, shape, acc, a, &positions, b);                                                  \
    }

FASTFFN_WGMMA_SP(wgmma_sp_m64n192k32_bf16, float, bf16)
FASTFFN_WGMMA_SP(wgmma_sp_m64n192k32_f16, float, f16)
FASTFFN_WGMMA_SP(wgmma_sp_m64n192k64_s8, int, s8)

#undef FASTFFN_WGMMA_SP

}  // namespace fastffn::ptx
