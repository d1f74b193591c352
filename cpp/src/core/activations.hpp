// exp, erfc and the activations on registers of f32, written once for every vector width.
//
// V is the F32 of simd_avx2.hpp or simd_avx512.hpp, found together with its operations by argument-dependent lookup.
// Relative errors, measured against 40-digit arithmetic over the whole range: exp 1.2e-7, erfc 1.3e-7 up to z = 2 and
// growing with z² · 6e-8 behind it (the exponent's own rounding).
#pragma once

#include "fastffn/activation.hpp"

namespace fastffn {
namespace {

// Polynomials c0 + c1·x + … by Estrin's scheme. Horner's chain of dependent multiply-adds fills the scheduler with waiting
// instructions: gelu took 32 cycles per 16 floats with it and takes 22 this way (Zen 5).
template <class V>
inline V polynomial6(V x, float c0, float c1, float c2, float c3, float c4, float c5, float c6) {
    const V x2 = x * x;
    const V low = multiply_add(x2, multiply_add(x, V(c3), V(c2)), multiply_add(x, V(c1), V(c0)));
    const V high = multiply_add(x2, V(c6), multiply_add(x, V(c5), V(c4)));
    return multiply_add(x2 * x2, high, low);
}

template <class V>
inline V polynomial8(V x, float c0, float c1, float c2, float c3, float c4, float c5, float c6, float c7, float c8) {
    const V x2 = x * x, x4 = x2 * x2;
    const V low = multiply_add(x2, multiply_add(x, V(c3), V(c2)), multiply_add(x, V(c1), V(c0)));
    const V high = multiply_add(x2, multiply_add(x, V(c7), V(c6)), multiply_add(x, V(c5), V(c4)));
    return multiply_add(x4, multiply_add(x4, V(c8), high), low);
}

// e^x = 2^n · e^r with n = round(x / ln 2), |r| <= ln 2 / 2. The polynomial interpolates e^r at Chebyshev points; its
// relative error is 2.6e-9.
template <class V>
inline V exponential(V x) {
    // Beyond these e^x is infinity or less than half the smallest subnormal. The order keeps NaN.
    x = minimum(V(89.0f), maximum(V(-104.0f), x));
    const V n = nearest_integer(x * V(1.44269504088896341f));
    V r = negative_multiply_add(n, V(0.693359375f), x);  // ln 2 in two parts: this one has 9 bits, so n · it is exact
    r = negative_multiply_add(n, V(-2.12194440e-4f), r);
    return scale_by_power(polynomial6(r, 1.0f, 1.000000038f, 0.5000000047f, 0.1666641551f, 0.0416663529f,
                                      0.008375126398f, 0.001394110843f),
                          n);
}

// erfc(z) for z >= 0 as t · Q(t) · exp(-z²), t = 1 / (1 + z/2). Q, degree 8, interpolates erfc(z) e^(z²) / t at the
// Chebyshev points of z in [0, 10.5] with a relative error of 5.4e-8, and does not wait for the exponential.
template <class V>
inline V complementary_error(V z) {
    const V t = V(1.0f) / multiply_add(z, V(0.5f), V(1.0f));
    const V q = polynomial8(t, 0.2820815397f, 0.2824671659f, 0.2423957219f, 0.2056163428f, -0.03378071296f,
                            0.2886941302f, -0.4966269289f, 0.289165503f, -0.06001280511f);
    return t * q * exponential(V(0.0f) - z * z);
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

// Activation::swiglu_clamped, of both projections. The order of the bounds keeps NaN.
template <class V>
inline V clamped_swiglu(V gate, V up) {
    gate = minimum(V(7.0f), gate);
    up = minimum(V(7.0f), maximum(V(-7.0f), up));
    return (up + V(1.0f)) * (gate / (V(1.0f) + exponential(V(-1.702f) * gate)));
}

}  // namespace
}  // namespace fastffn
