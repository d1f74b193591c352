// Weights of 4 bits in groups of 64 columns or more for many tokens on Hopper, x of 8 bits: as kernels/sm90_codes.cuh, with sums that end at every group.
// sm_90a only.
//
//   block       128 tokens × 128 weight rows; gated: 64 of gate and the same 64 of up
//   producer    a thread has one weight row: a chunk of 128 columns is a stage. It writes code - zero as s8, so that sums need no zero
//               points, and the scales of its row's groups
//   depth       x interleaves 64 columns (kernels/rows.cuh), and so do the tiles: a wgmma of 32 has some of both halves
//   consumers   s32 sums of a group in 64 registers, f32 sums in 64 more: while one warpgroup folds, the other one's wgmma runs
//
// Estimates, nothing here was timed yet: a stage is 490 cycles of tensor cores, folding it once 250 instructions of each warp.
#pragma once

#include "kernels/codes.cuh"
#include "kernels/sm90_dense.cuh"
#include "ptx/dependent.cuh"
#include "ptx/proxy.cuh"

namespace fastffn::cuda {
namespace {

struct Sm90Int4 {
    static constexpr int tokens = 128, rows = 128, stage_depth = 128, stages = 5, threads = 384, consumer_warps = 8;
    static constexpr int x_bytes = tokens * stage_depth, stage_bytes = x_bytes + rows * stage_depth;
    static constexpr int output_offset = stages * stage_bytes, output_bytes = 16 * 64 * 4;  // of a warp
    // f16 [2, rows] a stage: of every 64 columns.
    static constexpr int scales_offset = output_offset + consumer_warps * output_bytes, scales_bytes = 2 * rows * 2;
    static constexpr int barriers_offset = scales_offset + stages * scales_bytes;
    static constexpr int shared_bytes = barriers_offset + 2 * stages * 8;
    static_assert(shared_bytes <= 227 * 1024, "what a block may have");
    static constexpr int band = 16;
    static __host__ __device__ constexpr int outputs(bool is_gated) { return is_gated ? rows / 2 : rows; }
};

// What a producer's thread needs of its row for one stage.
struct Int4Row {
    uint4 codes[4];
    unsigned short scales[2];  // bits of f16, of the groups of every 64 columns
    unsigned char zeros[2];
};

// Four codes in the lower halves of the word's bytes, minus the zero that all bytes of `zero` hold; bit 7 keeps the borrow in its byte.
__device__ __forceinline__ unsigned int4_bytes(unsigned word, unsigned zero) {
    constexpr unsigned mask = 0x0F0F0F0Fu, high = 0x80808080u;
    constexpr int and_or = (0xF0 & 0xCC) | 0xAA;
    return (ptx::lop3<and_or>(word, mask, high) - zero) ^ high;
}

// What a group adds, to the f32 sums: columns 8j + 2t + c of the tile.
__device__ __forceinline__ void fold_group(int (&acc)[64], float (&totals)[64], const __half* scales, int t) {
#pragma unroll
    for (int j = 0; j < 16; j++) {
        const unsigned pair = *reinterpret_cast<const unsigned*>(scales + 8 * j + 2 * t);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float scale = half_of(i % 2 ? pair >> 16 : pair & 0xffff);
            totals[4 * j + i] = fmaf(__int_as_float(acc[4 * j + i]) - float_origin, scale, totals[4 * j + i]);
            acc[4 * j + i] = integer_origin;
        }
    }
}

template <bool is_gated>
__global__ void __launch_bounds__(Sm90Int4::threads, 1)
    sm90_int4_kernel(const __grid_constant__ ptx::TensorMap x_map, CodesArgs args, DenseArgs output, AllTokens tokens,
                     int row_tiles) {
    using T = Sm90Int4;
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const full = reinterpret_cast<ptx::Mbarrier*>(shared + T::barriers_offset);
    ptx::Mbarrier* const empty = full + T::stages;
    constexpr int producer_warps = 4;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int stage = 0; stage < T::stages; stage++) {
            ptx::mbarrier_init(full + stage, 1 + producer_warps);
            ptx::mbarrier_init(empty + stage, T::consumer_warps);
        }
        ptx::mbarrier_fence_init();
    }
    __syncthreads();
    ptx::wait_for_launch();
    const int token_tiles = static_cast<int>(tokens.tiles(T::tokens)), tiles = token_tiles * row_tiles;
    const int step_of_tiles = static_cast<int>(gridDim.x), steps = static_cast<int>(args.padded_depth / T::stage_depth);
    const int shift = 31 - __clz(static_cast<int>(args.group));
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Sm90Ring<T::stages> ring;

    // 128 threads with 104 registers and 256 with 200 are what 384 with 168 are.
    if (warpgroup == 0) {
        ptx::registers_decrease<104>();
        const int row = static_cast<int>(threadIdx.x);
        const CodesMatrix& matrix = is_gated && row < 64 ? args.w_gate : args.w;
        const std::int64_t row_bytes = args.padded_depth / 2, table_rows = (args.out_features + 15) / 16 * 16;
        const auto load_row = [&](Int4Row& to, int index, int step) {
            const Sm90Tile tile = sm90_tile<T>(index, token_tiles, row_tiles);
            // Rows behind the last are read as the last; their sums go nowhere.
            const std::int64_t from =
                min(static_cast<std::int64_t>(tile.rows) * T::outputs(is_gated) + (is_gated ? row % 64 : row),
                    args.out_features - 1);
            const auto* const codes =
                static_cast<const unsigned char*>(matrix.codes) + from * row_bytes + step * std::int64_t{64};
#pragma unroll
            for (int t = 0; t < 4; t++) to.codes[t] = __ldg(reinterpret_cast<const uint4*>(codes) + t);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                const std::int64_t group = (static_cast<std::int64_t>(step) * T::stage_depth + 64 * s) >> shift;
                const std::int64_t entry = group * table_rows + from;
                to.scales[s] = 0;
                to.zeros[s] = 8;
                if (group >= args.groups) continue;  // padding: x is zero there
                to.scales[s] = __ldg(static_cast<const unsigned short*>(matrix.scales) + entry);
                if (args.zeros == CodesZeros::points)
                    to.zeros[s] = __ldg(static_cast<const unsigned char*>(matrix.zeros) + entry);
            }
        };
        Int4Row ahead;
        int index = static_cast<int>(blockIdx.x);
        if (index < tiles) load_row(ahead, index, 0);
        for (; index < tiles; index += step_of_tiles) {
            const int token0 = sm90_tile<T>(index, token_tiles, row_tiles).tokens * T::tokens;
            for (int step = 0; step < steps; step++) {
                const Int4Row now = ahead;
                const bool last = step + 1 == steps;
                if (!last || index + step_of_tiles < tiles)
                    load_row(ahead, last ? index + step_of_tiles : index, last ? 0 : step + 1);
                unsigned char* const x_tile = shared + ring.stage * T::stage_bytes;
                ptx::mbarrier_wait(empty + ring.stage, ring.parity ^ 1);
                if (threadIdx.x == 0) {
                    ptx::mbarrier_arrive_expect(full + ring.stage, T::x_bytes);
                    ptx::bulk_copy_box(x_tile, &x_map, step * T::stage_depth, token0, full + ring.stage);
                }
                auto* const scales =
                    reinterpret_cast<unsigned short*>(shared + T::scales_offset + ring.stage * T::scales_bytes);
#pragma unroll
                for (int s = 0; s < 2; s++) scales[s * T::rows + row] = now.scales[s];
#pragma unroll
                for (int t = 0; t < 4; t++)
#pragma unroll
                    for (int block = 0; block < 2; block++) {
                        const unsigned even = block ? now.codes[t].z : now.codes[t].x,
                                       odd = block ? now.codes[t].w : now.codes[t].y;
                        const unsigned zero = now.zeros[block] * 0x01010101u;
                        const int place = (block * 4 + t) ^ row % 8;
                        *reinterpret_cast<uint4*>(x_tile + T::x_bytes + row * T::stage_depth + place * 16) =
                            make_uint4(int4_bytes(even, zero), int4_bytes(even >> 4, zero), int4_bytes(odd, zero),
                                       int4_bytes(odd >> 4, zero));
                    }
                ptx::fence_proxy_async();
                __syncwarp();
                if (lane == 0) ptx::mbarrier_arrive(full + ring.stage);
                ring.next();
            }
        }
    } else {
        ptx::registers_increase<200>();
        const int warp = static_cast<int>(threadIdx.x) / 32 - 4, g = lane / 4, t = lane % 4;
        auto* const rows = reinterpret_cast<float*>(shared + T::output_offset + warp * T::output_bytes);
        const int steps_of_group = static_cast<int>(min(args.group, std::int64_t{T::stage_depth})) / 32;
        for (int index = static_cast<int>(blockIdx.x); index < tiles; index += step_of_tiles) {
            int acc[64];
            float totals[64];
#pragma unroll
            for (int i = 0; i < 64; i++) {
                acc[i] = integer_origin;
                totals[i] = 0;
            }
            for (int step = 0; step < steps; step++) {
                ptx::mbarrier_wait(full + ring.stage, ring.parity);
                const unsigned char* const stage = shared + ring.stage * T::stage_bytes;
                const auto* const scales =
                    reinterpret_cast<const __half*>(shared + T::scales_offset + ring.stage * T::scales_bytes);
                const unsigned long long x = ptx::matrix_descriptor(stage + (warpgroup - 1) * 64 * T::stage_depth),
                                         w = ptx::matrix_descriptor(stage + T::x_bytes);
                // As many steps of 32 bytes as a group has, or all four.
#pragma unroll 1
                for (int k = 0; k < 4; k += steps_of_group) {
                    ptx::wgmma_fence();
#pragma unroll 1
                    for (int i = k; i < k + steps_of_group; i++) ptx::wgmma_m64n128k32_s8(acc, x + 2 * i, w + 2 * i);
                    ptx::wgmma_commit();
                    ptx::wgmma_wait_all(acc);
                    const int of_stage = 32 * (k + steps_of_group);
                    const std::int64_t end = static_cast<std::int64_t>(step) * T::stage_depth + of_stage;
                    if ((end & (args.group - 1)) == 0 || end == args.padded_depth)
                        fold_group(acc, totals, scales + (k + steps_of_group - 1) / 2 * T::rows, t);
                }
                __syncwarp();
                if (lane == 0) ptx::mbarrier_arrive(empty + ring.stage);
                ring.next();
            }
            const Sm90Tile tile = sm90_tile<T>(index, token_tiles, row_tiles);
            TokenTile token_tile = {};
            tokens.tile(tile.tokens, T::tokens, &token_tile);
            float x_scales[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int token = warp * 16 + g + 8 * half;
                x_scales[half] = tokens.has(token_tile, token) ? args.x_scales[tokens.x_row(token_tile, token)] : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < 64; i++) totals[i] *= x_scales[i / 2 % 2];
            sm90_output<is_gated>(output, tokens, token_tile, totals, rows, lane, warp * 16,
                                  static_cast<std::int64_t>(tile.rows) * T::outputs(is_gated));
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
