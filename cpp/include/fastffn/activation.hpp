// Activation: what happens between the two projections.
#pragma once

#include <cstdint>

namespace fastffn {

enum class Activation : std::uint8_t {
    identity = 0,
    relu = 1,
    relu2 = 2,      // max(x, 0)²
    gelu = 3,       // x · Φ(x), with the exact error function
    gelu_tanh = 4,  // its tanh approximation
    silu = 5,       // x · sigmoid(x)
    // Gated layers only: (min(max(up, -7), 7) + 1) · g · sigmoid(1.702 g) with g = min(gate, 7); GPT-OSS's experts.
    swiglu_clamped = 6,
};
constexpr int activation_count = 7;

// Whether an activation has no meaning without a gate projection.
constexpr bool needs_gate(Activation activation) { return activation == Activation::swiglu_clamped; }

}  // namespace fastffn
