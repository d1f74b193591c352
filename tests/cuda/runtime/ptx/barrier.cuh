// cuda/src/ptx/barrier.cuh on the CPU.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

inline void barrier_sync(int id, int threads, FASTFFN_SITE) {
    emulator::barrier(site, "barrier.sync", id, threads, 0, true);
}
inline void barrier_arrive(int id, int threads, FASTFFN_SITE) {
    emulator::barrier(site, "barrier.arrive", id, threads, 0, false);
}

}  // namespace fastffn::ptx
