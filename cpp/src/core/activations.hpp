// exp, erfc and the activations on registers of f32, written once for every vector width.
//
// V is the F32 of simd_avx2.hpp or simd_avx512.hpp, found together with its operations by argument-dependent lookup.
// Relative errors, measured against 40-digit arithmetic over the whole range: exp 1.2e-7, erfc 1.3e-7 up to z = 2 and
// growing with z² · 6e-8 behind it (the exponent's own rounding).
#pragma once

#include "fastffn/activation.hpp"

namespace fastffn {
namespace {

// first · x^n + … + last, coefficients from the highest power down.
template <class V>
inline V polynomial(V, V sum) {
    return sum;
}
template <class V, class... Rest>
inline V polynomial(V x, V sum, float next, Rest... rest) {
    return polynomial(x, multiply_add(sum, x, V(next)), rest...);
}

// e^x = 2^n · e^r with n = round(x / ln 2), |r| <= ln 2 / 2; Taylor to r^7, remainder below 6e-9.
template <class V>
inline V exponential(V x) {
    // Beyond these e^x is infinity or less than half the smallest subnormal. The order keeps NaN.
    x = minimum(V(89.0f), maximum(V(-104.0f), x));
    const V n = nearest_integer(x * V(1.44269504088896341f));
    V r = negative_multiply_add(n, V(0.693359375f), x);  // ln 2 in two parts: this one has 9 bits, so n · it is exact
    r = negative_multiply_add(n, V(-2.12194440e-4f), r);
    const V power =
        polynomial(r, V(1.0f / 5040), 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f);
    return scale_by_power(power, n);
}

// erfc(z) for z >= 0 as t · exp(-z² + P(t)), t = 1 / (1 + z/2). P: degree 9, interpolating log(erfc(z) e^(z²) / t) at
// the Chebyshev points of z in [0, 10.5]; largest error of P 5.5e-8.
template <class V>
inline V complementary_error(V z) {
    const V t = V(1.0f) / multiply_add(z, V(0.5f), V(1.0f));
    const V p = polynomial(t, V(0.152279483848f), -0.720417711407f, 1.24870898697f, -0.81681912844f, 0.0176640586061f,
                           -0.0496802676887f, 0.0515081469734f, 0.383202547783f, 0.999020345926f, -1.2654664097f);
    return t * exponential(negative_multiply_add(z, z, p));
}

template <Activation activation, class V>
inline V activated(V x) {
    if constexpr (activation == Activation::relu) return maximum(V(0.0f), x);
    if constexpr (activation == Activation::relu2) {
        const V positive = maximum(V(0.0f), x);
        return positive * positive;
    }
    if constexpr (activation == Activation::gelu) {
        // x · erfc(-x/√2) / 2 for x < 0, and x minus the mirrored tail for x >= 0: no cancellation on either side. The
        // tail is 0 long before 30; the bound keeps infinity · 0 out of the positive side (the order keeps NaN).
        const V half_tail = V(0.5f) * complementary_error(absolute(x) * V(0.70710678118654752f));
        return select_negative(x, x * half_tail, negative_multiply_add(minimum(V(30.0f), x), half_tail, x));
    }
    if constexpr (activation == Activation::gelu_tanh) {
        const V cubic = x * x * x;
        const V twice = V(-1.5957691216057308f) * multiply_add(cubic, V(0.044715f), x);
        return x / (V(1.0f) + exponential(twice));
    }
    if constexpr (activation == Activation::silu) return x / (V(1.0f) + exponential(V(0.0f) - x));
    return x;
}

}  // namespace
}  // namespace fastffn
