// One dense product through a launcher, and how far it is from plain loops.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "launch/dense.hpp"
#include "reference.hpp"
#include "support.hpp"

namespace dense_problem {

using fastffn::Activation;
using fastffn::DType;
using fastffn::cuda::DenseArgs;
using fastffn::cuda::Product;
using reference::Matrix;
using support::Device;

struct Problem {
    Product product;
    std::int64_t tokens, out, depth;
    bool is_gated;
    Activation activation;
    DType y_dtype;
    bool biases;
    std::int64_t x_gap = 0, w_gap = 0, y_gap = 0;
};

inline DType dtype_of(Product product) {
    return product == Product::bf16 ? DType::bf16 : product == Product::f16 ? DType::f16 : DType::i8;
}

inline std::vector<float> random_floats(std::int64_t count, std::mt19937& random, float low, float high) {
    std::uniform_real_distribution<float> uniform(low, high);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = uniform(random);
    return values;
}

using Launcher = cudaError_t (*)(Product, const DenseArgs&, cudaStream_t);

// The largest error over its bound; more than 1 is wrong.
inline double worst(const Problem& p, Launcher launcher, unsigned seed, std::vector<unsigned char>* bits = nullptr,
                    double poison = 0) {
    std::mt19937 random(seed);
    const DType dtype = dtype_of(p.product);
    const float w_scale = 1 / std::sqrt(static_cast<float>(p.depth));
    Matrix x(p.tokens, p.depth, dtype, p.x_gap, random), w(p.out, p.depth, dtype, p.w_gap, random, w_scale),
        gate(p.out, p.depth, dtype, p.w_gap, random, w_scale);
    if (poison != 0 && p.tokens > 1) reference::store(x.at(1, p.depth / 2), dtype, static_cast<float>(poison));
    const bool scales = p.product == Product::int8;
    const auto x_scales = random_floats(p.tokens, random, 0.01f, 0.02f),
               w_scales = random_floats(p.out, random, 0.0005f, 0.002f),
               gate_scales = random_floats(p.out, random, 0.0005f, 0.002f);
    Matrix bias(1, p.out, DType::f32, 0, random), gate_bias(1, p.out, DType::bf16, 0, random);
    const std::int64_t y_stride = p.out + p.y_gap;
    const int y_bytes = reference::bytes_of(p.y_dtype);
    const std::vector<unsigned char> untouched(
        static_cast<std::size_t>(p.tokens ? ((p.tokens - 1) * y_stride + p.out) * y_bytes : 0), 0xA5);

    const Device<unsigned char> device_x(x.data), device_w(w.data), device_gate(gate.data), device_bias(bias.data),
        device_gate_bias(gate_bias.data);
    const Device<float> device_x_scales(x_scales), device_w_scales(w_scales), device_gate_scales(gate_scales);
    Device<unsigned char> y(untouched);
    DenseArgs args = {};
    args.x = device_x.data();
    args.x_stride = x.stride;
    args.w = device_w.data();
    args.w_gate = p.is_gated ? device_gate.data() : nullptr;
    args.row_bytes = w.row_bytes;
    args.w_stride = w.stride;
    if (scales) {
        args.x_scales = device_x_scales.data();
        args.w_scales = device_w_scales.data();
        args.w_gate_scales = device_gate_scales.data();
    }
    if (p.biases) {
        args.bias = device_bias.data();
        args.gate_bias = device_gate_bias.data();
        args.bias_dtype = DType::f32;
        args.gate_bias_dtype = DType::bf16;
    }
    args.y = y.data();
    args.y_stride = y_stride;
    args.y_dtype = p.y_dtype;
    args.tokens = p.tokens;
    args.out_features = p.out;
    args.activation = p.activation;
    if (launcher(p.product, args, nullptr) != cudaSuccess) return 1e300;
    const auto found = y.host();
    if (bits) *bits = found;
    double largest = 0;
    for (std::int64_t token = 0; token < p.tokens; token++)
        for (std::int64_t column = 0; column < (token + 1 < p.tokens ? y_stride : p.out); column++) {
            const unsigned char* const at = found.data() + (token * y_stride + column) * y_bytes;
            if (column >= p.out) {
                if (std::memcmp(at, untouched.data(), static_cast<std::size_t>(y_bytes)) != 0) return 1e299;
                continue;
            }
            const auto sum = [&](const Matrix& m, const std::vector<float>& m_scales, const Matrix& b) {
                reference::Value v = reference::dot(x, token, m, column);
                if (scales)
                    v = reference::scaled(v, static_cast<double>(x_scales[static_cast<std::size_t>(token)]) *
                                                 static_cast<double>(m_scales[static_cast<std::size_t>(column)]));
                return p.biases ? reference::plus(v, b.value(0, column)) : v;
            };
            const reference::Value up = sum(w, w_scales, bias);
            const reference::Value expected =
                p.is_gated ? reference::through_gated(p.activation, sum(gate, gate_scales, gate_bias), up)
                           : reference::through(p.activation, up);
            const double value = reference::load(at, p.y_dtype);
            if (std::isnan(expected.value) || std::isnan(value)) {
                if (std::isnan(expected.value) != std::isnan(value)) return 1e298;
                continue;
            }
            if (std::isinf(expected.value) || std::isinf(value)) {
                if (expected.value != value) return 1e297;
                continue;
            }
            largest = std::fmax(largest, std::fabs(value - expected.value) /
                                             (expected.error + reference::rounding(p.y_dtype, expected.value)));
        }
    return largest;
}

inline std::string name(const Problem& p) {
    return "product " + std::to_string(static_cast<int>(p.product)) + ", " + std::to_string(p.tokens) + " x " +
           std::to_string(p.depth) + " -> " + std::to_string(p.out) + (p.is_gated ? " gated" : "") + ", activation " +
           std::to_string(static_cast<int>(p.activation)) + ", y " + std::to_string(static_cast<int>(p.y_dtype)) +
           ": " + emulator::last_failure() + " ";
}

}  // namespace dense_problem
