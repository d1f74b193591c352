// Products of int8 codes with a scale per 256 columns on both sides: the inner factor of low-rank pairs.
//
//   codes    a warp per token and 256 columns: 8 of them a lane, as one 8-byte store
//   product  few_tokens.cuh's plan: 16 rows × 16 tokens a block, whose warps share the 256-column blocks; each block's exact integer
//            sum is folded into an f32 one. u is small (rank · d_model bytes) and stays in L2 while blocks of further tokens read it.
#pragma once

#include "kernels/elements.cuh"
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

__global__ void __launch_bounds__(blocked_warps * 32) blocked_int8_kernel(BlockedInt8Args args) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int g = lane / 4, t = lane % 4;
    const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x) * blocked_rows;
    __shared__ float sums[blocked_warps][blocked_tokens][blocked_rows + 1];
    for (std::int64_t token0 = static_cast<std::int64_t>(blockIdx.y) * blocked_tokens; token0 < args.tokens;
         token0 += static_cast<std::int64_t>(gridDim.y) * blocked_tokens) {
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
                    const std::int64_t row = row0 + g + 8 * half, token = token0 + g + 8 * half;
                    w[half] = inside && row < args.rank
                                  ? __ldg(reinterpret_cast<const uint4*>(args.u + row * args.row_bytes + k))
                                  : make_uint4(0, 0, 0, 0);
                    v[half] = inside && token < args.tokens
                                  ? __ldg(reinterpret_cast<const uint4*>(args.codes + token * args.row_bytes + k))
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
                    const std::int64_t row = row0 + g + i / 2 * 8, token = token0 + 8 * n + 2 * t + i % 2;
                    if (row < args.rank && token < args.tokens)
                        folded[n][i] =
                            fmaf(static_cast<float>(acc[n][i]),
                                 args.scales[token * args.blocks + block] * args.u_scales[block * args.rank + row],
                                 folded[n][i]);
                }
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[warp][8 * n + 2 * t + i % 2][g + i / 2 * 8] = folded[n][i];
        __syncthreads();
        const int token_in_tile = static_cast<int>(threadIdx.x) / blocked_rows;
        const std::int64_t token = token0 + token_in_tile, row = row0 + threadIdx.x % blocked_rows;
        if (token < args.tokens && row < args.rank) {
            float total = 0;
#pragma unroll
            for (int w = 0; w < blocked_warps; w++) total += sums[w][token_in_tile][threadIdx.x % blocked_rows];
            args.p[token * args.p_stride + row] = total;
        }
        __syncthreads();  // before the next tokens' sums
    }
}

}  // namespace
}  // namespace fastffn::cuda
