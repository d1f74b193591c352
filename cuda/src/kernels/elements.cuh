// Loads and stores of one element whose type is known at run time, for epilogues; and the activations.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"

namespace fastffn::cuda {
namespace {

__device__ __forceinline__ float load_element(const void* data, DType dtype, std::int64_t i) {
    if (dtype == DType::f32) return static_cast<const float*>(data)[i];
    if (dtype == DType::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    return __half2float(static_cast<const __half*>(data)[i]);
}

__device__ __forceinline__ void store_element(void* data, DType dtype, std::int64_t i, float value) {
    if (dtype == DType::f32) static_cast<float*>(data)[i] = value;
    else if (dtype == DType::bf16) static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
    else static_cast<__half*>(data)[i] = __float2half_rn(value);
}

// Eight elements, 16-byte aligned.
__device__ __forceinline__ void store_vector(void* data, DType dtype, std::int64_t vector, const float (&v)[8]) {
    if (dtype == DType::f32) {
        float4* const at = static_cast<float4*>(data) + 2 * vector;
        at[0] = make_float4(v[0], v[1], v[2], v[3]);
        at[1] = make_float4(v[4], v[5], v[6], v[7]);
        return;
    }
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const unsigned short low = dtype == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v[2 * i]))
                                                        : __half_as_ushort(__float2half_rn(v[2 * i]));
        const unsigned short high = dtype == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(v[2 * i + 1]))
                                                         : __half_as_ushort(__float2half_rn(v[2 * i + 1]));
        words[i] = low | static_cast<unsigned>(high) << 16;
    }
    static_cast<uint4*>(data)[vector] = make_uint4(words[0], words[1], words[2], words[3]);
}

// Comparisons are written so that NaN stays NaN.
__device__ __forceinline__ float activated(Activation activation, float x) {
    switch (activation) {
        case Activation::relu: return x < 0.0f ? 0.0f : x;
        case Activation::relu2: return x < 0.0f ? 0.0f : x * x;
        case Activation::gelu: {
            // As on the CPU: no cancellation on either side, and no infinity · 0.
            const float half_tail = 0.5f * erfcf(fabsf(x) * 0.70710678118654752f);
            return x < 0.0f ? (x < -30.0f ? -0.0f : x * half_tail) : x - (x > 30.0f ? 30.0f : x) * half_tail;
        }
        case Activation::gelu_tanh: {
            const float twice = -1.5957691216057308f * (x * x * x * 0.044715f + x);
            return x / (1.0f + expf(twice));
        }
        case Activation::silu: return x / (1.0f + expf(-x));
        default: return x;
    }
}

__device__ __forceinline__ float gated(Activation activation, float gate, float up) {
    if (activation != Activation::swiglu_clamped) return activated(activation, gate) * up;
    gate = gate > 7.0f ? 7.0f : gate;
    up = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
    return (up + 1.0f) * (gate / (1.0f + expf(-1.702f * gate)));
}

}  // namespace
}  // namespace fastffn::cuda
