// Weights of 2 or 4 bits for few tokens: few_tokens.cuh's plan with a shift and a mask per four codes between load and mma.
//
//   block       16 output features (of each matrix) × up to 16 tokens; its warps share the depth, a chunk of 64 bytes at a time
//   warp step   one chunk: lane 4g + t loads 16 bytes of rows g and g+8; each 32 columns are one mma.m16n8k32, u8 · s8 → s32
//
// Without groups the sum over the whole depth is one exact integer. With groups each group's integer sum is folded into an f32
// sum as soon as the mma of its columns are done; the part of the zero point comes in with the warp that has its first columns.
#pragma once

#include "kernels/elements.cuh"
#include "launch/codes.hpp"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"

namespace fastffn::cuda {
namespace {

constexpr int codes_rows = 16;

template <bool is_grouped>
struct CodesSum {
    using Type = int;
};
template <>
struct CodesSum<true> {
    using Type = float;
};

// Warps on a multiprocessor for which ptxas finds registers without spilling.
constexpr int codes_warps(int token_tiles, bool is_gated, bool is_grouped) {
    return (is_gated && token_tiles == 2) || (is_grouped && (is_gated || token_tiles == 2)) ? 16 : 24;
}

template <int bits, int warps, int token_tiles, bool is_gated, bool is_grouped>
__global__ void __launch_bounds__(warps * 32, codes_warps(token_tiles, is_gated, is_grouped) / warps)
    codes_few_tokens_kernel(CodesArgs args) {
    constexpr int matrices = is_gated ? 2 : 1, tokens = 8 * token_tiles, spans = 16 / bits;
    constexpr int chunk_columns = 512 / bits;
    constexpr unsigned mask = bits == 4 ? 0x0F0F0F0Fu : 0x03030303u;
    constexpr int fixed_zero = bits == 4 ? 8 : 1;
    using Sum = typename CodesSum<is_grouped>::Type;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int g = lane / 4, t = lane % 4;
    const std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x) * codes_rows;
    const std::int64_t token0 = static_cast<std::int64_t>(blockIdx.y) * tokens;
    const std::int64_t row_bytes = args.padded_depth * bits / 8;

    std::int64_t rows[2];
#pragma unroll
    for (int half = 0; half < 2; half++) rows[half] = min(row0 + g + 8 * half, args.out_features - 1);
    const unsigned char* x[token_tiles];
#pragma unroll
    for (int n = 0; n < token_tiles; n++) {
        const std::int64_t token = token0 + 8 * n + g;
        x[n] =
            token < args.tokens ? static_cast<const unsigned char*>(args.x) + token * args.x_stride + 16 * t : nullptr;
    }

    int acc[matrices][token_tiles][4] = {};
    float folded[matrices][token_tiles][4] = {};
    // One chunk ahead: its bytes are on their way while this one's are multiplied.
    const auto load_chunk = [&](uint4(&w)[matrices][2], std::int64_t chunk) {
        const bool inside = chunk * 64 < row_bytes;
#pragma unroll
        for (int m = 0; m < matrices; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const auto* const codes = static_cast<const unsigned char*>(m ? args.w_gate.codes : args.w.codes);
                w[m][half] = inside ? ptx::load_once(reinterpret_cast<const uint4*>(codes + rows[half] * row_bytes +
                                                                                    chunk * 64 + 16 * t))
                                    : make_uint4(0, 0, 0, 0);
            }
    };
    uint4 w[matrices][2], ahead[matrices][2];
    load_chunk(ahead, warp);
    for (std::int64_t chunk = warp; chunk * 64 < row_bytes; chunk += warps) {
#pragma unroll
        for (int m = 0; m < matrices; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) w[m][half] = ahead[m][half];
        load_chunk(ahead, chunk + warps);
        // 64 columns of x at a time: lane t has eight of the first 32 and eight of the second.
#pragma unroll
        for (int pair = 0; pair < spans / 2; pair++) {
            uint4 v[token_tiles];
#pragma unroll
            for (int n = 0; n < token_tiles; n++)
                v[n] = x[n] ? __ldg(reinterpret_cast<const uint4*>(x[n] + chunk * chunk_columns + pair * 64))
                            : make_uint4(0, 0, 0, 0);
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const int span = 2 * pair + odd, word = bits == 4 ? span : pair, shift = bits == 4 ? 0 : 4 * odd;
                const std::int64_t column = chunk * chunk_columns + span * 32;
#pragma unroll
                for (int m = 0; m < matrices; m++) {
                    const unsigned low = word == 0   ? w[m][0].x
                                         : word == 1 ? w[m][0].y
                                         : word == 2 ? w[m][0].z
                                                     : w[m][0].w;
                    const unsigned high = word == 0   ? w[m][1].x
                                          : word == 1 ? w[m][1].y
                                          : word == 2 ? w[m][1].z
                                                      : w[m][1].w;
                    const unsigned a[4] = {low >> shift & mask, high >> shift & mask, low >> (shift + bits) & mask,
                                           high >> (shift + bits) & mask};
#pragma unroll
                    for (int n = 0; n < token_tiles; n++) {
                        const unsigned b[2] = {odd ? v[n].z : v[n].x, odd ? v[n].w : v[n].y};
                        ptx::mma_m16n8k32_u8s8(acc[m][n], a, b);
                    }
                }
                if (!is_grouped) continue;
                if ((column + 32) % args.group != 0 && span + 1 < spans) continue;
                // The end of a group, or of what this warp has of it.
                const std::int64_t group = column / args.group;
                if (group >= args.groups) continue;  // padding: x is zero there, and so is the sum
                const bool has_first = max(chunk * chunk_columns, group * args.group) == group * args.group;
#pragma unroll
                for (int m = 0; m < matrices; m++) {
                    const CodesMatrix& matrix = m ? args.w_gate : args.w;
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const std::int64_t entry = rows[half] * args.groups + group;
                        const float scale = __half2float(static_cast<const __half*>(matrix.scales)[entry]);
                        int zero = args.zeros == CodesZeros::fixed ? fixed_zero : 0;
                        float minimum = 0;
                        if (args.zeros == CodesZeros::points)
                            zero = static_cast<const unsigned char*>(matrix.zeros)[entry];
                        if (args.zeros == CodesZeros::minima)
                            minimum = __half2float(static_cast<const __half*>(matrix.zeros)[entry]);
#pragma unroll
                        for (int n = 0; n < token_tiles; n++)
#pragma unroll
                            for (int c = 0; c < 2; c++) {
                                const std::int64_t token = token0 + 8 * n + 2 * t + c;
                                const int sum =
                                    has_first && token < args.tokens ? args.x_sums[token * args.groups + group] : 0;
                                int& exact = acc[m][n][2 * half + c];
                                float& total = folded[m][n][2 * half + c];
                                total = fmaf(static_cast<float>(exact - zero * sum), scale, total);
                                if (args.zeros == CodesZeros::minima)
                                    total = fmaf(static_cast<float>(sum), minimum, total);
                                exact = 0;
                            }
                    }
                }
            }
        }
    }

    __shared__ Sum sums[warps][matrices][tokens][codes_rows + 1];
#pragma unroll
    for (int m = 0; m < matrices; m++)
#pragma unroll
        for (int n = 0; n < token_tiles; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                Sum& place = sums[warp][m][8 * n + 2 * t + i % 2][g + i / 2 * 8];
                if constexpr (is_grouped) place = folded[m][n][i];
                else place = acc[m][n][i];
            }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tokens * codes_rows; i += warps * 32) {
        const std::int64_t token = token0 + i / codes_rows, row = row0 + i % codes_rows;
        if (token >= args.tokens || row >= args.out_features) continue;
        float result[2] = {};
        const float x_scale = args.x_scales[token];
#pragma unroll
        for (int m = 0; m < matrices; m++) {
            Sum total = 0;
#pragma unroll
            for (int w = 0; w < warps; w++) total += sums[w][m][i / codes_rows][i % codes_rows];
            if constexpr (is_grouped) {
                result[m] = total * x_scale;
            } else {
                const float scale = static_cast<const float*>((m ? args.w_gate : args.w).scales)[row];
                result[m] = static_cast<float>(total - fixed_zero * args.x_sums[token]) * (x_scale * scale);
            }
        }
        if (args.bias) result[0] += load_element(args.bias, args.bias_dtype, row);
        if (is_gated && args.gate_bias) result[1] += load_element(args.gate_bias, args.gate_bias_dtype, row);
        const float y = is_gated ? gated(args.activation, result[1], result[0]) : activated(args.activation, result[0]);
        store_element(args.y, args.y_dtype, token * args.y_stride + row, y);
    }
}

}  // namespace
}  // namespace fastffn::cuda
