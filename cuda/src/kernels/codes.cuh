// Codes of 2 and 4 bits in registers: how a lane's words become operands of a tensor-core step, and how the sums of a group
// become part of a result. layout.hpp says where codes are.
//
// A lane's 16 bytes of x from a piece of 64 (a quarter each for t = 0 … 3) are b of two steps: words 0 and 1, then 2 and 3. A
// piece is 64 columns of s8 or 32 of bf16. The lane's 16 bytes of a chunk of codes are a of `pieces` times two steps.
#pragma once

#include <cuda_fp16.h>

#include "kernels/tokens.cuh"
#include "launch/codes.hpp"
#include "ptx/bits.cuh"
#include "ptx/mma.cuh"

namespace fastffn::cuda {
namespace {

// Integer sums of a group begin here: as bits of an f32 that is 1.5 · 2^23, to which integers up to 2^22 add exactly.
constexpr int integer_origin = 0x4B400000;
constexpr float float_origin = 12582912.0f;

__device__ __forceinline__ unsigned word_of(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int code_bits>
struct ByteCodes {
    static constexpr int bits = code_bits, chunk_columns = 512 / bits, pieces = 8 / bits;
    static constexpr int piece_columns = 64, step_columns = 32, x_bytes = 1;
    static constexpr int fixed_zero = bits == 4 ? 8 : 1;
    static constexpr int words_of_piece = bits == 4 ? 2 : 1;  // of the chunk's 32-bit words of a lane
    static constexpr int group_origin = integer_origin;
    using Sum = int;
    using XSum = int;

    // Rows g and g + 8; `words` are those of the piece.
    static __device__ __forceinline__ void decode(const unsigned (&low)[words_of_piece],
                                                  const unsigned (&high)[words_of_piece], int odd, unsigned (&a)[4]) {
        constexpr unsigned mask = bits == 4 ? 0x0F0F0F0Fu : 0x03030303u;
        const int word = bits == 4 ? odd : 0, shift = bits == 4 ? 0 : 4 * odd;
        a[0] = low[word] >> shift & mask;
        a[1] = high[word] >> shift & mask;
        a[2] = low[word] >> (shift + bits) & mask;
        a[3] = high[word] >> (shift + bits) & mask;
    }
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        ptx::mma_m16n8k32_u8s8(acc, a, b);
    }
    // What a group adds to a result: scale · Σ x (code - zero) + minimum · Σ x.
    static __device__ __forceinline__ float folded(Sum sum, XSum x_sum, int zero, float scale, float minimum,
                                                   bool has_minimum, float total) {
        total = fmaf(__int_as_float(sum - zero * x_sum) - float_origin, scale, total);
        return has_minimum ? fmaf(static_cast<float>(x_sum), minimum, total) : total;
    }
};

// 4 bits and x in bf16.
struct Bf16Codes {
    static constexpr int bits = 4, chunk_columns = 128, pieces = 4;
    static constexpr int piece_columns = 32, step_columns = 16, x_bytes = 2;
    static constexpr int fixed_zero = 8, words_of_piece = 1;
    static constexpr float group_origin = 0;
    using Sum = float;
    using XSum = float;

    // 128 + code, with the code in the last bits of a bf16; minus 136 that is code - 8, exactly.
    static __device__ __forceinline__ unsigned pair(unsigned word, int i) {
        constexpr unsigned mask = 0x000F000Fu, one = 0x3F803F80u, minus_136 = 0xC308C308u;
        constexpr int and_or = (0xF0 & 0xCC) | 0xAA;
        return ptx::fma_bf16x2(ptx::lop3<and_or>(word >> 4 * i, mask, 0x43004300u), one, minus_136);
    }
    static __device__ __forceinline__ void decode(const unsigned (&low)[1], const unsigned (&high)[1], int odd,
                                                  unsigned (&a)[4]) {
        a[0] = pair(low[0], 2 * odd);
        a[1] = pair(high[0], 2 * odd);
        a[2] = pair(low[0], 2 * odd + 1);
        a[3] = pair(high[0], 2 * odd + 1);
    }
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        ptx::mma_m16n8k16_bf16(acc, a, b);
    }
    static __device__ __forceinline__ float folded(Sum sum, XSum x_sum, int zero, float scale, float minimum,
                                                   bool has_minimum, float total) {
        total = fmaf(zero == 8 ? sum : fmaf(static_cast<float>(8 - zero), x_sum, sum), scale, total);
        return has_minimum ? fmaf(x_sum, minimum, total) : total;
    }
};

// Which tokens a block has, decided at run time: only a kernel's first and last lines ask.
struct CodesTokens {
    AllTokens all;
    GroupedTokens grouped;
    bool is_grouped;
    __device__ __forceinline__ std::int64_t tiles(int tile_tokens) const {
        return is_grouped ? *grouped.groups.tile_count : (all.count + tile_tokens - 1) / tile_tokens;
    }
    __device__ __forceinline__ bool tile(std::int64_t index, int tile_tokens, TokenTile* tile) const {
        return is_grouped ? grouped.tile(index, tile_tokens, tile) : all.tile(index, tile_tokens, tile);
    }
    __device__ __forceinline__ std::int64_t x_row(const TokenTile& tile, int i) const {
        return is_grouped ? grouped.x_row(tile, i) : all.x_row(tile, i);
    }
};

// One matrix of a stack.
__device__ __forceinline__ CodesMatrix matrix_of(const CodesMatrix& stack, std::int64_t offset) {
    const auto at = [offset](const void* part) { return static_cast<const unsigned char*>(part) + offset; };
    return {at(stack.codes), at(stack.scales), at(stack.zeros)};
}

__device__ __forceinline__ float half_of(unsigned bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

}  // namespace
}  // namespace fastffn::cuda
