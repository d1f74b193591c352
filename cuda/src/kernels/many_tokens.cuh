// y = x · wᵀ for many tokens: tiles of tokens × weight rows on mma.sync, fed by cp.async. sm_80 and later.
//
//   block     LargeTile: 128 tokens × 128 weight rows; gated: 64 rows of gate and the same 64 of up, so that act(gate) · up happens in
//             registers. SmallTile: 64 × 64, where large ones would leave multiprocessors idle
//   stages    4 of 64 bytes of depth: 16 KiB each, three under way while one is multiplied; two blocks per multiprocessor. Small ones
//             are alone on theirs: 8 of 8 KiB keep 28 KiB of weights under way (HBM3's latency times an H200's 4.8 TB/s is 26)
//   warp      64 tokens × 32 rows: 4 × 4 mma tiles, 64 sums a lane; or 32 × 32
//   shared    rows of 64 bytes; 16-byte chunk c of row r lies at c ^ (r / 2 % 4): the eight rows of an ldmatrix then cover all
//             banks once
#pragma once

#include "kernels/elements.cuh"
#include "kernels/products.cuh"
#include "kernels/tokens.cuh"
#include "launch/dense.hpp"
#include "ptx/bits.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"

namespace fastffn::cuda {
namespace {

template <int tokens_, int rows_, int stages_, int blocks_>
struct Tile {
    static constexpr int tokens = tokens_, rows = rows_, stage_depth = 64, stages = stages_;
    static constexpr int blocks = blocks_;  // of a multiprocessor, for the compiler
    static constexpr int row_warps = rows / 32, warp_tokens = tokens / 2, threads = 64 * row_warps;
    // A thread copies two rows of x and two of w, this far apart.
    static constexpr int copy_rows = threads / 4;
    static_assert(tokens == rows && rows == 2 * copy_rows, "what threads copy");
    static constexpr int tile_bytes = tokens * stage_depth, stage_bytes = 2 * tile_bytes;
    static constexpr int shared_bytes = stages * stage_bytes;
    static_assert(shared_bytes >= tokens * rows * 4, "the sums of a tile");
    // Blocks that run together should share rows of w and tokens: they go through bands of this many tiles of rows.
    static constexpr int band = 8;
    static __host__ __device__ constexpr int outputs(bool is_gated) { return is_gated ? rows / 2 : rows; }
};
using LargeTile = Tile<128, 128, 4, 2>;
using SmallTile = Tile<64, 64, 8, 1>;

__device__ __forceinline__ int swizzled(int row, int chunk) { return row * 64 + ((chunk ^ (row / 2 % 4)) * 16); }

// Where the sum of a token and a column of the tile is.
template <class T>
__device__ __forceinline__ int sum_place(int token, int column) {
    return token * T::rows + (column ^ token % 4 * 8);
}

// The tile of tokens and the first row of a block's work.
template <class T, bool is_gated, class Tokens>
__device__ __forceinline__ TokenTile many_tokens_place(const Tokens& tokens, int row_tiles, int index,
                                                       std::int64_t* row0) {
    const int per_band = T::band * static_cast<int>(tokens.tiles(T::tokens)), band = index / per_band;
    const int band_rows = min(T::band, row_tiles - band * T::band);
    const int in_band = index - band * per_band;
    *row0 = static_cast<std::int64_t>(band * T::band + in_band % band_rows) * T::outputs(is_gated);
    TokenTile tile = {};
    tokens.tile(in_band / band_rows, T::tokens, &tile);
    return tile;
}

// One tile of tokens by one of rows. Groups: the tile's rows of x are gathered as they are copied.
template <class P, class T, bool is_gated, class Tokens>
__device__ __forceinline__ void many_tokens_tile(const DenseArgs& args, const Tokens& tokens, int row_tiles,
                                                 int index) {
    constexpr int half_rows = T::rows / 2, token_tiles = T::warp_tokens / 16;
    unsigned char* const shared = ptx::dynamic_shared();
    const int thread = ptx::unknown(static_cast<int>(threadIdx.x)), lane = thread % 32, warp = thread / 32;
    const int warp_tokens = warp / T::row_warps * T::warp_tokens, warp_rows = warp % T::row_warps;
    std::int64_t row0;
    TokenTile tile = many_tokens_place<T, is_gated>(tokens, row_tiles, index, &row0);

    // Each thread copies 16 bytes of two rows of x and of two weight rows per stage.
    const int copy_row = thread / 4, copy_chunk = thread % 4;
    const unsigned char* sources[4];
    bool exists[2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = copy_row + i % 2 * T::copy_rows;
        if (i < 2) {
            exists[i] = tokens.has(tile, row);
            sources[i] =
                static_cast<const unsigned char*>(args.x) + (exists[i] ? tokens.x_row(tile, row) : 0) * args.x_stride;
        } else {
            const bool of_gate = is_gated && row < half_rows;
            const std::int64_t feature = row0 + (is_gated ? row % half_rows : row);
            // Rows behind the last are read as the last; their sums go nowhere.
            sources[i] = of_matrix(of_gate ? args.w_gate : args.w, tile, args.matrix_bytes) +
                         min(feature, args.out_features - 1) * args.w_stride;
        }
    }
    const int steps = static_cast<int>((args.row_bytes + T::stage_depth - 1) / T::stage_depth);
    const auto copy_stage = [&](int step) {
        const std::int64_t k = static_cast<std::int64_t>(step) * T::stage_depth + copy_chunk * 16;
        const bool inside = k < args.row_bytes;
        unsigned char* const stage = shared + step % T::stages * T::stage_bytes;
#pragma unroll
        for (int i = 0; i < 4; i++)
            ptx::cp_async_16(stage + i / 2 * T::tile_bytes + swizzled(copy_row + i % 2 * T::copy_rows, copy_chunk),
                             sources[i] + (inside ? k : 0), inside && (i > 1 || exists[i % 2]) ? 16 : 0);
    };

    typename P::Sum acc[token_tiles][4][4] = {};
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
            unsigned a[token_tiles][4], b[2][4];
#pragma unroll
            for (int i = 0; i < token_tiles; i++)
                ptx::ldmatrix(a[i], x_tile + swizzled(warp_tokens + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 2; j++) {
                // Two tiles of 8 rows at a time: lanes 0-15 address the first, 16-31 the second.
                const int first = is_gated ? warp_rows * 16 + j * half_rows : warp_rows * 32 + j * 16;
                ptx::ldmatrix(b[j], w_tile + swizzled(first + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < token_tiles; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const unsigned pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    P::step(acc[i][j], a[i], pair);
                }
        }
    }
    // The sums meet in shared memory, in place of the stages: from there a thread has one output feature of many tokens, and
    // neighbours write neighbouring features. Pairs of columns lie at an exclusive or with the token: no bank twice.
    ptx::cp_async_wait<0>();
    __syncthreads();
    auto* const sums = reinterpret_cast<typename P::Sum*>(shared);
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2 * token_tiles; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            // Gated: tiles 0 and 1 of the warp are gate, 2 and 3 up.
            const int first = is_gated ? warp_rows * 16 + j % 2 * 8 + j / 2 * half_rows : warp_rows * 32 + j * 8;
            typename P::Sum* const pair = sums + sum_place<T>(warp_tokens + i * 8 + g, first + 2 * t);
            pair[0] = acc[i / 2][j][i % 2 * 2];
            pair[1] = acc[i / 2][j][i % 2 * 2 + 1];
        }
    __syncthreads();
    // Found once more, rather than kept in registers through the loop.
    if constexpr (Tokens::is_grouped) tile = many_tokens_place<T, is_gated>(tokens, row_tiles, index, &row0);
    constexpr int outputs = T::outputs(is_gated);
    const int column = thread % outputs;
    const std::int64_t row = row0 + column, bias_row = tile.matrix * args.out_features + row;
    if (row >= args.out_features) return;
    const float bias = args.bias ? load_element(args.bias, args.bias_dtype, bias_row) : 0.0f;
    const float gate_bias =
        is_gated && args.gate_bias ? load_element(args.gate_bias, args.gate_bias_dtype, bias_row) : 0.0f;
    const float w_scale = P::is_scaled ? of_matrix(args.w_scales, tile, args.matrix_bytes)[row] : 1.0f;
    const float w_gate_scale =
        P::is_scaled && is_gated ? of_matrix(args.w_gate_scales, tile, args.matrix_bytes)[row] : 1.0f;
    for (int token = thread / outputs; token < T::tokens; token += T::threads / outputs) {
        if (!tokens.has(tile, token)) break;
        float up = static_cast<float>(sums[sum_place<T>(token, is_gated ? column + half_rows : column)]);
        float gate = static_cast<float>(sums[sum_place<T>(token, column)]);
        if (P::is_scaled) {
            const float scale = args.x_scales[tokens.x_row(tile, token)];
            up *= scale * w_scale;
            gate *= scale * w_gate_scale;
        }
        up += bias;
        gate += gate_bias;
        const float y = is_gated ? gated(args.activation, gate, up) : activated(args.activation, up);
        store_element(args.y, args.y_dtype, (tile.first + token) * args.y_stride + row, y);
    }
}

template <class P, class T, bool is_gated, class Tokens>
__global__ void __launch_bounds__(T::threads, T::blocks)
    many_tokens_kernel(DenseArgs args, Tokens tokens, int row_tiles) {
    if constexpr (!Tokens::is_grouped) {
        many_tokens_tile<P, T, is_gated>(args, tokens, row_tiles, static_cast<int>(blockIdx.x));
    } else {
        // Only the device knows how many tiles there are: as many blocks as run at once share them.
        for (int index = static_cast<int>(blockIdx.x); index < static_cast<int>(tokens.tiles(T::tokens)) * row_tiles;
             index += static_cast<int>(gridDim.x)) {
            many_tokens_tile<P, T, is_gated>(args, tokens, row_tiles, index);
            __syncthreads();  // the next tile's copies overwrite stages that some warp may still read
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
