// y = x · wᵀ for many tokens: tiles of 128 tokens × 128 weight rows on mma.sync, fed by cp.async. sm_80 and later.
//
//   block     128 tokens × 128 weight rows; gated: 64 rows of gate and the same 64 of up, so that act(gate) · up happens in registers
//   stages    4 of 64 bytes of depth: 16 KiB each, three under way while one is multiplied; two blocks per multiprocessor
//   warp      2 × 4 warps, each 64 tokens × 32 rows: 4 × 4 mma tiles, 64 sums a lane
//   shared    rows of 64 bytes; 16-byte chunk c of row r lies at c ^ (r / 2 % 4): the eight rows of an ldmatrix then cover all
//             banks once
#pragma once

#include "kernels/elements.cuh"
#include "kernels/products.cuh"
#include "launch/dense.hpp"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"

namespace fastffn::cuda {
namespace {

struct ManyTokens {
    static constexpr int tokens = 128, rows = 128, stage_depth = 64, stages = 4, threads = 256;
    static constexpr int tile_bytes = tokens * stage_depth, stage_bytes = 2 * tile_bytes;
    static constexpr int shared_bytes = stages * stage_bytes;
    // Blocks that run together should share rows of w and tokens: they go through bands of this many tiles of rows.
    static constexpr int band = 8;
    static __host__ __device__ constexpr int outputs(bool is_gated) { return is_gated ? rows / 2 : rows; }
};

__device__ __forceinline__ int swizzled(int row, int chunk) { return row * 64 + ((chunk ^ (row / 2 % 4)) * 16); }

template <class P, bool is_gated>
__global__ void __launch_bounds__(ManyTokens::threads, 2)
    many_tokens_kernel(DenseArgs args, int token_tiles, int row_tiles) {
    using T = ManyTokens;
    unsigned char* const shared = ptx::dynamic_shared();
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warp_tokens = warp / 4 * 64, warp_rows = warp % 4;

    // Tile of this block.
    const int per_band = T::band * token_tiles, band = static_cast<int>(blockIdx.x) / per_band;
    const int band_rows = min(T::band, row_tiles - band * T::band);
    const int in_band = static_cast<int>(blockIdx.x) - band * per_band;
    const std::int64_t token0 = static_cast<std::int64_t>(in_band / band_rows) * T::tokens;
    const std::int64_t row0 = static_cast<std::int64_t>(band * T::band + in_band % band_rows) * T::outputs(is_gated);

    // Each thread copies 16 bytes of two rows of x and of two weight rows per stage.
    const int copy_row = static_cast<int>(threadIdx.x) / 4, copy_chunk = static_cast<int>(threadIdx.x) % 4;
    const unsigned char* sources[4];
    bool exists[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = copy_row + i % 2 * 64;
        if (i < 2) {
            exists[i] = token0 + row < args.tokens;
            sources[i] = static_cast<const unsigned char*>(args.x) + (exists[i] ? token0 + row : 0) * args.x_stride;
        } else {
            const bool of_gate = is_gated && row < 64;
            const std::int64_t feature = row0 + (is_gated ? row % 64 : row);
            exists[i] = feature < args.out_features;
            sources[i] = static_cast<const unsigned char*>(of_gate ? args.w_gate : args.w) +
                         (exists[i] ? feature : 0) * args.w_stride;
        }
    }
    const int steps = static_cast<int>((args.row_bytes + T::stage_depth - 1) / T::stage_depth);
    const auto copy_stage = [&](int step) {
        const std::int64_t k = static_cast<std::int64_t>(step) * T::stage_depth + copy_chunk * 16;
        const bool inside = k < args.row_bytes;
        unsigned char* const stage = shared + step % T::stages * T::stage_bytes;
#pragma unroll
        for (int i = 0; i < 4; i++)
            ptx::cp_async_16(stage + i / 2 * T::tile_bytes + swizzled(copy_row + i % 2 * 64, copy_chunk),
                             sources[i] + (inside ? k : 0), inside && exists[i] ? 16 : 0);
    };

    typename P::Sum acc[4][4][4] = {};
#pragma unroll
    for (int step = 0; step < T::stages - 1; step++) {
        if (step < steps) copy_stage(step);
        ptx::cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        ptx::cp_async_wait<T::stages - 2>();
        __syncthreads();  // everyone's copies of this stage have come, and everyone has done with the stage that is filled next
        if (step + T::stages - 1 < steps) copy_stage(step + T::stages - 1);
        ptx::cp_async_commit();
        const unsigned char* const x_tile = shared + step % T::stages * T::stage_bytes;
        const unsigned char* const w_tile = x_tile + T::tile_bytes;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned a[4][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                ptx::ldmatrix(a[i], x_tile + swizzled(warp_tokens + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 2; j++) {
                // Two tiles of 8 rows at a time: lanes 0-15 address the first, 16-31 the second.
                const int first = is_gated ? warp_rows * 16 + j * 64 : warp_rows * 32 + j * 16;
                ptx::ldmatrix(b[j], w_tile + swizzled(first + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const unsigned pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    P::step(acc[i][j], a[i], pair);
                }
        }
    }
    ptx::cp_async_wait<0>();

    const int g = lane / 4, t = lane % 4;
    constexpr int outputs_of_warp = is_gated ? 2 : 4;  // tiles of 8
#pragma unroll
    for (int j = 0; j < outputs_of_warp; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const std::int64_t row = row0 + warp_rows * outputs_of_warp * 8 + j * 8 + 2 * t + c;
            if (row >= args.out_features) continue;
            const float bias = args.bias ? load_element(args.bias, args.bias_dtype, row) : 0.0f;
            const float gate_bias =
                is_gated && args.gate_bias ? load_element(args.gate_bias, args.gate_bias_dtype, row) : 0.0f;
            const float w_scale = args.x_scales ? args.w_scales[row] : 1.0f;
            const float w_gate_scale = is_gated && args.x_scales ? args.w_gate_scales[row] : 1.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const std::int64_t token = token0 + warp_tokens + i * 8 + g;
                if (token >= args.tokens) continue;
                // Gated: tiles 0 and 1 of the warp are gate, 2 and 3 up.
                float up = static_cast<float>(acc[i / 2][is_gated ? j + 2 : j][i % 2 * 2 + c]);
                float gate = static_cast<float>(acc[i / 2][j][i % 2 * 2 + c]);
                if (args.x_scales) {
                    const float scale = args.x_scales[token];
                    up *= scale * w_scale;
                    gate *= scale * w_gate_scale;
                }
                up += bias;
                gate += gate_bias;
                const float y = is_gated ? gated(args.activation, gate, up) : activated(args.activation, up);
                store_element(args.y, args.y_dtype, token * args.y_stride + row, y);
            }
        }
}

}  // namespace
}  // namespace fastffn::cuda
