// sparse24 for few tokens: every compressed byte is read once, 16 at a time, as the registers of an mma.sp.
//
//   block       up to 16 tokens × 16 output features; gated, or with more than 8 tokens, two tiles of 16 rows (gate beside up,
//               so that both sums meet; or 32 features), so that x is read half as often; its warps share the depth
//   warp step   pieces of 64 bytes of x: lane 4g + t loads 16 bytes of kept weights, one word of positions, and of token g bytes
//               16t … 16t+15, of which the four lanes of a token then exchange words
//
// Why mma.sp and no dense mma of weights spread out in registers: a piece of 576 bytes takes a multiprocessor some 27 cycles of
// an H200's 4.8 TB/s, in which its schedulers issue about 108 instructions. mma.sp needs one per piece and 8 tokens; spreading
// needs two mma, a register more per pair, and some 6 selects for each of the 4 pairs of a lane, 24 and more. What mma.sp asks
// for instead is x in its own order: 4 shuffles and 12 selects, once for both tiles.
#pragma once

#include "kernels/sparse24.cuh"
#include "ptx/dependent.cuh"
#include "ptx/memory.cuh"

namespace fastffn::cuda {
namespace {

template <int token_tiles, bool is_gated>
struct Sparse24Few {
    static constexpr int columns = 8 * token_tiles, tiles = is_gated || token_tiles == 2 ? 2 : 1;
    static constexpr int rows = is_gated ? 16 : 16 * tiles;  // output features of a block
    static constexpr int most_warps = token_tiles == 2 ? 8 : 16;
    // Pieces of every tile that a warp has under way. With 32 or 24 warps these are 54 KiB and more on a multiprocessor, where an H200
    // needs about 29 (4.8 TB/s · 0.8 µs / 132); one piece more would spill or leave 16 warps.
    static constexpr int unroll = tiles == 1 ? 3 : 2, blocks = token_tiles == 2 ? 3 : 2;
};

// Word t of the 16 bytes of lane 4g + j becomes word j of lane 4g + t.
__device__ __forceinline__ void transpose_quad(unsigned (&v)[4], int t) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
        const bool upper = t & distance;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & distance) continue;
            const unsigned other = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + distance], distance);
            v[i] = upper ? other : v[i];
            v[i + distance] = upper ? v[i + distance] : other;
        }
    }
}

template <class P, int token_tiles, bool is_gated>
__global__ void __launch_bounds__(Sparse24Few<token_tiles, is_gated>::most_warps * 32,
                                  Sparse24Few<token_tiles, is_gated>::blocks)
    sparse24_few_tokens_kernel(Sparse24Args args, Sparse24Tokens tokens, int blocks_of_tokens) {
    using Few = Sparse24Few<token_tiles, is_gated>;
    constexpr int tiles = Few::tiles, rows = Few::rows, columns = Few::columns, unroll = Few::unroll;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32, g = lane / 4, t = lane % 4;
    // Blocks that read the same weights run together.
    const std::int64_t row_block = blockIdx.x / static_cast<unsigned>(blocks_of_tokens);
    if (tokens.is_grouped) ptx::wait_for_launch();  // for the tables
    TokenTile tile;
    if (!tokens.tile(blockIdx.x % static_cast<unsigned>(blocks_of_tokens), columns, &tile)) return;

    // From here on addresses only grow, and what is counted are pieces: few registers but those of loads under way.
    const int pieces = static_cast<int>(args.pieces), step = warps * unroll;
    int first = warp * unroll;
    const unsigned char* weights[tiles];
#pragma unroll
    for (int m = 0; m < tiles; m++)
        weights[m] = sparse24_tile(is_gated && m ? args.w_gate : args.w, args, tile,
                                   is_gated ? row_block : row_block * tiles + m) +
                     static_cast<std::int64_t>(first) * P::bytes;
    const unsigned char* x[token_tiles];
    int x_pieces[token_tiles];  // in which this lane's 16 bytes of the token exist
#pragma unroll
    for (int n = 0; n < token_tiles; n++) {
        const bool exists = 8 * n + g < tile.count;
        x[n] = static_cast<const unsigned char*>(args.x) + static_cast<std::int64_t>(first) * 64 + 16 * t +
               (exists ? tokens.x_row(tile, 8 * n + g) * args.x_stride : 0);
        x_pieces[n] = exists ? static_cast<int>((args.row_bytes - 16 * t + 63) / 64) : 0;
    }

    typename P::Sum acc[tiles][token_tiles][4] = {};
    bool is_waiting = true;
    for (; first < pieces; first += step) {
        uint4 w[unroll][tiles];
        unsigned positions[unroll][tiles];
#pragma unroll
        for (int u = 0; u < unroll; u++) {
            const bool inside = first + u < pieces;
#pragma unroll
            for (int m = 0; m < tiles; m++) {
                const unsigned char* const piece = weights[m] + u * P::bytes;
                w[u][m] =
                    inside ? ptx::load_once(reinterpret_cast<const uint4*>(piece) + lane) : make_uint4(0, 0, 0, 0);
                // Even positions of nothing must be ones that exist.
                positions[u][m] =
                    inside
                        ? ptx::load_once(reinterpret_cast<const unsigned*>(piece + P::positions_offset) + P::word(lane))
                        : 0xEEEEEEEEu;
            }
        }
        if (is_waiting) ptx::wait_for_launch();  // weights were there before, x perhaps not
        is_waiting = false;
        // x comes later, from near: it would take the registers of as many weights.
#pragma unroll
        for (int u = 0; u < unroll; u++)
#pragma unroll
            for (int n = 0; n < token_tiles; n++) {
                const uint4 v =
                    first + u < x_pieces[n] ? *reinterpret_cast<const uint4*>(x[n] + u * 64) : make_uint4(0, 0, 0, 0);
                unsigned b[4] = {v.x, v.y, v.z, v.w};
                transpose_quad(b, t);
#pragma unroll
                for (int m = 0; m < tiles; m++) {
                    const unsigned a[4] = {w[u][m].x, w[u][m].y, w[u][m].z, w[u][m].w};
                    P::step(acc[m][n], a, b, positions[u][m]);
                }
            }
#pragma unroll
        for (int m = 0; m < tiles; m++) weights[m] += step * P::bytes;
#pragma unroll
        for (int n = 0; n < token_tiles; n++) x[n] += step * 64;
    }

    if (is_waiting) ptx::wait_for_launch();

    // [warp][tile][token][row]; a row more apart, so that the lanes of a group of four meet different banks.
    __shared__ typename P::Sum sums[Few::most_warps][tiles][columns][sparse24_rows + 1];
#pragma unroll
    for (int m = 0; m < tiles; m++)
#pragma unroll
        for (int n = 0; n < token_tiles; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[warp][m][8 * n + 2 * t + i % 2][g + i / 2 * 8] = acc[m][n][i];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < columns * rows; i += warps * 32) {
        const int token = i / rows, row_in_block = i % rows;
        const std::int64_t row = row_block * rows + row_in_block;
        if (token >= tile.count || row >= args.out_features) continue;
        typename P::Sum up = 0, gate = 0;
        for (int w = 0; w < warps; w++) {
            up += sums[w][row_in_block / 16][token][row_in_block % 16];
            if (is_gated) gate += sums[w][tiles - 1][token][row_in_block];
        }
        const float y = sparse24_finished<is_gated>(args, tile, tokens.x_row(tile, token), row, static_cast<float>(up),
                                                    static_cast<float>(gate));
        store_element(args.y, args.y_dtype, (tile.first + token) * args.y_stride + row, y);
    }
}

}  // namespace
}  // namespace fastffn::cuda
