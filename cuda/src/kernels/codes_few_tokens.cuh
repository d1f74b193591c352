// Weights of 2 or 4 bits for few tokens: few_tokens.cuh's plan with a shift and a mask per four codes between load and mma.
//
//   block       16 output features (of each matrix) × up to 16 tokens; its warps share the depth, a chunk of 64 bytes at a time
//   warp step   one chunk: lane 4g + t loads 16 bytes of rows g and g+8, `codes_ahead` chunks before it needs them
//
// Without groups the sum over the whole depth is one exact integer. With groups each group's sum is folded into an f32 sum as
// soon as its columns are done; the part of the zero point comes in with the warp that has its first columns. The scales of a
// chunk travel with its codes, two rows of one group in each lane: loaded where they are needed they would cost a latency of
// HBM each.
//
// The first chunks are on their way before the kernel waits for the one that makes x.
//
// Estimates for 4.8 TB/s on 132 multiprocessors, never timed: 700 ns of latency need 26 KB under way on each; 16 to 24 warps
// with two chunks of 1 KB (gated: 2 KB) have 32 KB or more. A warp's chunk is 60 to 110 instructions; each of four schedulers
// has about 190 cycles until its share of the next KB arrives.
#pragma once

#include "kernels/codes.cuh"
#include "kernels/elements.cuh"
#include "ptx/dependent.cuh"
#include "ptx/memory.cuh"

namespace fastffn::cuda {
namespace {

constexpr int codes_rows = 16, codes_few_warps = 8;

// Chunks that a warp has under way.
__host__ __device__ constexpr int codes_ahead(int token_tiles, bool is_gated) {
    return is_gated || token_tiles == 2 ? 2 : 3;
}

// Blocks of 8 warps on a multiprocessor for which ptxas finds registers without spilling.
constexpr int codes_few_blocks(int token_tiles, bool is_gated, bool is_grouped) {
    return is_gated && token_tiles == 2 ? 1 : is_gated || token_tiles == 2 || is_grouped ? 2 : 3;
}

// What one chunk needs of a matrix: rows g and g + 8, and scales and zeros of its groups. Word i of a lane is of group
// 4 i + lane / 8 of the chunk's, rows 2 (lane % 8) and the one behind it.
template <class C, bool is_grouped>
struct CodesChunk {
    static constexpr int words = is_grouped ? C::chunk_columns / 128 : 0;
    uint4 rows[2];
    unsigned scales[words + 1], zeros[words + 1];
};

// Scale and zero of row g + 8 · half in the chunk's group `index`.
__device__ __forceinline__ unsigned of_group(const unsigned* words, int count, int index, int g, int half) {
    const unsigned word = count == 1 || index < 4 ? words[0] : words[count - 1];
    return __shfl_sync(0xffffffffu, word, index % 4 * 8 + half * 4 + g / 2);
}

template <class C, int token_tiles, bool is_gated, bool is_grouped>
__global__ void __launch_bounds__(codes_few_warps * 32, codes_few_blocks(token_tiles, is_gated, is_grouped))
    codes_few_tokens_kernel(CodesArgs args, CodesTokens all) {
    constexpr int matrices = is_gated ? 2 : 1, tokens = 8 * token_tiles, ahead = codes_ahead(token_tiles, is_gated);
    using Chunk = CodesChunk<C, is_grouped>;
    using Total = std::conditional_t<is_grouped, float, typename C::Sum>;
    using XSum = typename C::XSum;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int g = lane / 4, t = lane % 4, warps = static_cast<int>(blockDim.x) / 32;
    // Groups: the blocks of a tile are neighbours. Else those of some rows are, so that further tokens find them in L2.
    const auto row_blocks = static_cast<unsigned>((args.out_features + codes_rows - 1) / codes_rows);
    const auto token_blocks = all.is_grouped ? 1u : static_cast<unsigned>(all.tiles(tokens));
    const unsigned tile_index = all.is_grouped ? blockIdx.x / row_blocks : blockIdx.x % token_blocks;
    const std::int64_t row0 =
        static_cast<std::int64_t>(all.is_grouped ? blockIdx.x % row_blocks : blockIdx.x / token_blocks) * codes_rows;
    if (all.is_grouped) ptx::wait_for_launch();  // for the tables
    TokenTile tile = {};
    if (!all.tile(tile_index, tokens, &tile)) return;

    const std::int64_t row_bytes = args.padded_depth * C::bits / 8, table_rows = (args.out_features + 15) / 16 * 16;
    const int chunks = static_cast<int>(row_bytes / 64),
              shift = is_grouped ? 31 - __clz(static_cast<int>(args.group)) : 0;
    CodesMatrix w[matrices];
    const unsigned char* rows[matrices][2];
#pragma unroll
    for (int m = 0; m < matrices; m++) {
        w[m] = matrix_of(m ? args.w_gate : args.w, tile.matrix * args.matrix_bytes);
#pragma unroll
        for (int half = 0; half < 2; half++)  // rows behind the last are read as the last; their sums go nowhere
            rows[m][half] = static_cast<const unsigned char*>(w[m].codes) +
                            min(row0 + g + 8 * half, args.out_features - 1) * row_bytes + 16 * t;
    }
    const unsigned char* x[token_tiles];
    int sum_rows[token_tiles][2];  // -1: none
#pragma unroll
    for (int n = 0; n < token_tiles; n++) {
        x[n] = 8 * n + g < tile.count
                   ? static_cast<const unsigned char*>(args.x) + all.x_row(tile, 8 * n + g) * args.x_stride + 16 * t
                   : nullptr;
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int token = 8 * n + 2 * t + c;
            sum_rows[n][c] =
                is_grouped && args.x_sums && token < tile.count ? static_cast<int>(all.x_row(tile, token)) : -1;
        }
    }

    const auto load_chunk = [&](Chunk(&to)[matrices], int chunk) {
        const bool inside = chunk < chunks;
#pragma unroll
        for (int m = 0; m < matrices; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++)
                to[m].rows[half] = inside ? ptx::load_once(reinterpret_cast<const uint4*>(
                                                rows[m][half] + static_cast<std::int64_t>(chunk) * 64))
                                          : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < Chunk::words; i++) {
                const int index = 4 * i + lane / 8;
                const std::int64_t group = (static_cast<std::int64_t>(chunk) * C::chunk_columns >> shift) + index;
                const bool exists = inside && group < args.groups && (index == 0 || index << shift < C::chunk_columns);
                const std::int64_t entry = group * table_rows + row0 + lane % 8 * 2;
                to[m].scales[i] = to[m].zeros[i] = 0;
                if (!exists) continue;
                to[m].scales[i] =
                    __ldg(reinterpret_cast<const unsigned*>(static_cast<const __half*>(w[m].scales) + entry));
                if (args.zeros == CodesZeros::points)
                    to[m].zeros[i] = __ldg(
                        reinterpret_cast<const unsigned short*>(static_cast<const unsigned char*>(w[m].zeros) + entry));
                if (args.zeros == CodesZeros::minima)
                    to[m].zeros[i] =
                        __ldg(reinterpret_cast<const unsigned*>(static_cast<const __half*>(w[m].zeros) + entry));
            }
        }
    };

    typename C::Sum acc[matrices][token_tiles][4];
    float folded[matrices][token_tiles][4] = {};
#pragma unroll
    for (int i = 0; i < matrices * token_tiles * 4; i++)
        acc[i / 4 / token_tiles][i / 4 % token_tiles][i % 4] = is_grouped ? C::group_origin : 0;

    Chunk under_way[ahead][matrices];
#pragma unroll
    for (int d = 0; d < ahead; d++) load_chunk(under_way[d], warp + d * warps);
    ptx::wait_for_launch();  // weights were there before, x perhaps not
    for (int first = warp; first < chunks; first += ahead * warps) {
#pragma unroll
        for (int d = 0; d < ahead; d++) {
            const int chunk = first + d * warps;
            if (chunk >= chunks) break;
            Chunk(&now)[matrices] = under_way[d];
            uint4 v[C::pieces][token_tiles];
#pragma unroll
            for (int piece = 0; piece < C::pieces; piece++)
#pragma unroll
                for (int n = 0; n < token_tiles; n++)
                    v[piece][n] = x[n] ? *reinterpret_cast<const uint4*>(
                                             x[n] + static_cast<std::int64_t>(chunk) * C::pieces * 64 + piece * 64)
                                       : make_uint4(0, 0, 0, 0);
            XSum x_sum[token_tiles][2] = {};
#pragma unroll
            for (int piece = 0; piece < C::pieces; piece++) {
#pragma unroll
                for (int odd = 0; odd < 2; odd++) {
                    const int column = piece * C::piece_columns + odd * C::step_columns;  // of the chunk
                    const std::int64_t depth = static_cast<std::int64_t>(chunk) * C::chunk_columns + column;
                    if (is_grouped && (column == 0 || (depth & (args.group - 1)) == 0)) {
                        // A group, or what this warp has of it, begins.
                        const bool has_first = (depth & (args.group - 1)) == 0 && depth >> shift < args.groups;
#pragma unroll
                        for (int n = 0; n < token_tiles; n++)
#pragma unroll
                            for (int c = 0; c < 2; c++)
                                x_sum[n][c] = has_first && sum_rows[n][c] >= 0
                                                  ? static_cast<const XSum*>(
                                                        args.x_sums)[sum_rows[n][c] * args.groups + (depth >> shift)]
                                                  : 0;
                    }
#pragma unroll
                    for (int m = 0; m < matrices; m++) {
                        unsigned low[C::words_of_piece], high[C::words_of_piece], a[4];
#pragma unroll
                        for (int i = 0; i < C::words_of_piece; i++) {
                            low[i] = word_of(now[m].rows[0], piece * C::words_of_piece + i);
                            high[i] = word_of(now[m].rows[1], piece * C::words_of_piece + i);
                        }
                        C::decode(low, high, odd, a);
#pragma unroll
                        for (int n = 0; n < token_tiles; n++) {
                            const unsigned b[2] = {odd ? v[piece][n].z : v[piece][n].x,
                                                   odd ? v[piece][n].w : v[piece][n].y};
                            C::step(acc[m][n], a, b);
                        }
                    }
                    if constexpr (!is_grouped) continue;
                    if (((depth + C::step_columns) & (args.group - 1)) != 0 &&
                        column + C::step_columns < C::chunk_columns)
                        continue;
                    // It ends.
                    const int index = static_cast<int>((depth >> shift) -
                                                       (static_cast<std::int64_t>(chunk) * C::chunk_columns >> shift));
#pragma unroll
                    for (int m = 0; m < matrices; m++)
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            const float scale =
                                half_of(of_group(now[m].scales, Chunk::words, index, g, half) >> g % 2 * 16);
                            const unsigned zeros = args.zeros == CodesZeros::fixed
                                                       ? 0
                                                       : of_group(now[m].zeros, Chunk::words, index, g, half);
                            const bool has_minimum = args.zeros == CodesZeros::minima;
                            const int zero = args.zeros == CodesZeros::fixed ? C::fixed_zero
                                             : args.zeros == CodesZeros::points
                                                 ? static_cast<int>(zeros >> g % 2 * 8 & 255)
                                                 : 0;
                            const float minimum = has_minimum ? half_of(zeros >> g % 2 * 16) : 0.0f;
#pragma unroll
                            for (int n = 0; n < token_tiles; n++)
#pragma unroll
                                for (int c = 0; c < 2; c++) {
                                    typename C::Sum& sum = acc[m][n][2 * half + c];
                                    float& total = folded[m][n][2 * half + c];
                                    total = C::folded(sum, x_sum[n][c], zero, scale, minimum, has_minimum, total);
                                    sum = C::group_origin;
                                }
                        }
                }
            }
            load_chunk(now, chunk + ahead * warps);
        }
    }

    // [warp][matrix][token][row]; a row more apart, so that the lanes of a group of four meet different banks.
    __shared__ Total sums[codes_few_warps][matrices][tokens][codes_rows + 1];
#pragma unroll
    for (int m = 0; m < matrices; m++)
#pragma unroll
        for (int n = 0; n < token_tiles; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                Total& place = sums[warp][m][8 * n + 2 * t + i % 2][g + i / 2 * 8];
                if constexpr (is_grouped) place = folded[m][n][i];
                else place = acc[m][n][i];
            }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tokens * codes_rows; i += static_cast<int>(blockDim.x)) {
        const int token = i / codes_rows;
        const std::int64_t row = row0 + i % codes_rows, bias_row = tile.matrix * args.out_features + row;
        if (token >= tile.count || row >= args.out_features) continue;
        const std::int64_t x_row = all.x_row(tile, token);
        const float x_scale = args.x_scales ? args.x_scales[x_row] : 1.0f;
        float result[2] = {};
#pragma unroll
        for (int m = 0; m < matrices; m++) {
            Total total = 0;
            for (int of = 0; of < warps; of++) total += sums[of][m][token][i % codes_rows];
            if constexpr (is_grouped) {
                result[m] = total * x_scale;
            } else {
                const float scale = static_cast<const float*>(w[m].scales)[row];
                const int x_sum = static_cast<const int*>(args.x_sums)[x_row];
                result[m] = static_cast<float>(total - C::fixed_zero * x_sum) * (x_scale * scale);
            }
        }
        if (args.bias) result[0] += load_element(args.bias, args.bias_dtype, bias_row);
        if (is_gated && args.gate_bias) result[1] += load_element(args.gate_bias, args.gate_bias_dtype, bias_row);
        const float y = is_gated ? gated(args.activation, result[1], result[0]) : activated(args.activation, result[0]);
        store_element(args.y, args.y_dtype, (tile.first + token) * args.y_stride + row, y);
    }
}

}  // namespace
}  // namespace fastffn::cuda
