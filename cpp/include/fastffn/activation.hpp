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
};
constexpr int activation_count = 6;

}  // namespace fastffn
