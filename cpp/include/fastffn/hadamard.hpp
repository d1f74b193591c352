// hadamard and quantize: what BitNet does to activations before a low-bit projection, alone. Packed weights do both by themselves
// (options "hadamard" and "act" of ternary and int4); these are for training, for checks, and for other kernels.
//
//   hadamard:  y = H · x along the last dimension, H orthonormal: entries ±1/√n, H · Hᵀ = I
//   quantize:  int8   γ = max(max|x|, 1e-5), codes = clamp(nearest_even(127 · x / γ), -127, 127), scale = γ / 127    (BitNet b1.58, arXiv:2402.17764)
//              int4   β = mean|x|, codes = clamp(nearest_even(√7 · x / (β + 1e-5)), -8, 7), scale = β / √7           (BitNet a4.8, arXiv:2411.04965)
//              x ≈ codes · scale; ties to even; a row with NaN or infinity gets codes 0 and scale NaN
//
// Modes of H for rows of n:
//   pow2    n = 2^m: Sylvester's matrix in its natural order (H-BitLinear, arXiv:2504.18415)
//   kron    n = K · 2^m: H_K ⊗ H_2^m, the butterflies on the fast axis of (K, n/K), H_K on the slow one (QuaRot, arXiv:2404.00456); K is 1,
//           12, 20, 28, 36, 52, 60, 108, 140, 156 or 172 (40 is 20 · 2). The matrices are built from Paley's and Goethals and
//           Seidel's constructions; other libraries tabulate others of the same orders, so a basis of theirs is not this one.
//   block   n = blocks of 2^m: pow2 in each, of the largest power of two that divides n, or of a chosen one
// Additions and subtractions have one order: the same bits on every instruction set and for any number of threads.
#pragma once

#include <cstdint>

#include "fastffn/context.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

enum class Hadamard : std::uint8_t { none = 0, pow2 = 1, kron = 2, block = 3 };  // on disk: never reuse a value
constexpr int hadamard_mode_count = 4;

const char* hadamard_name(Hadamard mode) noexcept;
Status parse_hadamard(const char* name, Hadamard* mode);

struct HadamardOptions {
    Hadamard mode = Hadamard::pow2;
    std::int64_t block = 0;  // for Hadamard::block: a power of two that divides n; 0: the largest
    bool inverse = false;    // y = Hᵀ · x; pow2 and block are their own inverses
};

// x, y [..., n]: f32, f16 or bf16 (each its own), last dimension contiguous, other strides free but not negative; computed in f32. y may
// be x itself (same data, dtype and strides), else they must not overlap.
// NaN and infinity spread over what their block or row adds up.
Status hadamard(Context& context, const TensorView& x, const HadamardOptions& options, const TensorView& y);
Status hadamard_workspace(const TensorView& x, const HadamardOptions& options, int threads, std::int64_t* bytes);

enum class ActivationCodes : std::uint8_t { int8 = 0, int4 = 1 };
constexpr int activation_codes_count = 2;

const char* activation_codes_name(ActivationCodes codes) noexcept;
Status parse_activation_codes(const char* name, ActivationCodes* codes);

// x [..., n] as above; codes [..., n] i8 and scale [...] f32, contiguous. Up to 133144 columns. Bit for bit what ternary weights make of x.
Status quantize(Context& context, const TensorView& x, ActivationCodes kind, const TensorView& codes,
                const TensorView& scale);
Status quantize_workspace(const TensorView& x, ActivationCodes kind, int threads, std::int64_t* bytes);

}  // namespace fastffn
