// Rows of w_up whose gates live, for few tokens: codes of 2 or 4 bits, and 8-bit activations.
//
//   block   32 hidden columns; every warp finds the live ones by a ballot, so no list is written
//   warp    one live row at a time, the w-th, w + 8-th … of the block: 16 bytes a lane, four products of bytes per dp4a
//
// The grid covers all columns, whatever lives. Sums of codes are exact integers; with groups each 32 columns' sum is scaled in f32.
#pragma once

#include "kernels/elements.cuh"
#include "layout.hpp"
#include "ptx/bits.cuh"
#include "ptx/memory.cuh"

namespace fastffn::cuda {
namespace {

constexpr int live_columns = 32, live_warps = 8;

struct LiveRowsArgs {
    const unsigned char* x;  // s8 [tokens], rows of padded_depth in the order of codes
    std::int64_t x_stride;
    const float* x_scales;
    const std::int32_t* x_sums;  // [tokens, groups]
    const unsigned char* codes;
    const void *scales, *zeros;
    const void* bias;
    float* hidden;
    std::int64_t hidden_stride, row_bytes, group, groups, table_rows, columns;
    int tokens, zeros_kind;  // layout_zero_points, layout_minima or 0
    DType bias_dtype;
};

// What the zeros of a row's group take from the sum of its products: value · Σ codes of x, in units of the scale and of one.
__device__ __forceinline__ float2 zero_of(const LiveRowsArgs& args, std::int64_t entry, int fixed) {
    if (args.zeros_kind == static_cast<int>(layout_zero_points))
        return make_float2(-static_cast<float>(static_cast<const unsigned char*>(args.zeros)[entry]), 0.0f);
    if (args.zeros_kind == static_cast<int>(layout_minima))
        return make_float2(0.0f, __half2float(static_cast<const __half*>(args.zeros)[entry]));
    return make_float2(-static_cast<float>(fixed), 0.0f);
}

template <int bits, int most_tokens, bool is_grouped>
__global__ void __launch_bounds__(live_warps * 32, is_grouped&& most_tokens > 1 ? 2 : 4)
    live_rows_kernel(LiveRowsArgs args) {
    constexpr int spans = 16 / bits, chunk_columns = 512 / bits, fixed_zero = bits == 4 ? 8 : 1;
    constexpr unsigned mask = bits == 4 ? 0x0F0F0F0Fu : 0x03030303u;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const std::int64_t column0 = static_cast<std::int64_t>(blockIdx.x) * live_columns, column = column0 + lane;

    bool lives = false;
    if (column < args.columns) {
        if (args.bias) lives = !(load_element(args.bias, args.bias_dtype, column) * 0.0f == 0.0f);
#pragma unroll
        for (int t = 0; t < most_tokens; t++) {
            if (t >= args.tokens) continue;
            // A row of x that is not finite has the scale NaN.
            lives =
                lives || args.hidden[t * args.hidden_stride + column] != 0.0f || args.x_scales[t] != args.x_scales[t];
        }
    }
    unsigned live = __ballot_sync(0xffffffffu, lives);
    __syncthreads();  // every warp has read the gates before one of them writes products there
    for (int i = 0; live != 0; i++, live &= live - 1) {
        if (i % live_warps != warp) continue;
        const std::int64_t row = column0 + __ffs(static_cast<int>(live)) - 1;
        const unsigned char* const codes = args.codes + row * args.row_bytes;
        int exact[most_tokens] = {};
        float folded[most_tokens] = {};
        for (std::int64_t at = lane * 16; at < args.row_bytes; at += 512) {
            const uint4 w = ptx::load_once(reinterpret_cast<const uint4*>(codes + at));
            const std::int64_t first = at / 64 * chunk_columns;  // column of the chunk
            const int t4 = static_cast<int>(at % 64);            // 16 · the lane's place among the four of a chunk
#pragma unroll
            for (int pair = 0; pair < spans / 2; pair++) {
                const unsigned low = bits == 4   ? (pair ? w.z : w.x)
                                     : pair == 0 ? w.x
                                     : pair == 1 ? w.y
                                     : pair == 2 ? w.z
                                                 : w.w;
                const unsigned high = bits == 4 ? (pair ? w.w : w.y) : low >> 4;
                const unsigned four[4] = {low & mask, low >> bits & mask, high & mask, high >> bits & mask};
#pragma unroll
                for (int t = 0; t < most_tokens; t++) {
                    if (t >= args.tokens) continue;
                    const uint4 v =
                        __ldg(reinterpret_cast<const uint4*>(args.x + t * args.x_stride + first + pair * 64 + t4));
                    int sums[2] = {ptx::dp4a_u8s8(four[1], v.y, ptx::dp4a_u8s8(four[0], v.x, 0)),
                                   ptx::dp4a_u8s8(four[3], v.w, ptx::dp4a_u8s8(four[2], v.z, 0))};
                    if constexpr (!is_grouped) {
                        exact[t] += sums[0] + sums[1];
                        continue;
                    }
#pragma unroll
                    for (int odd = 0; odd < 2; odd++) {
                        const std::int64_t group = (first + pair * 64 + odd * 32) / args.group;
                        if (group >= args.groups) continue;  // padding: x is zero there
                        const float scale =
                            __half2float(static_cast<const __half*>(args.scales)[group * args.table_rows + row]);
                        folded[t] = fmaf(static_cast<float>(sums[odd]), scale, folded[t]);
                    }
                }
            }
        }
        if constexpr (is_grouped) {
            // The zeros' part, each group by one lane.
            for (std::int64_t group = lane; group < args.groups; group += 32) {
                const std::int64_t entry = group * args.table_rows + row;
                const float2 zero = zero_of(args, entry, fixed_zero);
                const float factor = fmaf(zero.x, __half2float(static_cast<const __half*>(args.scales)[entry]), zero.y);
#pragma unroll
                for (int t = 0; t < most_tokens; t++)
                    if (t < args.tokens)
                        folded[t] = fmaf(static_cast<float>(args.x_sums[t * args.groups + group]), factor, folded[t]);
            }
        }
#pragma unroll
        for (int t = 0; t < most_tokens; t++) {
            if (t >= args.tokens) continue;
            float up = 0;
            if constexpr (is_grouped) {
#pragma unroll
                for (int distance = 16; distance > 0; distance /= 2)
                    folded[t] += __shfl_xor_sync(0xffffffffu, folded[t], distance);
                up = folded[t] * args.x_scales[t];
            } else {
                const int total = __reduce_add_sync(0xffffffffu, exact[t]) - fixed_zero * args.x_sums[t];
                up = static_cast<float>(total) * (args.x_scales[t] * static_cast<const float*>(args.scales)[row]);
            }
            if (args.bias) up += load_element(args.bias, args.bias_dtype, row);
            if (lane == 0) args.hidden[t * args.hidden_stride + row] *= up;
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
