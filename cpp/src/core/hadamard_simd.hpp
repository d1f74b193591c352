// The transform of core/hadamard.hpp, written once for AVX2 and AVX-512; each file includes it after its F32 and its butterflies
// within a register.
//
//   pass 1    a run of `registers` registers at a time: scale, butterflies between the lanes of a register, then between registers
//   passes    up to 16 segments (AVX2: 8) that lie a power of two apart meet in registers; the row stays in L1 or L2
//   H_K       sixteen columns at a time: all 16 signed sums of every four segments lie in L1, and a row of H_K adds one of each. So a
//             row takes K/4 additions where a product takes K.
//
// An Isa brings: F32, registers (as many as a run holds), lanes(x, half): butterflies of length 2 · half within a register.
#pragma once

#include "core/hadamard.hpp"
#include "fastffn/dtype.hpp"

namespace fastffn {
namespace {

// Butterflies of 1, 2, … registers. fused: a - b as a multiply-add by 1, the same bits on the other pipes of Zen, where nothing else
// keeps those busy: a row of 4096 takes 0.85 µs so and 0.88 µs without (Zen 4).
template <class F32, int registers, bool fused>
__attribute__((always_inline)) inline void butterflies(decltype(F32::v)* x) {
#pragma GCC unroll 4
    for (int half = 1; half < registers; half *= 2)
#pragma GCC unroll 16
        for (int i = 0; i < registers; ++i) {
            if (i & half) continue;
            const F32 a = x[i], b = x[i + half];
            x[i] = (a + b).v;
            x[i + half] = fused ? negative_multiply_add(b, F32(1.0f), a).v : (a - b).v;
        }
}

template <class Isa, DType dtype>
__attribute__((always_inline)) inline typename Isa::F32 load_scaled(const std::byte* src, typename Isa::F32 scale) {
    using F32 = typename Isa::F32;
    if constexpr (dtype == DType::f32) return F32::load(reinterpret_cast<const float*>(src)) * scale;
    else return F32::load_as(src, dtype, F32::width) * scale;
}

// Whole registers: power is at least registers · width.
template <class Isa, DType dtype, int registers>
void first_pass(const std::byte* src, float* dst, const HadamardShape& shape) {
    using F32 = typename Isa::F32;
    constexpr std::int64_t bytes = dtype == DType::f32 ? 4 : 2, width = F32::width;
    const F32 scale(shape.scale);
    for (std::int64_t k = 0; k < shape.n; k += registers * width) {
        decltype(F32::v) x[registers];
#pragma GCC unroll 16
        for (int i = 0; i < registers; ++i) x[i] = load_scaled<Isa, dtype>(src + (k + i * width) * bytes, scale).v;
#pragma GCC unroll 16
        for (int i = 0; i < registers; ++i) {
            x[i] = Isa::template lanes<1>(x[i]).v;
            x[i] = Isa::template lanes<2>(x[i]).v;
            x[i] = Isa::template lanes<4>(x[i]).v;
            if constexpr (width > 8) x[i] = Isa::template lanes<8>(x[i]).v;
        }
        butterflies<F32, registers, false>(x);
#pragma GCC unroll 16
        for (int i = 0; i < registers; ++i) store(dst + k + i * width, F32(x[i]));
    }
}

// Segments shorter than a register; n may be any multiple of power.
template <class Isa>
void short_pass(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) {
    using F32 = typename Isa::F32;
    const std::int64_t bytes = dtype == DType::f32 ? 4 : 2;
    for (std::int64_t k = 0; k < shape.n; k += F32::width) {
        F32 x = F32::load_as(src + k * bytes, dtype, shape.n - k) * F32(shape.scale);
        if (shape.power > 1) x = Isa::template lanes<1>(x);
        if (shape.power > 2) x = Isa::template lanes<2>(x);
        if (shape.power > 4) x = Isa::template lanes<4>(x);
        store_as(reinterpret_cast<std::byte*>(dst + k), DType::f32, x, shape.n - k);
    }
}

// Butterflies of 2 · step to radix · step floats on the whole row.
template <class F32, int radix>
void later_pass(float* row, std::int64_t n, std::int64_t step) {
    for (std::int64_t k = 0; k < n; k += radix * step)
        for (std::int64_t j = k; j < k + step; j += F32::width) {
            decltype(F32::v) x[radix];
#pragma GCC unroll 16
            for (int i = 0; i < radix; ++i) x[i] = F32::load(row + j + i * step).v;
            butterflies<F32, radix, true>(x);
#pragma GCC unroll 16
            for (int i = 0; i < radix; ++i) store(row + j + i * step, F32(x[i]));
        }
}

template <class Isa, DType dtype>
void segments_of(const std::byte* src, float* dst, const HadamardShape& shape) {
    using F32 = typename Isa::F32;
    const std::int64_t registers = shape.power / F32::width;
    switch (registers) {
        case 1: return first_pass<Isa, dtype, 1>(src, dst, shape);
        case 2: return first_pass<Isa, dtype, 2>(src, dst, shape);
        case 4: return first_pass<Isa, dtype, 4>(src, dst, shape);
        case 8: return first_pass<Isa, dtype, 8>(src, dst, shape);
        default: first_pass<Isa, dtype, Isa::registers>(src, dst, shape);
    }
    std::int64_t step = Isa::registers;
    while (step < registers) {
        const std::int64_t left = registers / step, floats = step * F32::width;
        if (left >= 16 && Isa::registers == 16) {
            later_pass<F32, Isa::registers>(dst, shape.n, floats);
            step *= 16;
        } else if (left >= 8) {
            later_pass<F32, 8>(dst, shape.n, floats);
            step *= 8;
        } else if (left == 4) {
            later_pass<F32, 4>(dst, shape.n, floats);
            step *= 4;
        } else {
            later_pass<F32, 2>(dst, shape.n, floats);
            step *= 2;
        }
    }
}

// sums[i] (+)= one table entry of every group for each row i of H_K. known: how many groups, 0: `groups`.
template <class Isa, int known>
void add_groups(const float* table, std::int64_t groups, std::int64_t g0, const HadamardShape& shape, float* sums) {
    using F32 = typename Isa::F32;
    constexpr int parts = static_cast<int>(16 / F32::width);
    const std::int64_t here = known ? known : groups, row_signs = shape.order / 4;
    const std::uint8_t* signs = shape.signs + g0;
    for (std::int64_t i = 0; i < shape.order; ++i, signs += row_signs, sums += 16)
#pragma GCC unroll 2
        for (int p = 0; p < parts; ++p) {
            const float* at = table + p * F32::width;
            F32 sum = F32::load(at + signs[0] * 2);
            if (g0) sum = F32::load(sums + p * F32::width) + sum;
#pragma GCC unroll 8
            for (std::int64_t g = 1; g < here; ++g) sum = sum + F32::load(at + g * 256 + signs[g] * 2);
            store(sums + p * F32::width, sum);
        }
}

// H_K across the segments, in place. Tables of `table_groups` groups are 8 KiB, the sums of 172 rows 11 KiB.
template <class Isa>
void mix_segments(float* row, const HadamardShape& shape) {
    using F32 = typename Isa::F32;
    constexpr int parts = static_cast<int>(16 / F32::width);
    constexpr int table_groups = 8;
    alignas(64) float table[table_groups][16][16];
    alignas(64) float sums[largest_hadamard_order][16];
    const std::int64_t groups = shape.order / 4;
    for (std::int64_t j = 0; j < shape.power; j += 16) {
        const std::int64_t left = shape.power - j;
        for (std::int64_t g0 = 0; g0 < groups; g0 += table_groups) {
            const std::int64_t here = groups - g0 < table_groups ? groups - g0 : table_groups;
            for (std::int64_t g = 0; g < here; ++g)
#pragma GCC unroll 2
                for (int p = 0; p < parts; ++p) {
                    F32 x[4] = {F32(0.0f), F32(0.0f), F32(0.0f), F32(0.0f)};
                    if (left > p * F32::width)
                        for (int b = 0; b < 4; ++b)
                            x[b] = F32::load_as(reinterpret_cast<const std::byte*>(
                                                    row + (4 * (g0 + g) + b) * shape.power + j + p * F32::width),
                                                DType::f32, left - p * F32::width);
                    const F32 minus(-1.0f);
                    const F32 low[4] = {x[0] + x[1], x[1] - x[0], x[0] - x[1], minus * x[0] - x[1]};
                    const F32 high[4] = {x[2] + x[3], x[3] - x[2], x[2] - x[3], minus * x[2] - x[3]};
#pragma GCC unroll 16
                    for (int e = 0; e < 16; ++e) store(table[g][e] + p * F32::width, low[e % 4] + high[e / 4]);
                }
            if (here == table_groups) add_groups<Isa, table_groups>(table[0][0], here, g0, shape, sums[0]);
            else add_groups<Isa, 0>(table[0][0], here, g0, shape, sums[0]);
        }
        for (std::int64_t i = 0; i < shape.order; ++i)
            for (int p = 0; p < parts && left > p * F32::width; ++p)
                store_as(reinterpret_cast<std::byte*>(row + i * shape.power + j + p * F32::width), DType::f32,
                         F32::load(sums[i] + p * F32::width), left - p * F32::width);
    }
}

template <class Isa>
void hadamard_any(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) {
    if (shape.power < Isa::F32::width) short_pass<Isa>(src, dtype, dst, shape);
    else if (dtype == DType::f32) segments_of<Isa, DType::f32>(src, dst, shape);
    else if (dtype == DType::f16) segments_of<Isa, DType::f16>(src, dst, shape);
    else segments_of<Isa, DType::bf16>(src, dst, shape);
    if (shape.order > 1) mix_segments<Isa>(dst, shape);
}

}  // namespace
}  // namespace fastffn
