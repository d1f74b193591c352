// y = x · wᵀ of groups on Hopper: each tile's tokens with their matrix of a stack. As kernels/sm90_dense.cuh, but for where rows of x
// come from: bulk copies cannot gather, so the four warps of warpgroup 0 copy them with cp.async, 16 bytes a thread.
//
//   full[stage]   the bytes of the weights, and four warps whose part of x has come; a warp says so two stages later, when that
//                 costs no waiting, and behind a proxy fence, since wgmma reads what cp.async wrote
#pragma once

#include "kernels/sm90_dense.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/proxy.cuh"

namespace fastffn::cuda {
namespace {

template <class T>
struct Sm90Rows {
    static constexpr int producer_warps = 4, rows_of_pass = 16, passes = T::tokens / rows_of_pass, lag = 2;
    // Consumers free a stage one step late: the producers may not wait for them with more stages than that still silent.
    static_assert(lag + 2 <= T::stages, "no deadlock");
};

template <class P, int tile_rows, bool is_gated>
__global__ void __launch_bounds__(Sm90Dense<tile_rows>::threads, 1)
    sm90_groups_kernel(const __grid_constant__ ptx::TensorMap w_map, const __grid_constant__ ptx::TensorMap gate_map,
                       DenseArgs args, GroupedTokens tokens, int row_tiles) {
    using T = Sm90Dense<tile_rows>;
    using R = Sm90Rows<T>;
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const full = reinterpret_cast<ptx::Mbarrier*>(shared + T::barriers_offset);
    ptx::Mbarrier* const empty = full + T::stages;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int stage = 0; stage < T::stages; stage++) {
            ptx::mbarrier_init(full + stage, 1 + R::producer_warps);
            ptx::mbarrier_init(empty + stage, T::consumer_warps);
        }
        ptx::mbarrier_fence_init();
    }
    __syncthreads();
    const int token_tiles = static_cast<int>(tokens.tiles(T::tokens)), tiles = token_tiles * row_tiles;
    const int step_of_tiles = static_cast<int>(gridDim.x);
    const int steps = static_cast<int>((args.row_bytes + T::stage_depth - 1) / T::stage_depth);
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    Sm90Ring<T::stages> ring;

    // 128 threads with 40 registers and 256 with 232 are what 384 with 168 are.
    if (warpgroup == 0) {
        ptx::registers_decrease<40>();
        Sm90Ring<T::stages> landed;
        int silent = 0;  // stages whose copies are under way
        const int copy_row = static_cast<int>(threadIdx.x) / 8, chunk = static_cast<int>(threadIdx.x) % 8;
        // Rows of a thread are 16 apart: all have their chunk in the same place.
        const int place = copy_row * T::stage_depth + (chunk ^ (copy_row % 8)) * 16;
        for (int index = static_cast<int>(blockIdx.x); index < tiles; index += step_of_tiles) {
            const Sm90Tile tile = sm90_tile<T>(index, token_tiles, row_tiles);
            TokenTile token_tile = {};
            tokens.tile(tile.tokens, T::tokens, &token_tile);
            int rows[R::passes];
#pragma unroll
            for (int i = 0; i < R::passes; i++) {
                const int row = copy_row + i * R::rows_of_pass;
                rows[i] = tokens.has(token_tile, row) ? static_cast<int>(tokens.x_row(token_tile, row)) : -1;
            }
            const int row0 = tile.rows * T::outputs(is_gated), matrix = static_cast<int>(token_tile.matrix);
            for (int step = 0; step < steps; step++) {
                unsigned char* const x_tile = shared + ring.stage * T::stage_bytes;
                ptx::mbarrier_wait(empty + ring.stage, ring.parity ^ 1);
                if (threadIdx.x == 0) {
                    ptx::mbarrier_arrive_expect(full + ring.stage, T::stage_bytes - T::x_bytes);
                    sm90_copy_weights<T, is_gated>(x_tile + T::x_bytes, w_map, gate_map, full + ring.stage,
                                                   step * T::stage_depth, row0, matrix);
                }
                const std::int64_t k = static_cast<std::int64_t>(step) * T::stage_depth + chunk * 16;
                const bool inside = k < args.row_bytes;
#pragma unroll
                for (int i = 0; i < R::passes; i++) {
                    const bool exists = inside && rows[i] >= 0;
                    ptx::cp_async_16(
                        x_tile + place + i * R::rows_of_pass * T::stage_depth,
                        static_cast<const unsigned char*>(args.x) + (exists ? rows[i] * args.x_stride + k : 0),
                        exists ? 16 : 0);
                }
                ptx::cp_async_commit();
                ring.next();
                if (silent < R::lag) {
                    silent++;
                    continue;
                }
                ptx::cp_async_wait<R::lag>();
                ptx::fence_proxy_async();
                __syncwarp();
                if (lane == 0) ptx::mbarrier_arrive(full + landed.stage);
                landed.next();
            }
        }
        ptx::cp_async_wait<0>();
        ptx::fence_proxy_async();
        __syncwarp();
        for (; silent > 0; silent--) {
            if (lane == 0) ptx::mbarrier_arrive(full + landed.stage);
            landed.next();
        }
    } else {
        ptx::registers_increase<232>();
        const int warp = static_cast<int>(threadIdx.x) / 32 - 4;
        auto* const rows = reinterpret_cast<float*>(shared + T::output_offset + warp * T::output_bytes);
        for (int index = static_cast<int>(blockIdx.x); index < tiles; index += step_of_tiles) {
            typename P::Sum acc[tile_rows / 2] = {};
            sm90_multiply<P, T>(acc, shared, full, empty, ring, steps, warpgroup - 1, lane);
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
