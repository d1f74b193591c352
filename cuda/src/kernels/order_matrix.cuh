// H_K of Hadamard transforms, across the K parts of a row, on integer tensor cores: a warp rounds 16 columns of all K parts to 22 bits
// of the largest of each column, as three digits of 8 bits, and ±1 times those adds up exactly. So a result is within K · 2^-23 of
// its column's largest, whatever the order of additions.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ptx/mma.cuh"

namespace fastffn::cuda {
namespace {

constexpr int most_order = 172, most_depth_tiles = 6;  // tiles of 32 parts

// Signs of H_K, a bit each, row after row: set where an entry is -1. Orders are multiples of four.
struct OrderSigns {
    unsigned words[(most_order * most_order + 31) / 32];
};

// Shared memory of mix_parts: the signs as mma's lanes take them, and the bits that they are made from.
__host__ __device__ constexpr int order_tiles(int order) { return (order + 15) / 16 * ((order + 31) / 32); }
__host__ __device__ constexpr int order_words(int order) { return (order * order + 31) / 32; }
__host__ __device__ constexpr int order_table_bytes(int order) {
    return order > 1 ? order_tiles(order) * 512 + (order_words(order) * 4 + 15) / 16 * 16 : 0;
}

// Four bytes of four integers: their digit at `byte`.
__device__ __forceinline__ unsigned four_bytes(const int (&q)[4], int byte) {
    const unsigned selector = static_cast<unsigned>(byte | (byte + 4) << 4);
    const unsigned low = __byte_perm(static_cast<unsigned>(q[0]), static_cast<unsigned>(q[1]), selector);
    const unsigned high = __byte_perm(static_cast<unsigned>(q[2]), static_cast<unsigned>(q[3]), selector);
    return __byte_perm(low, high, 0x5410);
}

// H_K across the parts, in place: load(part, column) and store(part, column, value) of `columns` columns, 16 of them by each of
// `warps` warps. signs: what make_signs() made.
template <class Load, class Store>
__device__ __forceinline__ void mix_parts(const uint4* signs, int order, std::int64_t columns, int warp, int warps,
                                          Load load, Store store) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    const int tiles = (order + 31) / 32, row_tiles = (order + 15) / 16;
    for (std::int64_t column0 = warp * 16; column0 < columns; column0 += warps * 16) {
        unsigned b[2][most_depth_tiles][3][2];
        float unit[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const std::int64_t column = column0 + 8 * n + g;
            // Lane 4g + t has parts 4t … 4t + 3 and 4t + 16 … 4t + 19 of each 32 of column g.
            const auto value = [&](int part) { return part < order && column < columns ? load(part, column) : 0.0f; };
            unsigned largest = 0;
            for (int tile = 0; tile < tiles; tile++)
#pragma unroll
                for (int i = 0; i < 8; i++)
                    largest =
                        max(largest, __float_as_uint(value(tile * 32 + i / 4 * 16 + 4 * t + i % 4)) & 0x7fffffffu);
            largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            // |x| < 2^(e + 1) becomes less than 2^22; a column with a NaN or an infinity becomes NaN.
            const int biased = max(static_cast<int>(largest >> 23), 22);
            const bool finite = largest < 0x7f800000u;
            const float scale = finite ? __int_as_float((275 - biased) << 23) : 0.0f;
            unit[n] = finite ? __int_as_float((biased - 21) << 23) : __int_as_float(0x7fffffff);
#pragma unroll
            for (int tile = 0; tile < most_depth_tiles; tile++) {
                if (tile >= tiles) continue;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int q[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        q[i] = __float2int_rn(__fmul_rn(value(tile * 32 + half * 16 + 4 * t + i), scale));
                    // Signed digits: what the lower byte of a number says as a signed one is taken off.
#pragma unroll
                    for (int digit = 0; digit < 3; digit++) {
                        b[n][tile][digit][half] = four_bytes(q, 0);
#pragma unroll
                        for (int i = 0; i < 4; i++) q[i] = (q[i] + 128) >> 8;
                    }
                }
            }
        }
        __syncwarp();  // all lanes have read the columns that are written now
#pragma unroll 1
        for (int row = 0; row < row_tiles; row++) {
            int acc[2][3][4] = {};
#pragma unroll
            for (int tile = 0; tile < most_depth_tiles; tile++) {
                if (tile >= tiles) continue;
                const uint4 four = signs[(row * tiles + tile) * 32 + lane];
                const unsigned a[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int digit = 0; digit < 3; digit++) ptx::mma_m16n8k32_s8(acc[n][digit], a, b[n][tile][digit]);
            }
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float of_column = __shfl_sync(0xffffffffu, unit[n], 8 * t + 4 * (i % 2));
                    const int part = row * 16 + g + i / 2 * 8;
                    const std::int64_t column = column0 + 8 * n + 2 * t + i % 2;
                    // At most 172 · 2^22.
                    const int total = acc[n][2][i] * 65536 + acc[n][1][i] * 256 + acc[n][0][i];
                    if (part < order && column < columns) store(part, column, static_cast<float>(total) * of_column);
                }
        }
    }
}

// The signs as ±1 in the lanes and registers of mma's matrix a: register r of a lane has rows g + 8 (r % 2) and columns
// 4t + 16 (r / 2) and three further. Returns the table; `bits` is memory behind it.
__device__ __forceinline__ const uint4* make_signs(void* shared, const OrderSigns& signs, int order) {
    auto* const table = static_cast<uint4*>(shared);
    auto* const bits = reinterpret_cast<unsigned*>(table + order_tiles(order) * 32);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // Whole warps read the same words of the launch's arguments.
    for (int i = static_cast<int>(threadIdx.x) / 32; i < order_words(order); i += static_cast<int>(blockDim.x) / 32) {
        const unsigned word = signs.words[i];
        if (lane == 0) bits[i] = word;
    }
    __syncthreads();
    const int tiles = (order + 31) / 32, groups = order / 4;
    for (int i = static_cast<int>(threadIdx.x); i < order_tiles(order) * 32; i += static_cast<int>(blockDim.x)) {
        const int tile = i / 32, g = i % 32 / 4, t = i % 4;
        unsigned a[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int row = tile / tiles * 16 + g + r % 2 * 8, four = (tile % tiles * 32 + r / 2 * 16) / 4 + t;
            const int at = row * groups + four;  // fours of bits
            const unsigned minus = row < order && four < groups ? bits[at / 8] >> at % 8 * 4 & 15u : 0u;
            // Bits to bytes of 0 and 1, and those to 1 and -1.
            a[r] = 0x01010101u ^ ((minus * 0x00204081u & 0x01010101u) * 0xfeu);
        }
        table[i] = make_uint4(a[0], a[1], a[2], a[3]);
    }
    __syncthreads();
    return table;
}

}  // namespace
}  // namespace fastffn::cuda
