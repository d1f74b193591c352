// y = x · wᵀ for up to 16 tokens: every weight byte is read once, 16 at a time, straight into the registers of a tensor-core
// step; the products cost nothing beside that. Gated: rows of gate and up side by side, so both sums meet in one thread.
//
//   block       16 output features (of each matrix) × all tokens, or those of one group's tile; its warps share the depth
//   warp step   64 bytes of depth: lane 4g + t loads bytes 16t … 16t+15 of rows g and g+8, and of token g
//
// The order of the depth inside a step is free as long as weights and x agree: words 0 and 1 of a lane's 16 bytes are its
// columns of a first mma, words 2 and 3 of a second. So no shared memory, no shuffles, no ldmatrix. The warps' sums meet in
// shared memory at the end and are added in the order of warps.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/products.cuh"
#include "kernels/tokens.cuh"
#include "launch/dense.hpp"
#include "ptx/dependent.cuh"
#include "ptx/memory.cuh"

namespace fastffn::cuda {
namespace {

constexpr int few_rows = 16;

// Blocks on a multiprocessor: 32 warps where 64 registers are enough, fewer where two matrices or 16 tokens need more; 16 warps have
// enough loads under way. Left to itself ptxas takes 48 registers and spills. Of the architectures that were tried sm_80 and sm_90
// get by with the fewest registers; what follows needs more for the same source.
constexpr int few_tokens_blocks(int warps, int token_tiles, bool is_gated) {
    if (warps == 16) return is_gated ? 1 : 2;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900
    return (is_gated || token_tiles == 2 ? 16 : 24) / warps;
#else
    return (token_tiles == 2 ? 16 : is_gated ? 24 : 32) / warps;
#endif
}

template <class P, int warps, int token_tiles, bool is_gated, class Tokens>
__global__ void __launch_bounds__(warps * 32, few_tokens_blocks(warps, token_tiles, is_gated))
    few_tokens_kernel(DenseArgs args, Tokens all) {
    constexpr int matrices = is_gated ? 2 : 1, tokens = 8 * token_tiles;
    // Loads under way per lane: 8 of weights cover the latency of HBM with 16 warps a multiprocessor (64 KiB of them).
    constexpr int unroll = is_gated ? 2 : 4;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int g = lane / 4, t = lane % 4;
    // Blocks of a tile are neighbours: they read one matrix from its first row on.
    const std::int64_t row_blocks = Tokens::is_grouped ? (args.out_features + few_rows - 1) / few_rows : gridDim.x;
    const std::int64_t tile_index = Tokens::is_grouped ? blockIdx.x / row_blocks : 0;
    const std::int64_t row0 = (Tokens::is_grouped ? blockIdx.x % row_blocks : blockIdx.x) * few_rows;
    if constexpr (Tokens::is_grouped) ptx::wait_for_launch();  // for the tables
    TokenTile tile = {};
    if (!all.tile(tile_index, tokens, &tile)) return;

    const unsigned char* weights[matrices][2];
#pragma unroll
    for (int m = 0; m < matrices; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // Rows behind the last are read as the last; their sums go nowhere.
            const std::int64_t row = min(row0 + g + 8 * half, args.out_features - 1);
            weights[m][half] =
                of_matrix(m ? args.w_gate : args.w, tile, args.matrix_bytes) + row * args.w_stride + 16 * t;
        }
    const unsigned char* x[token_tiles];
#pragma unroll
    for (int n = 0; n < token_tiles; n++)
        x[n] = 8 * n + g < tile.count
                   ? static_cast<const unsigned char*>(args.x) + all.x_row(tile, 8 * n + g) * args.x_stride + 16 * t
                   : nullptr;

    typename P::Sum acc[matrices][token_tiles][4] = {};
    const std::int64_t depth = args.row_bytes - 16 * t;  // bytes from this lane's first on
    if constexpr (!Tokens::is_grouped) {
        // Weights were there before, x perhaps not: the first of them are on their way to L2 while this waits.
        if (args.x_is_fresh)
            for (int u = 0; u < unroll; u++)
#pragma unroll
                for (int i = 0; i < 2 * matrices; i++) {
                    const std::int64_t k = (warp * unroll + u) * 64;
                    if (k < depth) ptx::prefetch_l2(weights[i / 2][i % 2] + k);
                }
        ptx::wait_for_launch();
    }
    for (std::int64_t k = warp * unroll * 64; k < args.row_bytes; k += warps * unroll * 64) {
        uint4 w[unroll][matrices][2], v[unroll][token_tiles];
#pragma unroll
        for (int u = 0; u < unroll; u++) {
            const bool inside = k + u * 64 < depth;
#pragma unroll
            for (int m = 0; m < matrices; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    w[u][m][half] = inside
                                        ? ptx::load_once(reinterpret_cast<const uint4*>(weights[m][half] + k + u * 64))
                                        : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int n = 0; n < token_tiles; n++)
                v[u][n] = inside && x[n] ? *reinterpret_cast<const uint4*>(x[n] + k + u * 64) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int u = 0; u < unroll; u++)
#pragma unroll
            for (int m = 0; m < matrices; m++) {
                const uint4 low = w[u][m][0], high = w[u][m][1];
                const unsigned first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
                for (int n = 0; n < token_tiles; n++) {
                    const unsigned b_first[2] = {v[u][n].x, v[u][n].y}, b_second[2] = {v[u][n].z, v[u][n].w};
                    P::step(acc[m][n], first, b_first);
                    P::step(acc[m][n], second, b_second);
                }
            }
    }

    // [warp][matrix][token][row]; a row more apart, so that the lanes of a group of four meet different banks.
    __shared__ typename P::Sum sums[warps][matrices][tokens][few_rows + 1];
#pragma unroll
    for (int m = 0; m < matrices; m++)
#pragma unroll
        for (int n = 0; n < token_tiles; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[warp][m][8 * n + 2 * t + i % 2][g + i / 2 * 8] = acc[m][n][i];
    __syncthreads();
    all.tile(tile_index, tokens, &tile);  // once more, rather than in registers through the loop
    for (int i = static_cast<int>(threadIdx.x); i < tokens * few_rows; i += warps * 32) {
        const int token = i / few_rows, row_in_block = i % few_rows;
        const std::int64_t row = row0 + row_in_block;
        if (!all.has(tile, token) || row >= args.out_features) continue;
        typename P::Sum total[2] = {};
#pragma unroll
        for (int m = 0; m < matrices; m++)
#pragma unroll
            for (int w = 0; w < warps; w++) total[m] += sums[w][m][token][row_in_block];
        float up = static_cast<float>(total[0]), gate = static_cast<float>(total[1]);
        if (args.x_scales) {
            const float scale = args.x_scales[all.x_row(tile, token)];
            up *= scale * of_matrix(args.w_scales, tile, args.matrix_bytes)[row];
            if (is_gated) gate *= scale * of_matrix(args.w_gate_scales, tile, args.matrix_bytes)[row];
        }
        const std::int64_t bias_row = tile.matrix * args.out_features + row;
        if (args.bias) up += load_element(args.bias, args.bias_dtype, bias_row);
        if (is_gated && args.gate_bias) gate += load_element(args.gate_bias, args.gate_bias_dtype, bias_row);
        const float y = is_gated ? gated(args.activation, gate, up) : activated(args.activation, up);
        store_element(args.y, args.y_dtype, (tile.first + token) * args.y_stride + row, y);
    }
}

}  // namespace
}  // namespace fastffn::cuda
