// sparse24 for many tokens: tiles of tokens × weight rows on mma.sp, fed by cp.async. sm_80 and later.
//
//   block     Large: 128 tokens × 256 weight rows; gated: 128 rows of gate and the same 128 of up. Small: 64 × 64, where large ones
//             would leave most multiprocessors idle
//   stages    of one piece, 64 bytes of x: 8 KiB of x and 9 of weights (int8: 10); all but one under way while that is multiplied
//   warp      64 tokens × 64 rows: 4 × 8 tiles of mma.sp, 128 sums a lane; or 32 × 32
//   shared    rows of x of 64 bytes, 16-byte chunk c of row r at c ^ (r / 2 % 4), for ldmatrix; weights and positions as they come:
//             a lane's 16 bytes lie beside its neighbour's
//
// Why so large: mma.sp takes half the cycles of a dense mma for the same x, so x is what shared memory and L2 pay for. A warp
// reads 6.3 KiB from shared memory per 32 mma.sp, 50 of the 64 cycles that an A100 takes for these; 64 × 32 would be at its limit.
// A block reads 17 KiB per 512 cycles from L2, 34 bytes a cycle, of some 47 that an A100 has for a multiprocessor. Small tiles read
// more than twice as much for the same products (estimates all).
// Gated: the first half of a warp's rows are of gate, the others the same rows of up; sums meet in shared memory at the end.
#pragma once

#include "kernels/sparse24.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/dependent.cuh"
#include "ptx/ldmatrix.cuh"

namespace fastffn::cuda {
namespace {

template <int tokens_, int rows_, int warp_tokens_, int warp_rows_, int stages_, int blocks_>
struct Sparse24Tile {
    static constexpr int tokens = tokens_, rows = rows_, warp_tokens = warp_tokens_, warp_rows = warp_rows_;
    static constexpr int stages = stages_, blocks = blocks_;  // of a multiprocessor, for the compiler
    static constexpr int row_warps = rows / warp_rows, threads = 32 * row_warps * (tokens / warp_tokens);
    static constexpr int tiles = rows / 16, warp_tiles = warp_rows / 16;
    // 16-byte copies of a thread per stage.
    static constexpr int x_copies = tokens * 4 / threads, value_copies = tiles * 32 / threads;
    static_assert(tokens == 2 * warp_tokens, "the sums of half the tokens at the end");
    static_assert(x_copies * threads == tokens * 4 && value_copies * threads == tiles * 32 && tiles * 8 <= threads);
    static constexpr int x_bytes = tokens * 64, values_bytes = tiles * 512;
    // Blocks that run together should share weights and tokens: they go through bands of this many tiles of rows.
    static constexpr int band = 1024 / rows;
    // At the end sums lie in shared memory, half the tokens at a time: [token][row], 4 more apart, so that the lanes that hold
    // one mma's sums (8 rows of 4 tokens) meet all banks.
    static constexpr int sums_stride = rows + 4, sums_bytes = tokens / 2 * sums_stride * 4;
};
template <class P, class T>
struct Sparse24Bytes {
    static constexpr int stage = T::x_bytes + T::tiles * P::bytes, shared = T::stages * stage;
    static_assert(shared >= T::sums_bytes);
};
using Sparse24Large = Sparse24Tile<128, 256, 64, 64, 5, 1>;
using Sparse24Small = Sparse24Tile<64, 64, 32, 32, 8, 3>;

__device__ __forceinline__ int sparse24_chunk(int row, int chunk) { return row * 64 + (chunk ^ (row / 2 % 4)) * 16; }

template <class P, class T, bool is_gated>
__global__ void __launch_bounds__(T::threads, T::blocks)
    sparse24_many_tokens_kernel(Sparse24Args args, Sparse24Tokens tokens, int token_tiles, int row_tiles) {
    constexpr int position_chunks = P::positions_bytes / 16, stage_bytes = Sparse24Bytes<P, T>::stage;
    unsigned char* const shared = ptx::dynamic_shared();
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int warp_tokens = warp / T::row_warps * T::warp_tokens, warp_tile = warp % T::row_warps * T::warp_tiles;

    // Tile of this block.
    const int per_band = T::band * token_tiles, band = static_cast<int>(blockIdx.x) / per_band;
    const int band_rows = min(T::band, row_tiles - band * T::band);
    const int in_band = static_cast<int>(blockIdx.x) - band * per_band;
    const std::int64_t row_block = band * T::band + in_band % band_rows;
    ptx::wait_for_launch();
    TokenTile tile;
    if (!tokens.tile(in_band / band_rows, T::tokens, &tile)) return;

    // What a thread copies per stage: 16 bytes of some rows of x and of some tiles' kept weights, and of one tile's positions.
    // Tile i of the block: gated, half of a warp's are of gate, half of up.
    const auto source = [&](int i) {
        if (!is_gated) return sparse24_tile(args.w, args, tile, row_block * T::tiles + i);
        constexpr int half = T::warp_tiles / 2;
        return sparse24_tile(i % T::warp_tiles < half ? args.w_gate : args.w, args, tile,
                             row_block * (T::tiles / 2) + i / T::warp_tiles * half + i % half);
    };
    const int x_row = thread / 4, x_chunk = thread % 4;
    const unsigned char *x[T::x_copies], *values[T::value_copies];
#pragma unroll
    for (int i = 0; i < T::x_copies; i++) {
        const int row = x_row + T::threads / 4 * i;
        x[i] = row < tile.count ? static_cast<const unsigned char*>(args.x) + tokens.x_row(tile, row) * args.x_stride
                                : nullptr;
    }
#pragma unroll
    for (int i = 0; i < T::value_copies; i++) values[i] = source(warp + T::threads / 32 * i) + lane * 16;
    const bool copies_positions = thread < T::tiles * position_chunks;
    const int positions_tile = min(thread / position_chunks, T::tiles - 1);
    const unsigned char* const positions = source(positions_tile) + P::positions_offset + thread % position_chunks * 16;
    const int pieces = static_cast<int>(args.pieces);
    const auto copy_stage = [&](int piece) {
        unsigned char* const stage = shared + piece % T::stages * stage_bytes;
        const std::int64_t k = static_cast<std::int64_t>(piece) * 64 + x_chunk * 16;
#pragma unroll
        for (int i = 0; i < T::x_copies; i++) {
            const bool exists = x[i] && k < args.row_bytes;
            ptx::cp_async_16(stage + sparse24_chunk(x_row + T::threads / 4 * i, x_chunk),
                             exists ? x[i] + k : static_cast<const unsigned char*>(args.x), exists ? 16 : 0);
        }
#pragma unroll
        for (int i = 0; i < T::value_copies; i++)
            ptx::cp_async_16(stage + T::x_bytes + (warp + T::threads / 32 * i) * 512 + lane * 16,
                             values[i] + static_cast<std::int64_t>(piece) * P::bytes);
        if (copies_positions)
            ptx::cp_async_16(stage + T::x_bytes + T::values_bytes + thread * 16,
                             positions + static_cast<std::int64_t>(piece) * P::bytes);
    };

    typename P::Sum acc[T::warp_tiles][T::warp_tokens / 8][4] = {};
#pragma unroll
    for (int piece = 0; piece < T::stages - 1; piece++) {
        if (piece < pieces) copy_stage(piece);
        ptx::cp_async_commit();
    }
    for (int piece = 0; piece < pieces; piece++) {
        ptx::cp_async_wait<T::stages - 2>();
        __syncthreads();  // everyone's copies of this stage have come, and everyone has done with the stage that is filled next
        if (piece + T::stages - 1 < pieces) copy_stage(piece + T::stages - 1);
        ptx::cp_async_commit();
        if (warp_tokens >= tile.count) continue;
        const unsigned char* const x_tile = shared + piece % T::stages * stage_bytes;
        const unsigned char* const w_tile = x_tile + T::x_bytes + warp_tile * 512;
        const unsigned char* const p_tile = x_tile + T::x_bytes + T::values_bytes + warp_tile * P::positions_bytes;
        unsigned a[T::warp_tiles][4], kept[T::warp_tiles];
#pragma unroll
        for (int i = 0; i < T::warp_tiles; i++) {
            const uint4 w = reinterpret_cast<const uint4*>(w_tile + i * 512)[lane];
            a[i][0] = w.x, a[i][1] = w.y, a[i][2] = w.z, a[i][3] = w.w;
            kept[i] = reinterpret_cast<const unsigned*>(p_tile + i * P::positions_bytes)[P::word(lane)];
        }
#pragma unroll
        for (int j = 0; j < T::warp_tokens / 8; j++) {
            // Matrices 0 to 3 are the four chunks of 8 tokens.
            unsigned b[4];
            ptx::ldmatrix(b, x_tile + sparse24_chunk(warp_tokens + j * 8 + lane % 8, lane / 8));
#pragma unroll
            for (int i = 0; i < T::warp_tiles; i++) P::step(acc[i][j], a[i], b, kept[i]);
        }
    }

    // All copies have come: what was committed last is empty. Stages become sums.
    auto* const sums = reinterpret_cast<typename P::Sum*>(shared);
    constexpr int outputs = is_gated ? T::rows / 2 : T::rows;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        __syncthreads();
        if (warp_tokens == T::warp_tokens * half)
#pragma unroll
            for (int j = 0; j < T::warp_tokens / 8; j++)
#pragma unroll
                for (int i = 0; i < T::warp_tiles; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        sums[(j * 8 + lane % 4 * 2 + c % 2) * T::sums_stride + (warp_tile + i) * 16 + lane / 4 +
                             c / 2 * 8] = acc[i][j][c];
        __syncthreads();
        const int count = min(T::warp_tokens, tile.count - T::warp_tokens * half);
        for (int i = thread; i < count * outputs; i += T::threads) {
            const int token = i / outputs, in_block = i % outputs;
            const std::int64_t row = row_block * outputs + in_block;
            if (row >= args.out_features) continue;
            const typename P::Sum* const of_token = sums + token * T::sums_stride;
            constexpr int half_rows = T::warp_rows / 2;
            const int at = is_gated ? in_block / half_rows * T::warp_rows + in_block % half_rows : in_block;
            const float up = static_cast<float>(of_token[is_gated ? at + half_rows : at]);
            const float gate = is_gated ? static_cast<float>(of_token[at]) : 0.0f;
            const int position = T::warp_tokens * half + token;
            const float y = sparse24_finished<is_gated>(args, tile, tokens.x_row(tile, position), row, up, gate);
            store_element(args.y, args.y_dtype, (tile.first + position) * args.y_stride + row, y);
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
