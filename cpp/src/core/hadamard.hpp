// Hadamard transforms of rows: which ones there are, and one kernel per instruction set. See fastffn/hadamard.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/kernel.hpp"

namespace fastffn {

enum class Hadamard : std::uint8_t;

// One transform of a row of n floats, [n / power][power]:
//   1. x · scale
//   2. butterflies of lengths 2, 4, … power on each segment: (a, b) → (a + b, a - b)
//   3. order > 1: y[i] = Σ_g ((±x[4g] ± x[4g+1]) + (±x[4g+2] ± x[4g+3])) over the segments, groups g in ascending order
// Every set adds in this order, so that all give the same bits.
struct HadamardShape {
    std::int64_t n;
    std::int64_t power;
    std::int64_t order;  // K of H_K, n / power then; 1: none
    float scale;         // 1/√(order · power)
    // [order][order / 4]: the signs of four columns of a row, bit b + 3 set where column b counts negative.
    const std::uint8_t* signs;
};

// dst may be src where dtype is f32.
using HadamardKernel = void (*)(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) noexcept;

constexpr std::int64_t largest_hadamard_order = 172;

// False where n has no such transform. block: of Hadamard::block, 0 for the largest.
bool hadamard_shape(Hadamard mode, std::int64_t n, std::int64_t block, bool inverse, HadamardShape* shape) noexcept;

HadamardKernel hadamard_kernel(Isa isa) noexcept;

namespace ref {
void hadamard_row(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) noexcept;
}
namespace avx2 {
void hadamard_row(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) noexcept;
}
namespace avx512 {
void hadamard_row(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) noexcept;
}

}  // namespace fastffn
