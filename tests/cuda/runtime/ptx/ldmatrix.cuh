// cuda/src/ptx/ldmatrix.cuh on the CPU.
#pragma once

#include "emulator/matrix.hpp"
#include "ptx/shared.cuh"

namespace fastffn::ptx {

template <int count>
inline void ldmatrix(unsigned (&r)[count], const void* row, FASTFFN_SITE) {
    static_assert(count == 1 || count == 2 || count == 4, "matrices");
    emulator::load_matrices(site, r, count, row, false);
}

template <int count>
inline void ldmatrix_transposed(unsigned (&r)[count], const void* row, FASTFFN_SITE) {
    static_assert(count == 1 || count == 2 || count == 4, "matrices");
    emulator::load_matrices(site, r, count, row, true);
}

inline void stmatrix(void* row, const unsigned (&r)[4], FASTFFN_SITE) { emulator::store_matrices(site, r, 4, row); }

}  // namespace fastffn::ptx
