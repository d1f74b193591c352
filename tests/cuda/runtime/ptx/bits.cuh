// cuda/src/ptx/bits.cuh on the CPU.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

template <int table>
inline unsigned lop3(unsigned a, unsigned b, unsigned c) {
    static_assert(table >= 0 && table < 256, "eight bits");
    unsigned result = 0;
    for (int i = 0; i < 32; i++) {
        const unsigned row = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
        result |= (static_cast<unsigned>(table) >> row & 1) << i;
    }
    return result;
}

inline int dp4a_u8s8(unsigned a, unsigned b, int sum) {
    for (int i = 0; i < 4; i++) sum += static_cast<int>(a >> 8 * i & 255) * static_cast<std::int8_t>(b >> 8 * i);
    return sum;
}

inline int unknown(int x) { return x; }

}  // namespace fastffn::ptx
