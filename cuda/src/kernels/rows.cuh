// Rows of x, converted or quantised, zeros behind their depth. One block per token, or several where there are few tokens.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/row_code.cuh"
#include "launch/rows.hpp"
#include "ptx/dependent.cuh"

namespace fastffn::cuda {
namespace {

constexpr int rows_threads = 256;

__global__ void __launch_bounds__(rows_threads) copy_rows_kernel(RowsArgs args, DType to) {
    ptx::let_next_launch_begin();
    for (std::int64_t token = blockIdx.x; token < args.tokens; token += gridDim.x) {
        unsigned char* const row = static_cast<unsigned char*>(args.rows) + token * args.row_stride;
        const std::int64_t elements = args.row_bytes / (to == DType::f32 ? 4 : 2);
        for (std::int64_t k = blockIdx.y * rows_threads + threadIdx.x; k < elements;
             k += static_cast<std::int64_t>(gridDim.y) * rows_threads) {
            const float value = k < args.depth ? load_element(args.x, args.dtype, token * args.x_stride + k) : 0.0f;
            store_element(row, to, k, value);
        }
    }
}

// Where column k of a row goes.
__device__ __forceinline__ std::int64_t interleaved_place(std::int64_t k) {
    return k / 64 * 64 + k % 32 / 8 * 16 + k % 64 / 32 * 8 + k % 8;
}

__global__ void __launch_bounds__(rows_threads) quantize_rows_kernel(QuantizeArgs args) {
    ptx::let_next_launch_begin();
    constexpr int warps = rows_threads / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    __shared__ float largest_of[warps], sum_of[warps];
    __shared__ int finite_of[warps];
    const RowsArgs& r = args.rows;
    for (std::int64_t token = blockIdx.x; token < r.tokens; token += gridDim.x) {
        float largest = 0, sum = 0;
        int finite = 1;
        for (std::int64_t k = threadIdx.x; k < r.depth; k += rows_threads) {
            const float magnitude = fabsf(load_element(r.x, r.dtype, token * r.x_stride + k));
            finite = finite && magnitude < __int_as_float(0x7f800000);
            largest = magnitude > largest ? magnitude : largest;
            sum += magnitude;
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
        if (args.sums)
            for (int g = static_cast<int>(threadIdx.x); g < args.groups; g += rows_threads)
                args.sums[token * args.groups + g] = 0;
        __syncthreads();
        largest = largest_of[0];
        sum = sum_of[0];
        finite = finite_of[0];
#pragma unroll
        for (int w = 1; w < warps; w++) {
            largest = largest_of[w] > largest ? largest_of[w] : largest;
            sum += sum_of[w];
            finite = finite && finite_of[w];
        }
        const RowCode code = row_code(args.rule, largest, sum, r.depth, finite != 0);
        if (threadIdx.x == 0) args.scales[token] = code.scale;
        signed char* const row = static_cast<signed char*>(r.rows) + token * r.row_stride;
        // Whole warps, so that 32 columns of one group are one sum; row_bytes of codes with sums is a multiple of 32.
        for (std::int64_t first = warp * 32; first < r.row_bytes; first += rows_threads) {
            const std::int64_t k = first + lane;
            int q = 0;
            if (finite && k < r.depth) {
                const float scaled = load_element(r.x, r.dtype, token * r.x_stride + k) * code.inverse;
                q = __float2int_rn(fminf(fmaxf(scaled, code.low), code.high));
            }
            if (k < r.row_bytes) row[args.interleaved ? interleaved_place(k) : k] = static_cast<signed char>(q);
            if (args.sums) {
                const int of_warp = __reduce_add_sync(0xffffffffu, q);
                const std::int64_t group = args.group ? first / args.group : 0;
                if (lane == 0 && of_warp != 0) atomicAdd(args.sums + token * args.groups + group, of_warp);
            }
        }
        __syncthreads();  // before the next token's sums
    }
}

}  // namespace
}  // namespace fastffn::cuda
