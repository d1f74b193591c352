// cuda/src/ptx/cp_async.cuh on the CPU.
#pragma once

#include "ptx/shared.cuh"

namespace fastffn::ptx {

inline void cp_async_16(void* shared, const void* global, int bytes = 16, FASTFFN_SITE) {
    emulator::async_copy(site, shared, global, 16, bytes);
}

template <int size>
inline void cp_async_small(void* shared, const void* global, int bytes = size, FASTFFN_SITE) {
    static_assert(size == 4 || size == 8, "cp.async.ca copies 4, 8 or 16 bytes");
    emulator::async_copy(site, shared, global, size, bytes);
}

inline void cp_async_commit() { emulator::async_commit(); }

template <int pending>
inline void cp_async_wait() {
    static_assert(pending >= 0, "groups");
    emulator::async_wait(pending);
}

}  // namespace fastffn::ptx
