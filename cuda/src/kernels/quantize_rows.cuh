// Rows of x quantised in one pass: a thread keeps up to 5 · 8 columns in registers between the largest magnitude and the codes. One
// block per token, of as many threads as its depth has eights, so that a token's whole row is one load away. rows.cuh has the
// kernel for rows that do not fit.
#pragma once

#include "kernels/rows.cuh"

namespace fastffn::cuda {
namespace {

constexpr int quantize_units = 5, quantize_threads = 768;

// Eight columns from k on; what lies behind the depth is 0. x is aligned to 16 bytes or is_aligned is false.
__device__ __forceinline__ void load_eight(const RowsArgs& r, bool is_aligned, std::int64_t token, std::int64_t k,
                                           float (&v)[8]) {
    const std::int64_t at = token * r.x_stride + k;
    if (is_aligned && k + 8 <= r.depth) {
        if (r.dtype == DType::f32) {
            const auto* const x = reinterpret_cast<const float4*>(static_cast<const float*>(r.x) + at);
            const float4 low = x[0], high = x[1];
            v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
            v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
            return;
        }
        const uint4 pairs = *reinterpret_cast<const uint4*>(static_cast<const unsigned short*>(r.x) + at);
        const unsigned words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const auto bits = static_cast<unsigned short>(words[i / 2] >> 16 * (i % 2));
            v[i] = r.dtype == DType::bf16 ? __bfloat162float(__ushort_as_bfloat16(bits))
                                          : __half2float(__ushort_as_half(bits));
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = k + i < r.depth ? load_element(r.x, r.dtype, at + i) : 0.0f;
}

__global__ void __launch_bounds__(quantize_threads) quantize_in_registers_kernel(QuantizeArgs args, bool is_aligned) {
    ptx::let_next_launch_begin();
    const RowsArgs& r = args.rows;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    __shared__ float largest_of[32], sum_of[32];
    __shared__ int finite_of[32], codes_of[32];
    for (std::int64_t token = blockIdx.x; token < r.tokens; token += gridDim.x) {
        float v[quantize_units][8];
        float largest = 0, sum = 0;
        int finite = 1;
#pragma unroll
        for (int u = 0; u < quantize_units; u++) {
            const std::int64_t k = 8 * (threadIdx.x + static_cast<std::int64_t>(u) * blockDim.x);
            if (k >= r.row_bytes) continue;
            load_eight(r, is_aligned, token, k, v[u]);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float magnitude = fabsf(v[u][i]);
                finite = finite && magnitude < __int_as_float(0x7f800000);
                largest = magnitude > largest ? magnitude : largest;
                sum += magnitude;
            }
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, largest, distance);
            largest = other > largest ? other : largest;
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        finite = __all_sync(0xffffffffu, finite);
        if (lane == 0) {
            largest_of[warp] = largest;
            sum_of[warp] = sum;
            finite_of[warp] = finite;
        }
        __syncthreads();
        largest = lane < warps ? largest_of[lane] : 0;
        sum = lane < warps ? sum_of[lane] : 0;
        finite = __all_sync(0xffffffffu, lane < warps ? finite_of[lane] : 1);
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, largest, distance);
            largest = other > largest ? other : largest;
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        const RowCode code = row_code(args.rule, largest, sum, r.depth, finite != 0);
        if (threadIdx.x == 0) args.scales[token] = code.scale;

        signed char* const row = static_cast<signed char*>(r.rows) + token * r.row_stride;
        int all = 0;
#pragma unroll
        for (int u = 0; u < quantize_units; u++) {
            const std::int64_t first = 8 * static_cast<std::int64_t>(u) * blockDim.x, k = first + 8 * threadIdx.x;
            if (first >= r.row_bytes) break;  // uniform: shuffles follow
            unsigned words[2] = {};
            if (finite && k < r.row_bytes) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const float scaled = v[u][i] * code.inverse;
                    const int q = __float2int_rn(fminf(fmaxf(scaled, code.low), code.high));
                    words[i / 4] |= (static_cast<unsigned>(q) & 255u) << 8 * (i % 4);
                }
            }
            if (k < r.row_bytes)
                *reinterpret_cast<uint2*>(row + (args.interleaved ? interleaved_place(k) : k)) =
                    make_uint2(words[0], words[1]);
            int codes =
                __dp4a(static_cast<int>(words[0]), 0x01010101, __dp4a(static_cast<int>(words[1]), 0x01010101, 0));
            if (!args.group) {
                all += codes;
                continue;
            }
            // 4 to 32 neighbours have a group's columns.
            for (int distance = 1; distance < static_cast<int>(args.group) / 8; distance *= 2)
                codes += __shfl_xor_sync(0xffffffffu, codes, distance);
            if (args.sums && k < r.depth && k % args.group == 0)
                args.sums[token * args.groups + k / args.group] = codes;
        }
        if (args.sums && !args.group) {
            all = __reduce_add_sync(0xffffffffu, all);
            if (lane == 0) codes_of[warp] = all;
            __syncthreads();
            if (warp == 0) {
                all = __reduce_add_sync(0xffffffffu, lane < warps ? codes_of[lane] : 0);
                if (lane == 0) args.sums[token] = all;
            }
        }
        __syncthreads();  // before the next token's
    }
}

}  // namespace
}  // namespace fastffn::cuda
