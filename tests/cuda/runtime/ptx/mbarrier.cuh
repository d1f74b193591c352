// cuda/src/ptx/mbarrier.cuh on the CPU.
#pragma once

#include "emulator/asynchronous.hpp"
#include "ptx/shared.cuh"

namespace fastffn::ptx {

struct alignas(8) Mbarrier {
    unsigned long long opaque;
};

inline void mbarrier_init(Mbarrier* barrier, unsigned arrivals, FASTFFN_SITE) {
    emulator::mbarrier_init(site, barrier, arrivals);
}
inline void mbarrier_fence_init() { emulator::mbarrier_fence_init(); }
inline void mbarrier_arrive(Mbarrier* barrier, FASTFFN_SITE) { emulator::mbarrier_arrive(site, barrier, 0); }
inline void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes, FASTFFN_SITE) {
    emulator::mbarrier_arrive(site, barrier, bytes);
}
inline void mbarrier_wait(Mbarrier* barrier, unsigned parity, FASTFFN_SITE) {
    emulator::mbarrier_wait(site, barrier, parity);
}

}  // namespace fastffn::ptx
