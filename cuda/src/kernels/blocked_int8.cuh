// Products of int8 codes with a scale per 256 columns on both sides: the inner factor of low-rank pairs.
//
//   codes    a warp per token and 256 columns: 8 of them a lane, as one 8-byte store
//   product  few_tokens.cuh's plan: 16 rows × 16 tokens a block, whose warps share the 256-column blocks; each block's exact integer
//            sum is folded into an f32 one. u is small (rank · d_model bytes) and stays in L2 while blocks of further tokens read it.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/tokens.cuh"
#include "launch/lowrank.hpp"
#include "ptx/mma.cuh"

namespace fastffn::cuda {
namespace {

constexpr int blocked_columns = 256, blocked_warps = 8, blocked_rows = 16, blocked_tokens = 16;

__global__ void __launch_bounds__(blocked_warps * 32) blocked_codes_kernel(BlockedInt8Args args) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * blocked_warps;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blocked_warps + threadIdx.x / 32;
         i < args.tokens * args.blocks; i += warps) {
        const std::int64_t token = i / args.blocks, block = i % args.blocks;
        const std::int64_t first = block * blocked_columns + lane * 8;
        float values[8], largest = 0;
        int finite = 1;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            values[k] =
                first + k < args.depth ? load_element(args.x, args.dtype, token * args.x_stride + first + k) : 0.0f;
            const float magnitude = fabsf(values[k]);
            finite = finite && magnitude < __int_as_float(0x7f800000);
            largest = magnitude > largest ? magnitude : largest;
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, largest, distance);
            largest = other > largest ? other : largest;
        }
        finite = __all_sync(0xffffffffu, finite);
        // As on the CPU: 127 / largest would overflow below this.
        const bool is_zero = largest < 1e-35f;
        const float inverse = finite && !is_zero ? 127.0f / largest : 0.0f;
        unsigned packed[2] = {};
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const int q = finite ? __float2int_rn(fminf(fmaxf(values[k] * inverse, -127.0f), 127.0f)) : 0;
            packed[k / 4] |= (static_cast<unsigned>(q) & 255u) << 8 * (k % 4);
        }
        // Rows end at a multiple of 16.
        if (first < args.row_bytes)
            *reinterpret_cast<uint2*>(args.codes + token * args.row_bytes + first) = make_uint2(packed[0], packed[1]);
        if (lane == 0)
            args.scales[token * args.blocks + block] = !finite   ? __int_as_float(0x7fffffff)
                                                       : is_zero ? 0.0f
                                                                 : largest / 127.0f;
    }
}

// One block of rows; the tiles of tokens that its place in the grid has, 16 tokens at a time.
template <class Tokens>
__global__ void __launch_bounds__(blocked_warps * 32, 1)
    blocked_int8_kernel(BlockedInt8Args args, Tokens tokens, int tile_tokens) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int g = lane / 4, t = lane % 4;
    const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x) * blocked_rows;
    __shared__ float sums[blocked_warps][blocked_tokens][blocked_rows + 1];
    TokenTile tile = {};
    for (std::int64_t index = blockIdx.y; tokens.tile(index, tile_tokens, &tile); index += gridDim.y) {
        const auto* const u = reinterpret_cast<const signed char*>(of_matrix(args.u, tile, args.matrix_bytes));
        const auto* const u_scales = reinterpret_cast<const float*>(of_matrix(args.u_scales, tile, args.matrix_bytes));
        for (int token0 = 0; token0 < tile.count; token0 += blocked_tokens) {
            // Row of x of token g + 8 · half of the 16 (its codes), and of 8n + 2t + c (its scales); none: -1.
            const auto x_row = [&](int i) {
                return token0 + i < tile.count ? tokens.x_row(tile, token0 + i) : std::int64_t{-1};
            };
            const std::int64_t code_rows[2] = {x_row(g), x_row(g + 8)};
            const std::int64_t scale_rows[4] = {x_row(2 * t), x_row(2 * t + 1), x_row(8 + 2 * t), x_row(9 + 2 * t)};
            float folded[2][4] = {};
            for (std::int64_t block = warp; block < args.blocks; block += blocked_warps) {
                int acc[2][4] = {};
#pragma unroll
                for (int step = 0; step < blocked_columns / 64; step++) {
                    const std::int64_t k = block * blocked_columns + step * 64 + 16 * t;
                    const bool inside = k < args.row_bytes;
                    uint4 w[2], v[2];
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const std::int64_t row = row0 + g + 8 * half;
                        w[half] = inside && row < args.rank
                                      ? __ldg(reinterpret_cast<const uint4*>(u + row * args.row_bytes + k))
                                      : make_uint4(0, 0, 0, 0);
                        v[half] = inside && code_rows[half] >= 0
                                      ? __ldg(reinterpret_cast<const uint4*>(args.codes +
                                                                             code_rows[half] * args.row_bytes + k))
                                      : make_uint4(0, 0, 0, 0);
                    }
                    const unsigned a_first[4] = {w[0].x, w[1].x, w[0].y, w[1].y};
                    const unsigned a_second[4] = {w[0].z, w[1].z, w[0].w, w[1].w};
#pragma unroll
                    for (int n = 0; n < 2; n++) {
                        const unsigned b_first[2] = {v[n].x, v[n].y}, b_second[2] = {v[n].z, v[n].w};
                        ptx::mma_m16n8k32_s8(acc[n], a_first, b_first);
                        ptx::mma_m16n8k32_s8(acc[n], a_second, b_second);
                    }
                }
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const std::int64_t row = row0 + g + i / 2 * 8, scale_row = scale_rows[2 * n + i % 2];
                        if (row < args.rank && scale_row >= 0)
                            folded[n][i] =
                                fmaf(static_cast<float>(acc[n][i]),
                                     args.scales[scale_row * args.blocks + block] * u_scales[block * args.rank + row],
                                     folded[n][i]);
                    }
            }
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[warp][8 * n + 2 * t + i % 2][g + i / 2 * 8] = folded[n][i];
            __syncthreads();
            const int token = static_cast<int>(threadIdx.x) / blocked_rows;
            const std::int64_t row = row0 + threadIdx.x % blocked_rows;
            if (token0 + token < tile.count && row < args.rank) {
                float total = 0;
#pragma unroll
                for (int w = 0; w < blocked_warps; w++) total += sums[w][token][threadIdx.x % blocked_rows];
                args.p[(tile.first + token0 + token) * args.p_stride + row] = total;
            }
            __syncthreads();  // before the next tokens' sums
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
