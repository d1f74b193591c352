// Weights of 2 or 4 bits for many tokens: tiles of 128 tokens × 128 weight rows. x and the packed codes come by cp.async; codes
// become operands in registers, so what moves is 2 or 4 bits a weight all the way. sm_80 and later.
//
//   block     128 tokens × 128 weight rows; gated: 64 rows of gate and the same 64 of up, so that act(gate) · up happens in registers
//   stages    3 of two pieces of x (128 bytes of each token's row) and, where a chunk of codes begins, that chunk (64 bytes a row)
//   warp      2 × 4 warps, each 64 tokens × 32 rows as 2 × 8 mma tiles with the weights as a: 64 sums a lane. The two share the tokens
//             by eights, and half of a tile is not multiplied where there are 64 tokens or fewer
//   shared    lane 4g + t reads 16 bytes of token g as one operand; 16-byte chunk c of token r lies at c ^ (r % 2 · 4): eight lanes then
//             cover all banks once
//
// With groups there are integer and f32 sums, 128 registers of them: one block on a multiprocessor rather than two. Decoding takes
// 7 (2 bits), 6 (4 bits) or 11 (bf16) instructions for an operand that eight mma use.
#pragma once

#include "kernels/codes.cuh"
#include "kernels/elements.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/dependent.cuh"

namespace fastffn::cuda {
namespace {

struct CodesMany {
    static constexpr int tokens = 128, rows = 128, stages = 3, threads = 256, band = 8;
    static constexpr int x_bytes = tokens * 128, w_bytes = rows * 64, most_groups = 4;
    static constexpr int sum_bytes = tokens * most_groups * 4;
    static __host__ __device__ constexpr int outputs(bool is_gated) { return is_gated ? rows / 2 : rows; }
    // Of the chunks that are multiplied and copied at a time.
    static __host__ __device__ constexpr int w_stages(int pieces) { return pieces == 2 ? 3 : 2; }
    static constexpr int shared_bytes(int pieces, bool is_grouped) {
        return stages * (x_bytes + (is_grouped ? sum_bytes : 0)) + w_stages(pieces) * w_bytes;
    }
};

// Tile and first row of a block's work; blocks that run together share rows of w and tokens.
template <bool is_gated>
__device__ __forceinline__ TokenTile codes_many_place(const CodesTokens& all, int row_tiles, int index, int* row0) {
    using T = CodesMany;
    const int per_band = T::band * static_cast<int>(all.tiles(T::tokens)), band = index / per_band;
    const int band_rows = min(T::band, row_tiles - band * T::band), in_band = index - band * per_band;
    *row0 = (band * T::band + in_band % band_rows) * T::outputs(is_gated);
    TokenTile tile = {};
    all.tile(in_band / band_rows, T::tokens, &tile);
    return tile;
}

template <class C, bool is_gated, bool is_grouped>
__device__ __forceinline__ void codes_many_tile(const CodesArgs& args, const CodesTokens& all, int row_tiles,
                                                int index) {
    using T = CodesMany;
    using XSum = typename C::XSum;
    constexpr int steps_per_chunk = C::pieces / 2, w_stages = T::w_stages(C::pieces);
    constexpr int step_columns = 2 * C::piece_columns, words = 2 * C::words_of_piece;
    unsigned char* const x_stages = ptx::dynamic_shared();
    unsigned char* const codes_stages = x_stages + T::stages * T::x_bytes;
    unsigned char* const sum_stages = codes_stages + w_stages * T::w_bytes;
    const int thread = ptx::unknown(static_cast<int>(threadIdx.x)), lane = thread % 32, warp = thread / 32;
    const int g = lane / 4, t = lane % 4, token_warp = warp / 4, warp_rows = warp % 4;

    int row0;
    TokenTile tile = codes_many_place<is_gated>(all, row_tiles, index, &row0);
    const std::int64_t matrix = tile.matrix * args.matrix_bytes;

    // Each thread copies 16 bytes of four rows of x per stage, of two weight rows per chunk, and up to two sums. Tokens and rows
    // behind the last are read as the last; their sums go nowhere. Numbers of rows, not pointers: half as many registers.
    int x_rows[4], w_rows[2];
#pragma unroll
    for (int i = 0; i < 4; i++) x_rows[i] = static_cast<int>(all.x_row(tile, min(thread / 8 + 32 * i, tile.count - 1)));
#pragma unroll
    for (int i = 0; i < 2; i++)
        w_rows[i] = min(row0 + thread / 4 + (is_gated ? 0 : 64 * i), static_cast<int>(args.out_features) - 1);
    const std::int64_t row_bytes = args.padded_depth * C::bits / 8;
    const int x_place = thread / 8 * 128 + (thread % 8 ^ thread / 8 % 2 * 4) * 16;
    const int x_operand = (token_warp * 8 + g) * 128 + (t ^ g % 2 * 4) * 16;
    // Half of the tile at most: then nobody reads the other half.
    const bool few = tile.count <= T::tokens / 2;
    const int steps = static_cast<int>(args.padded_depth / step_columns);
    const int shift = is_grouped ? 31 - __clz(static_cast<int>(args.group)) : 0;
    const XSum* sum_row = nullptr;
    if (is_grouped && args.x_sums && thread % T::tokens < tile.count)
        sum_row = static_cast<const XSum*>(args.x_sums) + all.x_row(tile, thread % T::tokens) * args.groups;
    const auto copy_stage = [&](int step) {
        unsigned char* const x_stage = x_stages + step % T::stages * T::x_bytes;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i >= 2 && few) continue;
            ptx::cp_async_16(x_stage + x_place + i * 32 * 128,
                             static_cast<const unsigned char*>(args.x) + ptx::unknown(x_rows[i]) * args.x_stride +
                                 static_cast<std::int64_t>(step) * 128 + thread % 8 * 16);
        }
        if (step % steps_per_chunk == 0) {
            const int chunk = step / steps_per_chunk;
            unsigned char* const stage = codes_stages + chunk % w_stages * T::w_bytes;
#pragma unroll
            for (int i = 0; i < 2; i++)
                ptx::cp_async_16(stage + i * 64 * 64 + thread * 16,
                                 static_cast<const unsigned char*>((is_gated && i == 0 ? args.w_gate : args.w).codes) +
                                     matrix + ptx::unknown(w_rows[i]) * row_bytes +
                                     static_cast<std::int64_t>(chunk) * 64 + thread % 4 * 16);
        }
        if (is_grouped && args.x_sums) {
            auto* const sums = reinterpret_cast<XSum*>(sum_stages + step % T::stages * T::sum_bytes);
            const std::int64_t first = static_cast<std::int64_t>(step) * step_columns >> shift;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int at = thread / T::tokens + 2 * i;
                if (at > 0 && at << shift >= step_columns) continue;
                const bool exists = sum_row && first + at < args.groups;
                ptx::cp_async_small<4>(sums + at * T::tokens + thread % T::tokens,
                                       exists ? sum_row + first + at : args.x_sums, exists ? 4 : 0);
            }
        }
    };

    // Rows of this lane: of tile i, row `half`.
    const auto row_of = [&](int i, int half) {
        return row0 + warp_rows * (is_gated ? 16 : 32) + (is_gated ? 0 : i * 16) + half * 8 + g;
    };
    typename C::Sum acc[2][8][4];
    float folded[2][8][4];
#pragma unroll
    for (int i = 0; i < 64; i++) {
        acc[i / 32][i / 4 % 8][i % 4] = is_grouped ? C::group_origin : 0;
        folded[i / 32][i / 4 % 8][i % 4] = 0;
    }
    float scale[2][2] = {}, minimum[2][2] = {};
    int zero[2][2] = {};

    const auto begin_group = [&](std::int64_t group) {
        const std::int64_t table_rows = (args.out_features + 15) / 16 * 16;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const CodesMatrix& w = is_gated && i == 0 ? args.w_gate : args.w;
                const std::int64_t entry =
                    group * table_rows + min(row_of(i, half), static_cast<int>(args.out_features) - 1);
                const auto* const zeros = static_cast<const unsigned char*>(w.zeros) + matrix;
                scale[i][half] = 0;
                zero[i][half] = args.zeros == CodesZeros::fixed ? C::fixed_zero : 0;
                if (group >= args.groups) continue;  // padding: every sum is zero
                scale[i][half] = __half2float(__ldg(
                    reinterpret_cast<const __half*>(static_cast<const unsigned char*>(w.scales) + matrix + entry * 2)));
                if (args.zeros == CodesZeros::points) zero[i][half] = __ldg(zeros + entry);
                if (args.zeros == CodesZeros::minima)
                    minimum[i][half] = __half2float(__ldg(reinterpret_cast<const __half*>(zeros + entry * 2)));
            }
    };
    const auto end_group = [&](const XSum* sums) {
        const bool has_minimum = args.zeros == CodesZeros::minima;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const int token = (2 * n + token_warp) * 8 + 2 * t;
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const XSum x_sum = args.x_sums ? sums[token + c] : 0;
#pragma unroll
                for (int i = 0; i < 2; i++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        typename C::Sum& sum = acc[i][n][2 * half + c];
                        float& total = folded[i][n][2 * half + c];
                        total =
                            C::folded(sum, x_sum, zero[i][half], scale[i][half], minimum[i][half], has_minimum, total);
                        sum = C::group_origin;
                    }
            }
        }
    };

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
        const unsigned char* const x_stage = x_stages + step % T::stages * T::x_bytes;
        const unsigned char* const w_stage =
            codes_stages + step / steps_per_chunk % w_stages * T::w_bytes + step % steps_per_chunk * words * 4 + 16 * t;
        const auto* const sums = reinterpret_cast<const XSum*>(sum_stages + step % T::stages * T::sum_bytes);

        unsigned packed[2][2][words];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = (is_gated ? i * 64 + warp_rows * 16 : warp_rows * 32 + i * 16) + half * 8 + g;
                if constexpr (words == 4) {
                    const uint4 v = *reinterpret_cast<const uint4*>(w_stage + row * 64);
#pragma unroll
                    for (int k = 0; k < words; k++) packed[i][half][k] = word_of(v, k);
                } else {
                    const uint2 v = *reinterpret_cast<const uint2*>(w_stage + row * 64);
                    packed[i][half][0] = v.x;
                    packed[i][half][1] = v.y;
                }
            }
        const auto decode = [&](int piece, int odd, unsigned (&a)[2][4]) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned low[C::words_of_piece], high[C::words_of_piece];
#pragma unroll
                for (int k = 0; k < C::words_of_piece; k++) {
                    low[k] = packed[i][0][piece * C::words_of_piece + k];
                    high[k] = packed[i][1][piece * C::words_of_piece + k];
                }
                C::decode(low, high, odd, a[i]);
            }
        };
        const auto operand = [&](int piece, int n) {
            return *reinterpret_cast<const uint4*>(x_stage + (x_operand ^ piece * 64) + n * 16 * 128);
        };
        const auto multiply = [&](const unsigned (&a)[2][4], const uint4& v, int odd, int n) {
            const unsigned b[2] = {odd ? v.z : v.x, odd ? v.w : v.y};
#pragma unroll
            for (int i = 0; i < 2; i++) C::step(acc[i][n], a[i], b);
        };

        // Tokens by halves of the warp's: a tile with few of them does half the work.
        if constexpr (!is_grouped) {
#pragma unroll
            for (int piece = 0; piece < 2; piece++) {
                unsigned a[2][2][4];
                decode(piece, 0, a[0]);
                decode(piece, 1, a[1]);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    if (half && few) continue;
#pragma unroll
                    for (int n = 4 * half; n < 4 * half + 4; n++) {
                        const uint4 v = operand(piece, n);
                        multiply(a[0], v, 0, n);
                        multiply(a[1], v, 1, n);
                    }
                }
            }
        } else {
#pragma unroll
            for (int piece = 0; piece < 2; piece++) {
                uint4 v[8];
#pragma unroll
                for (int n = 0; n < 8; n++)
                    if (n < 4 || !few) v[n] = operand(piece, n);
#pragma unroll
                for (int odd = 0; odd < 2; odd++) {
                    const std::int64_t column = static_cast<std::int64_t>(step) * step_columns +
                                                piece * C::piece_columns + odd * C::step_columns;
                    if ((column & (args.group - 1)) == 0) begin_group(column >> shift);
                    unsigned a[2][4];
                    decode(piece, odd, a);
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        if (half && few) continue;
#pragma unroll
                        for (int n = 4 * half; n < 4 * half + 4; n++) multiply(a, v[n], odd, n);
                    }
                    const std::int64_t end = column + C::step_columns;
                    if ((end & (args.group - 1)) == 0 || end == args.padded_depth) {
                        const std::int64_t first = static_cast<std::int64_t>(step) * step_columns >> shift;
                        end_group(sums + ((column >> shift) - first) * T::tokens);
                    }
                }
            }
        }
    }
    ptx::cp_async_wait<0>();
    // Once more, rather than in registers through the loop.
    tile = codes_many_place<is_gated>(all, row_tiles, ptx::unknown(index), &row0);

    // Gated: tile 0 is gate, 1 up.
    float bias[2][2], row_scale[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const std::int64_t row = min(row_of(i, half), static_cast<int>(args.out_features) - 1);
            const void* const biases = is_gated && i == 0 ? args.gate_bias : args.bias;
            const DType dtype = is_gated && i == 0 ? args.gate_bias_dtype : args.bias_dtype;
            bias[i][half] = biases ? load_element(biases, dtype, tile.matrix * args.out_features + row) : 0.0f;
            if constexpr (!is_grouped) {
                const CodesMatrix w =
                    matrix_of(is_gated && i == 0 ? args.w_gate : args.w, tile.matrix * args.matrix_bytes);
                row_scale[i][half] = static_cast<const float*>(w.scales)[row];
            }
        }
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int token = (2 * n + token_warp) * 8 + 2 * t + c;
            if (token >= tile.count) continue;
            const std::int64_t x_row = all.x_row(tile, token), y_row = (tile.first + token) * args.y_stride;
            const float x_scale = args.x_scales ? args.x_scales[x_row] : 1.0f;
            const auto result = [&](int i, int half) {
                float y;
                if constexpr (is_grouped) {
                    y = folded[i][n][2 * half + c] * x_scale;
                } else {
                    const int sum =
                        acc[i][n][2 * half + c] - C::fixed_zero * static_cast<const int*>(args.x_sums)[x_row];
                    y = static_cast<float>(sum) * (x_scale * row_scale[i][half]);
                }
                return y + bias[i][half];
            };
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if constexpr (is_gated) {
                    if (row_of(0, half) < args.out_features)
                        store_element(args.y, args.y_dtype, y_row + row_of(0, half),
                                      gated(args.activation, result(0, half), result(1, half)));
                } else {
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        if (row_of(i, half) < args.out_features)
                            store_element(args.y, args.y_dtype, y_row + row_of(i, half),
                                          activated(args.activation, result(i, half)));
                }
            }
        }
}

template <class C, bool is_gated, bool is_grouped>
__global__ void __launch_bounds__(CodesMany::threads, is_grouped ? 1 : 2)
    codes_many_tokens_kernel(CodesArgs args, CodesTokens all, int row_tiles) {
    ptx::wait_for_launch();
    // With groups only the device knows how many tiles there are: as many blocks as run at once share them.
    for (int index = static_cast<int>(blockIdx.x); index < static_cast<int>(all.tiles(CodesMany::tokens)) * row_tiles;
         index += static_cast<int>(gridDim.x)) {
        codes_many_tile<C, is_gated, is_grouped>(args, all, row_tiles, index);
        __syncthreads();  // the next tile's copies overwrite stages that some warp may still read
    }
}

}  // namespace
}  // namespace fastffn::cuda
