// What layers do to f32 tiles between and after multiplications, per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/kernel.hpp"

namespace fastffn {

enum class Activation : std::uint8_t;

// hidden[r][c] = activation(up[r][c] + up_bias[c])                                        without a gate
// hidden[r][c] = activation(gate[r][c] + gate_bias[c]) · (up[r][c] + up_bias[c])           with one
// (swiglu_clamped, with a gate only: its own formula of both)
// for r < rows, c < cols; cols a multiple of 16; strides in floats, multiples of 16; tiles 64-byte aligned.
struct ActivateArgs {
    Activation activation;
    const float* up;
    const float* gate;       // nullptr: not gated; same stride as up
    const float* up_bias;    // [cols] or nullptr
    const float* gate_bias;  // [cols] or nullptr
    std::int64_t rows, cols, stride;
    float* hidden;  // may be up
    std::int64_t hidden_stride;
};

// dst[r][c] = dtype(tile[r][c] + bias[c]); writes exactly `cols` elements per row.
struct StoreArgs {
    const float* tile;
    std::int64_t tile_stride;
    const float* bias;  // [cols rounded up to 16] or nullptr
    std::int64_t rows, cols;
    std::byte* dst;  // no alignment promised
    DType dtype;
    std::int64_t dst_stride;  // bytes
};

// sums[r][c] += tile[r][c]; cols and strides multiples of 16, both 64-byte aligned.
struct AddArgs {
    float* sums;
    std::int64_t sums_stride;  // floats
    const float* tile;
    std::int64_t tile_stride;  // floats
    std::int64_t rows, cols;
};

// sums[token[r]][c] += weights[r] · (tile[r][c] + bias[c]) for r < rows in ascending order, c < panels · 16. The sums of
// one token and panel are 16 floats in a row.
struct AccumulateArgs {
    const float* tile;
    std::int64_t tile_stride;
    const float* bias;           // [panels · 16] or nullptr
    const std::int32_t* tokens;  // [rows]
    const float* weights;        // [rows]; nullptr: all 1
    std::int64_t rows, panels;
    float* sums;                              // 64-byte aligned
    std::int64_t token_stride, panel_stride;  // floats
};

// RMSNorm in place (Zhang and Sennrich 2019, arXiv:1910.07467): x[r][c] = (x[r][c] · s[r]) · gamma[c] for c < cols,
// s[r] = 1/√(Σ_c x[r][c]² / mean_cols + eps). Sums run in f64, so that no f32 row overflows them, in 16 lanes, lane = c mod 16,
// whatever the instruction set. Columns past cols are left alone.
struct NormalizeArgs {
    float* rows;
    std::int64_t stride;  // floats
    std::int64_t count, cols;
    std::int64_t mean_cols;
    float eps;
    const std::byte* gamma;  // [cols] of gamma_dtype, no alignment promised
    DType gamma_dtype;
};

// The first half of it, where a row comes in pieces: squares[r · squares_stride] = Σ_c x[r][c]², then x[r][c] *= gamma[c].
struct SquaresArgs {
    float* rows;
    std::int64_t stride;  // floats
    std::int64_t count, cols;
    const std::byte* gamma;
    DType gamma_dtype;
    double* squares;
    std::int64_t squares_stride;
};

namespace {
inline float inverse_rms(double squares, std::int64_t cols, float eps) {
    return static_cast<float>(1.0 / __builtin_sqrt(squares / static_cast<double>(cols) + static_cast<double>(eps)));
}
}  // namespace

struct ElementwiseKernels {
    const char* name;
    void (*activate)(const ActivateArgs& args) noexcept;
    void (*store)(const StoreArgs& args) noexcept;
    void (*accumulate)(const AccumulateArgs& args) noexcept;
    // Σ x[c] · v[c] for c < cols, in a fixed order; x: one row of f32, f16 or bf16.
    float (*dot)(const std::byte* x, DType dtype, const float* v, std::int64_t cols) noexcept;
    void (*add)(const AddArgs& args) noexcept;
    void (*normalize)(const NormalizeArgs& args) noexcept;
    void (*squares)(const SquaresArgs& args) noexcept;
};

const ElementwiseKernels& elementwise_kernels(Isa isa) noexcept;

namespace ref {
extern const ElementwiseKernels elementwise;
}
namespace avx2 {
extern const ElementwiseKernels elementwise;
}
namespace avx512 {
extern const ElementwiseKernels elementwise;
}

}  // namespace fastffn
