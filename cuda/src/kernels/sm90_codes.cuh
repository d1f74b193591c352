// Ternary weights without groups for many tokens on Hopper: as kernels/sm90_dense.cuh, but that the weights come as codes of 2 bits,
// which the four warps of warpgroup 0 write as s8 to where wgmma reads them. sm_90a only.
//
//   producer      a thread has two weight rows. It holds a chunk of 256 columns of each while the next is on its way; of every word come
//                 16 bytes, a 16-byte chunk of a tile's row in the order that x has
//   full[stage]   the bytes of x, and four warps that have written their part, each behind a proxy fence
//
// Estimates, nothing here was timed yet: a stage is 128 × 256 × 128 products, about 1000 cycles of tensor cores. A producer warp has some
// 300 instructions for it, alone on its scheduler but for two warps that mostly wait.
#pragma once

#include "kernels/sm90_dense.cuh"
#include "launch/codes.hpp"
#include "ptx/bits.cuh"
#include "ptx/dependent.cuh"
#include "ptx/memory.cuh"
#include "ptx/proxy.cuh"

namespace fastffn::cuda {
namespace {

using Sm90Codes = Sm90Dense<256>;
constexpr int sm90_codes_producers = 4;

// Four codes of 2 bits, in the lowest bits of the word's bytes, minus 1.
__device__ __forceinline__ unsigned ternary_bytes(unsigned word) {
    constexpr unsigned mask = 0x03030303u, high = 0x80808080u;
    constexpr int and_or = (0xF0 & 0xCC) | 0xAA;
    return (ptx::lop3<and_or>(word, mask, high) - 0x01010101u) ^ high;  // bit 7 keeps the borrow in its byte
}

// The stage's half of a chunk to the tile's row `row`.
__device__ __forceinline__ void store_ternary_row(unsigned char* tile, int row, const uint4 (&chunk)[4], bool second) {
#pragma unroll
    for (int t = 0; t < 4; t++)
#pragma unroll
        for (int block = 0; block < 2; block++) {
            const unsigned word = block ? (second ? chunk[t].w : chunk[t].y) : (second ? chunk[t].z : chunk[t].x);
            const int place = (block * 4 + t) ^ row % 8;
            *reinterpret_cast<uint4*>(tile + row * Sm90Codes::stage_depth + place * 16) = make_uint4(
                ternary_bytes(word), ternary_bytes(word >> 2), ternary_bytes(word >> 4), ternary_bytes(word >> 6));
        }
}

// args.w and w_gate: codes, w_stride bytes from row to row; row_bytes: of x, whole chunks.
template <bool is_gated>
__global__ void __launch_bounds__(Sm90Codes::threads, 1)
    sm90_ternary_kernel(const __grid_constant__ ptx::TensorMap x_map, DenseArgs args, AllTokens tokens, int row_tiles) {
    using T = Sm90Codes;
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const full = reinterpret_cast<ptx::Mbarrier*>(shared + T::barriers_offset);
    ptx::Mbarrier* const empty = full + T::stages;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int stage = 0; stage < T::stages; stage++) {
            ptx::mbarrier_init(full + stage, 1 + sm90_codes_producers);
            ptx::mbarrier_init(empty + stage, T::consumer_warps);
        }
        ptx::mbarrier_fence_init();
    }
    __syncthreads();
    ptx::wait_for_launch();
    const int token_tiles = static_cast<int>(tokens.tiles(T::tokens)), tiles = token_tiles * row_tiles;
    const int step_of_tiles = static_cast<int>(gridDim.x);
    const int steps = static_cast<int>(args.row_bytes / T::stage_depth), chunks = steps / 2;
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Sm90Ring<T::stages> ring;

    // 128 threads with 104 registers and 256 with 200 are what 384 with 168 are.
    if (warpgroup == 0) {
        ptx::registers_decrease<104>();
        const int row = static_cast<int>(threadIdx.x);
        // Row i of this thread is row + 128 i of the tile; gated: 0 of gate, 1 of up. Rows behind the last are read as the last.
        const auto load_chunk = [&](uint4(&to)[2][4], int index, int chunk) {
            const Sm90Tile tile = sm90_tile<T>(index, token_tiles, row_tiles);
            const std::int64_t row0 = static_cast<std::int64_t>(tile.rows) * T::outputs(is_gated);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const std::int64_t from = min(row0 + row + (is_gated ? 0 : 128 * i), args.out_features - 1);
                const auto* const codes = static_cast<const unsigned char*>(is_gated && i == 0 ? args.w_gate : args.w) +
                                          from * args.w_stride + static_cast<std::int64_t>(chunk) * 64;
#pragma unroll
                for (int t = 0; t < 4; t++) to[i][t] = __ldg(reinterpret_cast<const uint4*>(codes) + t);
            }
        };
        uint4 ahead[2][4];
        int index = static_cast<int>(blockIdx.x);
        if (index < tiles) load_chunk(ahead, index, 0);
        for (; index < tiles; index += step_of_tiles) {
            const int token0 = sm90_tile<T>(index, token_tiles, row_tiles).tokens * T::tokens;
            for (int chunk = 0; chunk < chunks; chunk++) {
                uint4 now[2][4];
#pragma unroll
                for (int i = 0; i < 8; i++) now[i / 4][i % 4] = ahead[i / 4][i % 4];
                const bool last = chunk + 1 == chunks;
                if (!last || index + step_of_tiles < tiles)
                    load_chunk(ahead, last ? index + step_of_tiles : index, last ? 0 : chunk + 1);
#pragma unroll 1
                for (int half = 0; half < 2; half++) {
                    unsigned char* const x_tile = shared + ring.stage * T::stage_bytes;
                    ptx::mbarrier_wait(empty + ring.stage, ring.parity ^ 1);
                    if (threadIdx.x == 0) {
                        ptx::mbarrier_arrive_expect(full + ring.stage, T::x_bytes);
                        ptx::bulk_copy_box(x_tile, &x_map, (2 * chunk + half) * T::stage_depth, token0,
                                           full + ring.stage);
                    }
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        store_ternary_row(x_tile + T::x_bytes, row + 128 * i, now[i], half == 1);
                    ptx::fence_proxy_async();
                    __syncwarp();
                    if (lane == 0) ptx::mbarrier_arrive(full + ring.stage);
                    ring.next();
                }
            }
        }
    } else {
        ptx::registers_increase<200>();
        const int warp = static_cast<int>(threadIdx.x) / 32 - 4;
        auto* const rows = reinterpret_cast<float*>(shared + T::output_offset + warp * T::output_bytes);
        for (int index = static_cast<int>(blockIdx.x); index < tiles; index += step_of_tiles) {
            int acc[T::rows / 2] = {};
            sm90_multiply<Int8Wgmma, T>(acc, shared, full, empty, ring, steps, warpgroup - 1, lane);
            const Sm90Tile tile = sm90_tile<T>(index, token_tiles, row_tiles);
            TokenTile token_tile = {};
            tokens.tile(tile.tokens, T::tokens, &token_tile);
            sm90_output<is_gated>(args, tokens, token_tile, acc, rows, lane, warp * 16,
                                  tile.rows * T::outputs(is_gated));
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
