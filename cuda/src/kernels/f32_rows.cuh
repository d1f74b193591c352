// y = x · wᵀ in f32 throughout. One warp per output feature and 8 tokens; lanes share the depth, four columns at a time.
#pragma once

#include "kernels/elements.cuh"
#include "launch/dense.hpp"

namespace fastffn::cuda {
namespace {

constexpr int f32_warps = 8, f32_tokens = 8;

template <DType weights>
__device__ __forceinline__ float4 load_weights(const unsigned char* row, std::int64_t k) {
    if constexpr (weights == DType::f32) return __ldg(reinterpret_cast<const float4*>(row + 4 * k));
    const uint2 bits = __ldg(reinterpret_cast<const uint2*>(row + 2 * k));
    const auto half = [](unsigned word) { return __half2float(__ushort_as_half(static_cast<unsigned short>(word))); };
    return make_float4(half(bits.x & 0xffff), half(bits.x >> 16), half(bits.y & 0xffff), half(bits.y >> 16));
}

template <DType weights, bool is_gated>
__global__ void __launch_bounds__(f32_warps * 32) f32_rows_kernel(DenseArgs args) {
    constexpr int matrices = is_gated ? 2 : 1;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * f32_warps + threadIdx.x / 32;
    if (row >= args.out_features) return;  // no barrier follows
    const unsigned char* rows[matrices];
#pragma unroll
    for (int m = 0; m < matrices; m++)
        rows[m] = static_cast<const unsigned char*>(m ? args.w_gate : args.w) + row * args.w_stride;
    // Rows of w are padded to whole loads of 16 bytes, rows of x to row_bytes, 4 bytes an element.
    const std::int64_t depth = args.row_bytes / 4;
    for (std::int64_t token0 = static_cast<std::int64_t>(blockIdx.y) * f32_tokens; token0 < args.tokens;
         token0 += static_cast<std::int64_t>(gridDim.y) * f32_tokens) {
        float sums[matrices][f32_tokens] = {};
        for (std::int64_t k = lane * 4; k < depth; k += 128) {
            float4 w[matrices];
#pragma unroll
            for (int m = 0; m < matrices; m++) w[m] = load_weights<weights>(rows[m], k);
#pragma unroll
            for (int n = 0; n < f32_tokens; n++) {
                if (token0 + n >= args.tokens) continue;
                const float4 x = __ldg(reinterpret_cast<const float4*>(static_cast<const unsigned char*>(args.x) +
                                                                       (token0 + n) * args.x_stride + 4 * k));
#pragma unroll
                for (int m = 0; m < matrices; m++)
                    sums[m][n] = fmaf(w[m].w, x.w, fmaf(w[m].z, x.z, fmaf(w[m].y, x.y, fmaf(w[m].x, x.x, sums[m][n]))));
            }
        }
#pragma unroll
        for (int n = 0; n < f32_tokens; n++) {
#pragma unroll
            for (int m = 0; m < matrices; m++)
#pragma unroll
                for (int distance = 16; distance > 0; distance /= 2)
                    sums[m][n] += __shfl_xor_sync(0xffffffffu, sums[m][n], distance);
            if (lane != n || token0 + n >= args.tokens) continue;
            float up = sums[0][n], gate = is_gated ? sums[matrices - 1][n] : 0.0f;
            if (args.bias) up += load_element(args.bias, args.bias_dtype, row);
            if (is_gated && args.gate_bias) gate += load_element(args.gate_bias, args.gate_bias_dtype, row);
            const float y = is_gated ? gated(args.activation, gate, up) : activated(args.activation, up);
            store_element(args.y, args.y_dtype, (token0 + n) * args.y_stride + row, y);
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
