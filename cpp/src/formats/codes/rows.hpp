// Rows of activations → s8 codes with a scale per row and sums per group, for AVX2 and AVX-512. An Isa (registers_*.hpp
// beside this file) brings F32, store_codes and sum_codes.
#pragma once

#include "core/convert.hpp"
#include "core/kernel.hpp"
#include "formats/codes/layout.hpp"

namespace fastffn {
namespace {

// Sums of magnitudes run in 16 lanes, lane = depth mod 16, and these are added in this order on every instruction set: the
// codes that a mean decides are then the same everywhere.
inline float add_lanes(const float* lanes) {
    float sums[16];
    for (int i = 0; i < 16; ++i) sums[i] = lanes[i];
    for (int half = 8; half >= 1; half /= 2)
        for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    return sums[0];
}

struct RowStatistics {
    float largest, sum;
    bool finite;
};

template <class Isa>
RowStatistics row_statistics(const std::byte* src, DType dtype, std::int64_t depth) {
    using F32 = typename Isa::F32;
    constexpr int registers = 16 / F32::width;
    const std::int64_t bytes = element_bytes(dtype);
    alignas(64) float lanes[16], largest_lanes[16], bad_lanes[16];
    F32 sums[2] = {F32(0.0f), F32(0.0f)}, largest[2] = {F32(0.0f), F32(0.0f)}, bad[2] = {F32(0.0f), F32(0.0f)};
    for (std::int64_t k = 0; k < depth; k += 16)
#pragma GCC unroll 2
        for (int i = 0; i < registers; ++i) {
            const std::int64_t at = k + i * F32::width;
            if (at >= depth) break;
            const F32 x = F32::load_as(src + at * bytes, dtype, depth - at);
            const F32 magnitude = absolute(x);
            sums[i] = sums[i] + magnitude;
            largest[i] = maximum(largest[i], magnitude);
            bad[i] = multiply_add(x, F32(0.0f), bad[i]);  // NaN from the first NaN or infinity on
        }
    for (int i = 0; i < registers; ++i) {
        store(lanes + i * F32::width, sums[i]);
        store(largest_lanes + i * F32::width, largest[i]);
        store(bad_lanes + i * F32::width, bad[i]);
    }
    RowStatistics statistics{0.0f, add_lanes(lanes), true};
    for (int i = 0; i < 16; ++i) {
        if (largest_lanes[i] > statistics.largest) statistics.largest = largest_lanes[i];
        if (bad_lanes[i] != 0.0f) statistics.finite = false;
    }
    return statistics;
}

// Rows: CodesRows, or another arrangement of the same.
template <class Isa, int bits, class Rows = CodesRows>
std::int64_t codes_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const CodesLayout<bits> layout(matrix);
    return Rows(total_rows, layout.padded_depth, layout.groups).bytes;
}

template <class Isa, int bits, class Rows>
void codes_prepare_rows(const PrepareArgs& a) {
    using F32 = typename Isa::F32;
    const CodesLayout<bits> layout(*a.matrix);
    const Rows rows(a.total_rows, layout.padded_depth, layout.groups);
    const std::int64_t bytes = element_bytes(a.dtype);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        const std::int64_t row = a.row0 + r;
        const RowStatistics statistics = row_statistics<Isa>(src, a.dtype, a.depth);
        const RowCode code =
            row_code_of<bits>(a.matrix->flags, statistics.largest, statistics.sum, a.depth, statistics.finite);
        std::int64_t k = 0;
        for (; k < a.depth; k += F32::width)  // lanes past the depth are 0
            Isa::store_codes(
                a.prepared + rows.at(row, k),
                statistics.finite ? F32::load_as(src + k * bytes, a.dtype, a.depth - k) * F32(code.inverse) : F32(0.0f),
                code.lowest, code.highest);
        for (; k < layout.padded_depth; k += F32::width)
            Isa::store_codes(a.prepared + rows.at(row, k), F32(0.0f), 0.0f, 0.0f);
        __builtin_memcpy(a.prepared + rows.scales + row * 4, &code.scale, 4);
        const std::int64_t group = layout.group ? layout.group : layout.padded_depth;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            std::int32_t sum = 0;
            for (std::int64_t from = 0; from < group; from += 64)
                sum += Isa::sum_codes(a.prepared + rows.at(row, g * group + from), group < 64 ? group : 64);
            __builtin_memcpy(a.prepared + rows.sums + (row * layout.groups + g) * 4, &sum, 4);
        }
    }
}

// The same of H · x: a row is transformed and becomes codes while it lies in L1 or L2.
template <class Isa>
__attribute__((noinline)) void codes_prepare_transformed(const PrepareArgs& a,
                                                         void (*prepare_rows)(const PrepareArgs&)) {
    // As much stack as the row takes: threads of some systems have 128 KiB in all.
    auto* row = static_cast<float*>(__builtin_alloca_with_align(static_cast<std::size_t>(a.depth) * 4, 512));
    HadamardShape shape;
    codes_hadamard(a.matrix->flags, a.depth, a.matrix->parameters[1], false, &shape);
    PrepareArgs one = a;
    one.src = reinterpret_cast<const std::byte*>(row);
    one.dtype = DType::f32;
    one.src_stride = 0;
    one.rows = 1;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        Isa::hadamard(a.src + r * a.src_stride, a.dtype, row, shape);
        one.row0 = a.row0 + r;
        prepare_rows(one);
    }
}

template <class Isa, int bits, class Rows = CodesRows>
void codes_prepare(const PrepareArgs& a) noexcept {
    if (a.matrix->flags & codes_hadamard_mask) codes_prepare_transformed<Isa>(a, codes_prepare_rows<Isa, bits, Rows>);
    else codes_prepare_rows<Isa, bits, Rows>(a);
}

}  // namespace
}  // namespace fastffn
