// cuda/src/ptx/memory.cuh on the CPU.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

template <class T>
inline T load_once(const T* global, FASTFFN_SITE) {
    emulator::check_aligned(site, "load_once", global, sizeof(T));
    emulator::races::check_read_only(site, "load_once", global, sizeof(T));
    return *global;
}

inline void prefetch_l2(const void*) {}

}  // namespace fastffn::ptx
