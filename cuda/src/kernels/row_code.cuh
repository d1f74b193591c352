// How a row becomes integers: q = clamp(nearest_even(x · inverse), low, high), x ≈ q · scale.
#pragma once

#include "launch/rows.hpp"

namespace fastffn::cuda {
namespace {

struct RowCode {
    float inverse, scale, low, high;
};

__device__ __forceinline__ RowCode row_code(RowRule rule, float largest, float sum, std::int64_t depth, bool finite) {
    const bool four_bits = rule == RowRule::mean4 || rule == RowRule::mean4_int4;
    const float low = four_bits ? -8.0f : -127.0f, high = four_bits ? 7.0f : 127.0f;
    if (!finite) return {0.0f, __int_as_float(0x7fffffff), low, high};
    const float floor = rule == RowRule::ternary || rule == RowRule::mean4 ? 1e-5f : 1e-35f;
    if (four_bits) {
        const float mean = sum / static_cast<float>(depth);
        return {2.6457513f / (mean + floor), mean / 2.6457513f, low, high};
    }
    if (rule == RowRule::int8 && largest < floor) return {0.0f, 0.0f, low, high};
    const float gamma = largest > floor ? largest : floor;
    return {127.0f / gamma, gamma / 127.0f, low, high};
}

}  // namespace
}  // namespace fastffn::cuda
