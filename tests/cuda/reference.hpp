// The oracle of kernel tests: plain loops in double over the very numbers that the kernel gets, and how far a result may be
// from that.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "core/convert.hpp"
#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"

namespace reference {

using fastffn::Activation;
using fastffn::DType;

inline double activated(Activation activation, double x) {
    switch (activation) {
        case Activation::relu: return x < 0 ? 0 : x;
        case Activation::relu2: return x < 0 ? 0 : x * x;
        case Activation::gelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
        case Activation::gelu_tanh: return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case Activation::silu: return x / (1 + std::exp(-x));
        default: return x;
    }
}

inline double gated(Activation activation, double gate, double up) {
    if (activation != Activation::swiglu_clamped) return activated(activation, gate) * up;
    gate = std::fmin(gate, 7);
    up = std::fmax(std::fmin(up, 7), -7);
    return (up + 1) * gate / (1 + std::exp(-1.702 * gate));
}

// A sum and how far f32 arithmetic may be from it.
struct Value {
    double value, error;
};

// Through an activation: |f'| is at most 1.13 (gelu), but 2x for relu2; 2^-20: expf, erfcf and what is around them.
inline Value through(Activation activation, Value x) {
    const double y = activated(activation, x.value);
    const double slope = activation == Activation::relu2 ? 2 * (std::fabs(x.value) + x.error) : 1.2;
    return {y, slope * x.error + std::ldexp(std::fabs(y), -20)};
}

inline Value through_gated(Activation activation, Value gate, Value up) {
    if (activation == Activation::swiglu_clamped) {
        const double y = gated(activation, gate.value, up.value);
        return {y, 1.2 * gate.error * (std::fabs(up.value) + 1 + up.error) + 7.1 * up.error +
                       std::ldexp(std::fabs(y), -19)};
    }
    const Value h = through(activation, gate);
    const double y = h.value * up.value;
    return {y, std::fabs(h.value) * up.error + std::fabs(up.value) * h.error + h.error * up.error +
                   std::ldexp(std::fabs(y), -22)};
}

// Half a unit in the last place of the type, and its smallest subnormal.
inline double rounding(DType dtype, double value) {
    const double magnitude = std::fabs(value);
    if (dtype == DType::bf16) return std::ldexp(magnitude, -8) + 1e-38;
    if (dtype == DType::f16) return std::ldexp(magnitude, -11) + std::ldexp(1.0, -25);
    return std::ldexp(magnitude, -24) + 1e-38;
}

inline int bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : dtype == DType::i8 ? 1 : 2; }

inline double load(const unsigned char* data, DType dtype) {
    if (dtype == DType::i8) return *reinterpret_cast<const std::int8_t*>(data);
    if (dtype == DType::f32) {
        float f;
        std::memcpy(&f, data, 4);
        return f;
    }
    std::uint16_t bits;
    std::memcpy(&bits, data, 2);
    return dtype == DType::bf16 ? fastffn::bf16_to_f32(bits) : fastffn::f16_to_f32(bits);
}

inline void store(unsigned char* data, DType dtype, float value) {
    if (dtype == DType::i8) {
        *reinterpret_cast<std::int8_t*>(data) = static_cast<std::int8_t>(value);
    } else if (dtype == DType::f32) {
        std::memcpy(data, &value, 4);
    } else {
        const std::uint16_t bits = dtype == DType::bf16 ? fastffn::f32_to_bf16(value) : fastffn::f32_to_f16(value);
        std::memcpy(data, &bits, 2);
    }
}

// [rows, depth] of random numbers in rows of `stride` bytes; what pads a row to `row_bytes` is zero, what follows is NaN.
struct Matrix {
    std::int64_t rows, depth, row_bytes, stride;
    DType dtype;
    std::vector<unsigned char> data;

    Matrix(std::int64_t rows_, std::int64_t depth_, DType dtype_, std::int64_t gap, std::mt19937& random,
           float scale = 1)
        : rows(rows_),
          depth(depth_),
          row_bytes((depth_ * bytes_of(dtype_) + 15) / 16 * 16),
          stride(row_bytes + gap),
          dtype(dtype_) {
        data.assign(static_cast<std::size_t>(rows ? (rows - 1) * stride + row_bytes : 0), 0xFF);
        std::normal_distribution<float> normal(0, scale);
        for (std::int64_t r = 0; r < rows; r++) {
            std::memset(data.data() + r * stride, 0, static_cast<std::size_t>(row_bytes));
            for (std::int64_t k = 0; k < depth; k++)
                store(at(r, k), dtype,
                      dtype == DType::i8 ? static_cast<float>(static_cast<int>(random() % 255) - 127) : normal(random));
        }
    }
    unsigned char* at(std::int64_t r, std::int64_t k) { return data.data() + r * stride + k * bytes_of(dtype); }
    double value(std::int64_t r, std::int64_t k) const {
        return load(data.data() + r * stride + k * bytes_of(dtype), dtype);
    }
};

// Row of x times row of w. Sums of f32 in any order, cut off rather than rounded: depth · 2^-23 of the sum of magnitudes.
inline Value dot(const Matrix& x, std::int64_t token, const Matrix& w, std::int64_t row) {
    double sum = 0, magnitude = 0;
    for (std::int64_t k = 0; k < w.depth; k++) {
        const double product = x.value(token, k) * w.value(row, k);
        sum += product;
        magnitude += std::fabs(product);
    }
    return {sum, x.dtype == DType::i8 ? 0 : magnitude * std::ldexp(static_cast<double>(w.depth + 8), -23)};
}

inline Value scaled(Value v, double scale) {
    return {v.value * scale, v.error * std::fabs(scale) + std::ldexp(std::fabs(v.value * scale), -22)};
}
inline Value plus(Value v, double bias) {
    return {v.value + bias, v.error + std::ldexp(std::fabs(v.value) + std::fabs(bias), -23)};
}

}  // namespace reference
