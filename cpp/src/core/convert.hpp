// Scalar conversions between f32 and the 16-bit floats; the vector ones agree with these bit for bit, but for
// VCVTNEPS2BF16, which turns subnormals into zero.
// Everything is in an anonymous namespace so that files compiled for one instruction set keep their copy to themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fastffn/dtype.hpp"

namespace fastffn {
namespace {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float bf16_to_f32(std::uint16_t value) { return float_of(static_cast<std::uint32_t>(value) << 16); }

// Round to nearest, ties to even; NaN stays NaN (made quiet).
inline std::uint16_t f32_to_bf16(float value) {
    const std::uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
    return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float f16_to_f32(std::uint16_t value) {
    const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000u) << 16;
    const std::uint32_t exponent = (value >> 10) & 0x1fu, mantissa = value & 0x3ffu;
    if (exponent == 0x1f) return float_of(sign | 0x7f800000u | (mantissa ? 0x400000u | (mantissa << 13) : 0));
    if (exponent) return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * float_of(0x33800000u);  // 2^-24: exact
    return float_of(sign | bits_of(magnitude));
}

// Round to nearest, ties to even; overflow becomes infinity, NaN stays NaN.
inline std::uint16_t f32_to_f16(float value) {
    const std::uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // >= 65536
    if (magnitude < 0x38800000u) {
        // Below 2^-14: adding 0.5 puts the wanted 2^-24 step at the end of the mantissa, so the addition rounds.
        const float shifted = float_of(magnitude) + 0.5f;
        return static_cast<std::uint16_t>(sign | (bits_of(shifted) - bits_of(0.5f)));
    }
    const std::uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<std::uint16_t>(sign | (rounded >> 13));  // may carry into infinity, as it should
}

inline float load_f32(const std::byte* src, DType dtype) {
    if (dtype == DType::f32) {
        float value;
        std::memcpy(&value, src, 4);
        return value;
    }
    std::uint16_t half;
    std::memcpy(&half, src, 2);
    return dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
}

inline void store_f32(std::byte* dst, DType dtype, float value) {
    if (dtype == DType::f32) {
        std::memcpy(dst, &value, 4);
        return;
    }
    const std::uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
    std::memcpy(dst, &half, 2);
}

inline std::int64_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

}  // namespace
}  // namespace fastffn
