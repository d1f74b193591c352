// sparse24 with rows of f32: weights of f32, or of f16 where x has more bits than f16 holds. Plain multiply-adds, as no tensor
// core keeps 24 bits: two per group of four columns where dense weights take four.
//
//   block       8 tokens × 16 output features (of each matrix); its warps share the depth, a piece of 32 columns at a time
//   warp step   lane 4g + t: groups t and t + 4 of rows g and g + 8, as the piece has them; columns 4t … of both halves of x
//
// x is picked, not masked: what is not kept must reach no sum, NaN included. A pick is three selects, their conditions the same for
// all tokens.
#pragma once

#include "kernels/sparse24.cuh"
#include "ptx/memory.cuh"

namespace fastffn::cuda {
namespace {

constexpr int sparse24_f32_warps = 4, sparse24_f32_tokens = 8;

__device__ __forceinline__ float picked(const float4& x, unsigned position) {
    const float low = position & 1 ? x.y : x.x, high = position & 1 ? x.w : x.z;
    return position & 2 ? high : low;
}

// The kept weights of a lane: [row g or g + 8][group t or t + 4][first, second].
template <DType weights>
__device__ __forceinline__ void load_kept(const unsigned char* piece, int lane, float (&w)[2][2][2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if constexpr (weights == DType::f32) {
            const float4 v = __ldg(reinterpret_cast<const float4*>(piece + half * 512) + lane);
            w[0][half][0] = v.x, w[0][half][1] = v.y, w[1][half][0] = v.z, w[1][half][1] = v.w;
        } else {
            const uint2 v = __ldg(reinterpret_cast<const uint2*>(piece) + 2 * lane + half);
            const auto f = [](unsigned word) {
                return __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
            };
            w[0][half][0] = f(v.x & 0xffff), w[0][half][1] = f(v.x >> 16);
            w[1][half][0] = f(v.y & 0xffff), w[1][half][1] = f(v.y >> 16);
        }
    }
}

template <DType weights, bool is_gated>
__global__ void __launch_bounds__(sparse24_f32_warps * 32)
    sparse24_f32_rows_kernel(Sparse24Args args, Sparse24Tokens tokens, int blocks_of_tokens) {
    constexpr int tiles = is_gated ? 2 : 1, warps = sparse24_f32_warps, columns = sparse24_f32_tokens;
    using Piece = Sparse24Piece<weights == DType::f32 ? sparse24_f32 : sparse24_f16>;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int g = lane / 4, t = lane % 4;
    const std::int64_t row_block = blockIdx.x / static_cast<unsigned>(blocks_of_tokens);
    // Tiles of groups may have more tokens than a block takes at once.
    const int tile_tokens = tokens.is_grouped ? tokens.groups.tile_tokens : columns;
    TokenTile tile;
    if (!tokens.tile(blockIdx.x % static_cast<unsigned>(blocks_of_tokens), tile_tokens, &tile)) return;
    const unsigned char* matrices[tiles];
#pragma unroll
    for (int m = 0; m < tiles; m++) matrices[m] = sparse24_tile(m ? args.w_gate : args.w, args, tile, row_block);
    __shared__ float sums[warps][tiles][columns][sparse24_rows + 1];

    for (int token0 = 0; token0 < tile.count; token0 += columns) {
        float acc[tiles][2][columns] = {};
        for (std::int64_t piece = warp; piece < args.pieces; piece += warps) {
            float w[tiles][2][2][2];
            uint2 words[tiles];
#pragma unroll
            for (int m = 0; m < tiles; m++) {
                const unsigned char* const at = matrices[m] + piece * Piece::bytes;
                load_kept<weights>(at, lane, w[m]);
                words[m] = __ldg(reinterpret_cast<const uint2*>(at + Piece::positions_offset) + g);
            }
            const std::int64_t column = piece * 32 + 4 * t;
#pragma unroll
            for (int n = 0; n < columns; n++) {
                if (token0 + n >= tile.count) continue;
                const auto* const row = reinterpret_cast<const float4*>(static_cast<const unsigned char*>(args.x) +
                                                                        tokens.x_row(tile, token0 + n) * args.x_stride);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const std::int64_t k = column + 16 * half;
                    const float4 x = k * 4 < args.row_bytes ? __ldg(row + k / 4) : make_float4(0, 0, 0, 0);
#pragma unroll
                    for (int m = 0; m < tiles; m++)
#pragma unroll
                        for (int upper = 0; upper < 2; upper++) {
                            const unsigned kept = (half ? words[m].y : words[m].x) >> (16 * upper + 4 * t);
                            float& sum = acc[m][upper][n];
                            sum = fmaf(picked(x, kept), w[m][upper][half][0], sum);
                            sum = fmaf(picked(x, kept >> 2), w[m][upper][half][1], sum);
                        }
                }
            }
        }
#pragma unroll
        for (int m = 0; m < tiles; m++)
#pragma unroll
            for (int upper = 0; upper < 2; upper++)
#pragma unroll
                for (int n = 0; n < columns; n++) {
                    float sum = acc[m][upper][n];
                    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                    if (t == 0) sums[warp][m][n][g + 8 * upper] = sum;
                }
        __syncthreads();
        {
            const int token = static_cast<int>(threadIdx.x) / sparse24_rows,
                      in_tile = static_cast<int>(threadIdx.x) % sparse24_rows;
            const std::int64_t row = row_block * sparse24_rows + in_tile;
            if (token0 + token < tile.count && row < args.out_features) {
                float total[2] = {};
#pragma unroll
                for (int m = 0; m < tiles; m++)
#pragma unroll
                    for (int i = 0; i < warps; i++) total[m] += sums[i][m][token][in_tile];
                const float y = sparse24_finished<is_gated>(args, tile, 0, row, total[0], total[1]);
                store_element(args.y, args.y_dtype, (tile.first + token0 + token) * args.y_stride + row, y);
            }
        }
        __syncthreads();  // before the next tokens' sums
    }
}

}  // namespace
}  // namespace fastffn::cuda
