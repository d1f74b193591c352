// activate and store of elementwise.hpp, written once; each instruction set's file includes it after its F32.
#pragma once

#include "core/activations.hpp"
#include "core/convert.hpp"
#include "core/elementwise.hpp"

namespace fastffn {
namespace {

template <class V, Activation activation, bool gated>
void activate_rows(const ActivateArgs& a) {
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const float* up = a.up + r * a.stride;
        const float* gate = gated ? a.gate + r * a.stride : nullptr;
        float* hidden = a.hidden + r * a.hidden_stride;
        for (std::int64_t c = 0; c < a.cols; c += V::width) {
            V u = V::load(up + c);
            if (a.up_bias) u = u + V::load(a.up_bias + c);
            if constexpr (gated) {
                V g = V::load(gate + c);
                if (a.gate_bias) g = g + V::load(a.gate_bias + c);
                if constexpr (activation == Activation::swiglu_clamped) store(hidden + c, clamped_swiglu(g, u));
                else store(hidden + c, activated<activation>(g) * u);
            } else {
                store(hidden + c, activated<activation>(u));
            }
        }
    }
}

template <class V, Activation activation>
void activate_either(const ActivateArgs& a) {
    if (a.gate) activate_rows<V, activation, true>(a);
    else activate_rows<V, activation, false>(a);
}

template <class V>
void activate_any(const ActivateArgs& a) {
    switch (a.activation) {
        case Activation::identity: return activate_either<V, Activation::identity>(a);
        case Activation::relu: return activate_either<V, Activation::relu>(a);
        case Activation::relu2: return activate_either<V, Activation::relu2>(a);
        case Activation::gelu: return activate_either<V, Activation::gelu>(a);
        case Activation::gelu_tanh: return activate_either<V, Activation::gelu_tanh>(a);
        case Activation::silu: return activate_either<V, Activation::silu>(a);
        case Activation::swiglu_clamped: return activate_rows<V, Activation::swiglu_clamped, true>(a);
    }
}

template <class V, DType dtype>
void store_rows(const StoreArgs& a) {
    constexpr std::int64_t bytes = dtype == DType::f32 ? 4 : 2;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const float* row = a.tile + r * a.tile_stride;
        std::byte* dst = a.dst + r * a.dst_stride;
        for (std::int64_t c = 0; c < a.cols; c += V::width) {
            V value = V::load(row + c);
            if (a.bias) value = value + V::load(a.bias + c);
            store_as(dst + c * bytes, dtype, value, a.cols - c);
        }
    }
}

template <class V, bool weighted>
void accumulate_rows(const AccumulateArgs& a) {
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const float* row = a.tile + r * a.tile_stride;
        float* sums = a.sums + a.tokens[r] * a.token_stride;
        const V weight(weighted ? a.weights[r] : 1.0f);
        for (std::int64_t p = 0; p < a.panels; ++p)
            for (std::int64_t c = 0; c < panel_columns; c += V::width) {
                V value = V::load(row + p * panel_columns + c);
                if (a.bias) value = value + V::load(a.bias + p * panel_columns + c);
                float* sum = sums + p * a.panel_stride + c;
                if constexpr (weighted) store(sum, multiply_add(weight, value, V::load(sum)));
                else store(sum, V::load(sum) + value);
            }
    }
}

template <class V>
void accumulate_any(const AccumulateArgs& a) {
    if (a.weights) accumulate_rows<V, true>(a);
    else accumulate_rows<V, false>(a);
}

// Sixteen partial sums whatever the registers' width, added up in pairs.
template <class V>
float dot_any(const std::byte* x, DType dtype, const float* v, std::int64_t cols) {
    constexpr int registers = static_cast<int>(panel_columns / V::width);
    const std::int64_t bytes = element_bytes(dtype), whole = cols / panel_columns * panel_columns;
    alignas(64) float lanes[panel_columns] = {}, last[panel_columns] = {};
    for (std::int64_t c = whole; c < cols; ++c) last[c - whole] = v[c];
    for (int i = 0; i < registers; ++i) {
        V sum(0.0f);
        std::int64_t c = i * V::width;
        for (; c < whole; c += panel_columns)
            sum = multiply_add(V::load_as(x + c * bytes, dtype, V::width), V::load(v + c), sum);
        if (c < cols) sum = multiply_add(V::load_as(x + c * bytes, dtype, cols - c), V::load(last + i * V::width), sum);
        store(lanes + i * V::width, sum);
    }
    for (int half = static_cast<int>(panel_columns / 2); half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

template <class V>
void add_rows(const AddArgs& a) {
    for (std::int64_t r = 0; r < a.rows; ++r) {
        float* sums = a.sums + r * a.sums_stride;
        const float* row = a.tile + r * a.tile_stride;
        for (std::int64_t c = 0; c < a.cols; c += V::width) store(sums + c, V::load(sums + c) + V::load(row + c));
    }
}

// Σ x² in f64, 16 lanes whatever the registers' width. The square of an f32 is exact there.
template <class V>
double sum_of_squares(const float* x, std::int64_t cols) {
    constexpr int registers = static_cast<int>(panel_columns / V::width);
    typename V::F64 sums[2 * registers];
    for (int i = 0; i < 2 * registers; ++i) sums[i] = V::F64::zero();
    for (std::int64_t c = 0; c < cols; c += panel_columns)
#pragma GCC unroll 2
        for (int i = 0; i < registers; ++i) {
            const std::int64_t at = c + i * V::width;
            if (at >= cols) break;
            const V value = cols - at >= V::width
                                ? V::load(x + at)
                                : V::load_as(reinterpret_cast<const std::byte*>(x + at), DType::f32, cols - at);
            sums[2 * i] = add_square(sums[2 * i], low_half(value));
            sums[2 * i + 1] = add_square(sums[2 * i + 1], high_half(value));
        }
    alignas(64) double lanes[panel_columns];
    for (int i = 0; i < 2 * registers; ++i) store(lanes + i * (V::width / 2), sums[i]);
    for (int half = static_cast<int>(panel_columns / 2); half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

template <class V, bool scales>
void multiply_by_gamma(float* x, std::int64_t cols, float scale, const std::byte* gamma, DType dtype) {
    const std::int64_t bytes = element_bytes(dtype);
    for (std::int64_t c = 0; c < cols; c += V::width) {
        V value = V::load_as(reinterpret_cast<const std::byte*>(x + c), DType::f32, cols - c);
        if constexpr (scales) value = value * V(scale);
        store_as(reinterpret_cast<std::byte*>(x + c), DType::f32,
                 value * V::load_as(gamma + c * bytes, dtype, cols - c), cols - c);
    }
}

template <class V>
void normalize_rows(const NormalizeArgs& a) {
    for (std::int64_t r = 0; r < a.count; ++r) {
        float* x = a.rows + r * a.stride;
        const float scale = inverse_rms(sum_of_squares<V>(x, a.cols), a.mean_cols, a.eps);
        multiply_by_gamma<V, true>(x, a.cols, scale, a.gamma, a.gamma_dtype);
    }
}

template <class V>
void square_rows(const SquaresArgs& a) {
    for (std::int64_t r = 0; r < a.count; ++r) {
        float* x = a.rows + r * a.stride;
        a.squares[r * a.squares_stride] = sum_of_squares<V>(x, a.cols);
        multiply_by_gamma<V, false>(x, a.cols, 1.0f, a.gamma, a.gamma_dtype);
    }
}

template <class V>
void store_any(const StoreArgs& a) {
    if (a.dtype == DType::f32) return store_rows<V, DType::f32>(a);
    if (a.dtype == DType::f16) return store_rows<V, DType::f16>(a);
    return store_rows<V, DType::bf16>(a);
}

}  // namespace
}  // namespace fastffn
