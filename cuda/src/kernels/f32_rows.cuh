// y = x · wᵀ in f32 throughout. One warp per output feature and 8 tokens; lanes share the depth, four columns at a time.
//
// Not on tensor cores: f16 weights meet whole f32 (or bf16) numbers here, as on the CPU. Sums of tf32 parts could have that: one part
// of an f16 weight, two of an f32 number, three products of two f32 numbers, each within 2^-21 of the exact one; but infinity would
// have to be kept from its own remainder, and who is after speed has weights of bf16, or f16 with x of f16.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/tokens.cuh"
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

template <DType weights, bool is_gated, class Tokens>
__global__ void __launch_bounds__(f32_warps * 32, 2) f32_rows_kernel(DenseArgs args, Tokens tokens, int tile_tokens) {
    constexpr int matrices = is_gated ? 2 : 1;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * f32_warps + threadIdx.x / 32;
    if (row >= args.out_features) return;  // no barrier follows
    // Rows of w are padded to whole loads of 16 bytes, rows of x to row_bytes, 4 bytes an element.
    const std::int64_t depth = args.row_bytes / 4;
    TokenTile tile = {};
    for (std::int64_t index = blockIdx.y; tokens.tile(index, tile_tokens, &tile); index += gridDim.y) {
        const unsigned char* rows[matrices];
#pragma unroll
        for (int m = 0; m < matrices; m++)
            rows[m] = of_matrix(m ? args.w_gate : args.w, tile, args.matrix_bytes) + row * args.w_stride;
        for (int token0 = 0; token0 < tile.count; token0 += f32_tokens) {
            float sums[matrices][f32_tokens] = {};
            for (std::int64_t k = lane * 4; k < depth; k += 128) {
                float4 w[matrices];
#pragma unroll
                for (int m = 0; m < matrices; m++) w[m] = load_weights<weights>(rows[m], k);
#pragma unroll
                for (int n = 0; n < f32_tokens; n++) {
                    if (!tokens.has(tile, token0 + n)) continue;
                    const float4 v =
                        __ldg(reinterpret_cast<const float4*>(static_cast<const unsigned char*>(args.x) +
                                                              tokens.x_row(tile, token0 + n) * args.x_stride + 4 * k));
#pragma unroll
                    for (int m = 0; m < matrices; m++)
                        sums[m][n] =
                            fmaf(w[m].w, v.w, fmaf(w[m].z, v.z, fmaf(w[m].y, v.y, fmaf(w[m].x, v.x, sums[m][n]))));
                }
            }
#pragma unroll
            for (int n = 0; n < f32_tokens; n++) {
#pragma unroll
                for (int m = 0; m < matrices; m++)
#pragma unroll
                    for (int distance = 16; distance > 0; distance /= 2)
                        sums[m][n] += __shfl_xor_sync(0xffffffffu, sums[m][n], distance);
                if (lane != n || !tokens.has(tile, token0 + n)) continue;
                const std::int64_t bias_row = tile.matrix * args.out_features + row;
                float up = sums[0][n], gate = is_gated ? sums[matrices - 1][n] : 0.0f;
                if (args.bias) up += load_element(args.bias, args.bias_dtype, bias_row);
                if (is_gated && args.gate_bias) gate += load_element(args.gate_bias, args.gate_bias_dtype, bias_row);
                const float y = is_gated ? gated(args.activation, gate, up) : activated(args.activation, up);
                store_element(args.y, args.y_dtype, (tile.first + token0 + n) * args.y_stride + row, y);
            }
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
