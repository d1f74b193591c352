// cuda/src/ptx/wgmma.cuh on the CPU.
#pragma once

#include "emulator/asynchronous.hpp"
#include "ptx/shared.cuh"

namespace fastffn::ptx {

inline unsigned long long matrix_descriptor(const void* tile) {
    constexpr unsigned long long eight_rows = 1024 >> 4, swizzle_128 = 1;
    return (shared_address(tile) >> 4 & 0x3FFF) | 1ull << 16 | eight_rows << 32 | swizzle_128 << 62;
}

inline void wgmma_fence(FASTFFN_SITE) { emulator::wgmma_fence(site); }
inline void wgmma_commit(FASTFFN_SITE) { emulator::wgmma_commit(site); }

template <int pending>
inline void wgmma_wait(FASTFFN_SITE) {
    static_assert(pending >= 0 && pending < 8, "groups");
    emulator::wgmma_wait(site, pending);
}
template <class Sum, int count>
inline void wgmma_wait_all(Sum (&)[count], FASTFFN_SITE) {
    emulator::wgmma_wait(site, 0);
}

#define FASTFFN_WGMMA(name, columns, type, element)                                                       \
    inline void name(type(&acc)[columns / 2], unsigned long long a, unsigned long long b, FASTFFN_SITE) { \
        static constexpr emulator::Wgmma shape = {#name, columns, emulator::Element::element};            \
        emulator::wgmma(site, shape, acc, a, b);                                                          \
    }

FASTFFN_WGMMA(wgmma_m64n128k16_bf16, 128, float, bf16)
FASTFFN_WGMMA(wgmma_m64n128k16_f16, 128, float, f16)
FASTFFN_WGMMA(wgmma_m64n128k32_s8, 128, int, s8)
FASTFFN_WGMMA(wgmma_m64n256k16_bf16, 256, float, bf16)
FASTFFN_WGMMA(wgmma_m64n256k16_f16, 256, float, f16)
FASTFFN_WGMMA(wgmma_m64n256k32_s8, 256, int, s8)

#undef FASTFFN_WGMMA

}  // namespace fastffn::ptx
