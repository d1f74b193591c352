// Activations and stores as plain loops: the specification the vector versions are tested against.
#include <cmath>

#include "core/convert.hpp"
#include "core/elementwise.hpp"
#include "fastffn/cpu.hpp"
#include "fastffn/ffn.hpp"

namespace fastffn {

namespace ref {

namespace {

float apply(Activation activation, float x) {
    switch (activation) {
        case Activation::identity: return x;
        case Activation::relu: return x > 0 || x != x ? x : 0.0f;  // NaN stays NaN
        case Activation::relu2: return x > 0 || x != x ? x * x : 0.0f;
        case Activation::gelu: return 0.5f * x * std::erfc(-x * 0.70710678118654752f);
        case Activation::gelu_tanh: {
            const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
            return x / (1.0f + std::exp(-2.0f * inner));  // 0.5 (1 + tanh u) = 1 / (1 + exp(-2u))
        }
        case Activation::silu: return x / (1.0f + std::exp(-x));
        case Activation::swiglu_clamped: break;  // needs both projections: below
    }
    return x;
}

// NaN stays NaN on both sides.
float clamped_swiglu(float gate, float up) {
    if (gate > 7) gate = 7;
    if (up > 7) up = 7;
    if (up < -7) up = -7;
    return (up + 1.0f) * (gate / (1.0f + std::exp(-1.702f * gate)));
}

void activate(const ActivateArgs& a) noexcept {
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const float* up = a.up + r * a.stride;
        const float* gate = a.gate ? a.gate + r * a.stride : nullptr;
        float* hidden = a.hidden + r * a.hidden_stride;
        for (std::int64_t c = 0; c < a.cols; ++c) {
            const float u = up[c] + (a.up_bias ? a.up_bias[c] : 0.0f);
            if (!gate) {
                hidden[c] = apply(a.activation, u);
                continue;
            }
            const float g = gate[c] + (a.gate_bias ? a.gate_bias[c] : 0.0f);
            hidden[c] = a.activation == Activation::swiglu_clamped ? clamped_swiglu(g, u) : apply(a.activation, g) * u;
        }
    }
}

void store(const StoreArgs& a) noexcept {
    const std::int64_t bytes = element_bytes(a.dtype);
    for (std::int64_t r = 0; r < a.rows; ++r)
        for (std::int64_t c = 0; c < a.cols; ++c)
            store_f32(a.dst + r * a.dst_stride + c * bytes, a.dtype,
                      a.tile[r * a.tile_stride + c] + (a.bias ? a.bias[c] : 0.0f));
}

void add(const AddArgs& a) noexcept {
    for (std::int64_t r = 0; r < a.rows; ++r)
        for (std::int64_t c = 0; c < a.cols; ++c) a.sums[r * a.sums_stride + c] += a.tile[r * a.tile_stride + c];
}

void accumulate(const AccumulateArgs& a) noexcept {
    for (std::int64_t r = 0; r < a.rows; ++r) {
        float* sums = a.sums + a.tokens[r] * a.token_stride;
        for (std::int64_t c = 0; c < a.panels * panel_columns; ++c) {
            const float value = a.tile[r * a.tile_stride + c] + (a.bias ? a.bias[c] : 0.0f);
            sums[c / panel_columns * a.panel_stride + c % panel_columns] += a.weights ? a.weights[r] * value : value;
        }
    }
}

float dot(const std::byte* x, DType dtype, const float* v, std::int64_t cols) noexcept {
    double sum = 0;
    for (std::int64_t c = 0; c < cols; ++c)
        sum += static_cast<double>(load_f32(x + c * element_bytes(dtype), dtype)) * v[c];
    return static_cast<float>(sum);
}

// Σ x² in the lanes that elementwise.hpp names.
double sum_of_squares(const float* x, std::int64_t cols) {
    double lanes[16] = {};
    for (std::int64_t c = 0; c < cols; ++c) lanes[c % 16] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
    for (int half = 8; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

void normalize(const NormalizeArgs& a) noexcept {
    for (std::int64_t r = 0; r < a.count; ++r) {
        float* x = a.rows + r * a.stride;
        const float scale = inverse_rms(sum_of_squares(x, a.cols), a.mean_cols, a.eps);
        for (std::int64_t c = 0; c < a.cols; ++c)
            x[c] = x[c] * scale * load_f32(a.gamma + c * element_bytes(a.gamma_dtype), a.gamma_dtype);
    }
}

void squares(const SquaresArgs& a) noexcept {
    for (std::int64_t r = 0; r < a.count; ++r) {
        float* x = a.rows + r * a.stride;
        a.squares[r * a.squares_stride] = sum_of_squares(x, a.cols);
        for (std::int64_t c = 0; c < a.cols; ++c)
            x[c] *= load_f32(a.gamma + c * element_bytes(a.gamma_dtype), a.gamma_dtype);
    }
}

}  // namespace

const ElementwiseKernels elementwise = {"ref", activate, store, accumulate, dot, add, normalize, squares};

}  // namespace ref

const ElementwiseKernels& elementwise_kernels(Isa isa) noexcept {
#if FASTFFN_X86
    if (isa >= Isa::avx512) return avx512::elementwise;
    if (isa >= Isa::avx2) return avx2::elementwise;
#endif
    (void)isa;
    return ref::elementwise;
}

}  // namespace fastffn
