// cuda/src/ptx/bits.cuh on the CPU.
#pragma once

#include <cuda_bf16.h>
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

inline unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
    unsigned result = 0;
    for (int shift : {0, 16}) {
        const auto part = [&](unsigned pair) {
            return __ushort_as_bfloat16(static_cast<unsigned short>(pair >> shift));
        };
        result |= static_cast<unsigned>(__bfloat16_as_ushort(__hfma(part(a), part(b), part(c)))) << shift;
    }
    return result;
}

inline int unknown(int x) { return x; }

}  // namespace fastffn::ptx
