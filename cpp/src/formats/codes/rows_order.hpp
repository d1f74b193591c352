// Products with codes in order rows (layout.hpp), written once for AVX2 and AVX-512 VNNI: dot products of four rows of
// weights at a time with up to Isa::most_tokens rows of activations. One mask per field gives a register of codes, which meets
// the activations as they lie.
//
// The four rows are adjacent (multiply) or any four (dot_rows); sums and roundings are those of the panels, so results are too.
//
// Beside what multiply.hpp wants, an Isa brings: most_tokens, dot, sum4 (four registers → their sums in four lanes) and, where a
// register holds two groups of 32, sum4_halves.
#pragma once

#include <immintrin.h>

#include "core/kernel.hpp"
#include "formats/codes/layout.hpp"
#include "formats/codes/rows.hpp"
#include "formats/common/blocks.hpp"

namespace fastffn {
namespace {

constexpr int quad_rows = 4;

// A short row ends before the hardware sees a stream, so rows are fetched by hand, about so many bytes ahead, into L2: a core has
// more fetches on the way to L2 than to L1. One Zen 4 core, a third of the rows of 1 KiB, from memory: 10.8 GB/s of them, and 7.4
// with fetches into L1; all rows 17.4 and 8.8.
constexpr std::int64_t bytes_ahead = 16384;

inline std::int64_t quads_ahead(std::int64_t row_bytes) { return divide_up(bytes_ahead, quad_rows * row_bytes); }

// Four rows of weights and what belongs to them.
struct Quad {
    const std::byte* codes[quad_rows];
    const std::byte* next[quad_rows];  // rows to fetch meanwhile
    std::int64_t columns[quad_rows];
};

struct Tokens {
    const std::byte* codes;
    std::int64_t stride;
    const float* scales;
    const std::int32_t* sums;  // `groups` per token
};

// totals[t]: what the four rows give for token t, before the token's scale where there are groups.
template <class Isa, int bits, int tokens>
__attribute__((always_inline)) inline void quad_dots(const Quad& quad, const Tokens& x, const CodesLayout<bits>& layout,
                                                     __m128i (&sums)[tokens]) {
    using Register = typename Isa::Register;
    using Traits = CodeTraits<bits>;
    constexpr int fields = Traits::fields, parts = 64 / Isa::register_bytes;
    // One token leaves each field in place, in a sum of its own that is shifted at the end: exact, one instruction less.
    constexpr bool in_place = tokens == 1 && Isa::template in_place<bits>;
    constexpr int chains = in_place ? fields : 1;
    const std::int64_t lines = layout.row_bytes() / 64;
    Register acc[quad_rows][tokens][chains];
#pragma GCC unroll 4
    for (int r = 0; r < quad_rows; ++r)
#pragma GCC unroll 6
        for (int t = 0; t < tokens; ++t)
#pragma GCC unroll 4
            for (int c = 0; c < chains; ++c) acc[r][t][c] = Isa::zero();
    for (std::int64_t line = 0; line < lines; ++line) {
#pragma GCC unroll 2
        for (int p = 0; p < parts; ++p) {
            Register packed[quad_rows];
#pragma GCC unroll 4
            for (int r = 0; r < quad_rows; ++r) {
                packed[r] = Isa::load(quad.codes[r] + line * 64 + p * Isa::register_bytes);
                if (p == 0) _mm_prefetch(reinterpret_cast<const char*>(quad.next[r] + line * 64), _MM_HINT_T1);
            }
#pragma GCC unroll 4
            for (int f = 0; f < fields; ++f) {
                Register codes[quad_rows];
#pragma GCC unroll 4
                for (int r = 0; r < quad_rows; ++r)
                    codes[r] =
                        in_place ? Isa::template masked<bits>(packed[r], f) : Isa::template field<bits>(packed[r], f);
#pragma GCC unroll 6
                for (int t = 0; t < tokens; ++t) {
                    const Register word =
                        Isa::load(x.codes + t * x.stride + (line * fields + f) * 64 + p * Isa::register_bytes);
#pragma GCC unroll 4
                    for (int r = 0; r < quad_rows; ++r)
                        acc[r][t][f % chains] = Isa::Dot::dot(acc[r][t][f % chains], word, codes[r]);
                }
            }
        }
    }
#pragma GCC unroll 6
    for (int t = 0; t < tokens; ++t) {
        Register sum[quad_rows];
#pragma GCC unroll 4
        for (int r = 0; r < quad_rows; ++r) {
            sum[r] = acc[r][t][0];
#pragma GCC unroll 4
            for (int c = 1; c < chains; ++c) sum[r] = Isa::add(sum[r], Isa::shift_right(acc[r][t][c], c * bits));
        }
        sums[t] = Isa::sum4(sum[0], sum[1], sum[2], sum[3]);
    }
}

inline __m128 load_f32x4(const std::byte* array, const std::int64_t (&index)[quad_rows]) {
    const auto* values = reinterpret_cast<const float*>(array);
    return _mm_setr_ps(values[index[0]], values[index[1]], values[index[2]], values[index[3]]);
}

inline __m128 load_f16x4(const std::byte* array, const std::int64_t (&index)[quad_rows]) {
    short halves[quad_rows];
    for (int r = 0; r < quad_rows; ++r) __builtin_memcpy(halves + r, array + index[r] * 2, 2);
    return _mm_cvtph_ps(_mm_setr_epi16(halves[0], halves[1], halves[2], halves[3], 0, 0, 0, 0));
}

// One group of the four rows: Σ code · x → totals, as GroupScale of multiply.hpp.
template <int bits, int tokens>
struct QuadGroups {
    const CodesLayout<bits>& layout;
    const Tokens& x;
    std::uint32_t zeros_kind;
    std::int64_t entry[quad_rows];
    __m128 totals[tokens];
    std::int64_t group = 0;

    QuadGroups(const CodesLayout<bits>& layout_, const Tokens& x_, std::uint32_t flags, const Quad& quad)
        : layout(layout_), x(x_), zeros_kind(flags & codes_zeros_mask) {
        for (int r = 0; r < quad_rows; ++r) entry[r] = quad.columns[r] * layout.groups;
        for (int t = 0; t < tokens; ++t) totals[t] = _mm_setzero_ps();
    }
    __attribute__((always_inline)) void add(const __m128i (&sums)[tokens]) {
        const __m128 scale = load_f16x4(layout.scales, entry);
        __m128i zero = _mm_set1_epi32(CodeTraits<bits>::zero);
        __m128 minimum = _mm_setzero_ps();
        if (zeros_kind == codes_zero_points)
            zero = _mm_setr_epi32(static_cast<int>(layout.zeros[entry[0]]), static_cast<int>(layout.zeros[entry[1]]),
                                  static_cast<int>(layout.zeros[entry[2]]), static_cast<int>(layout.zeros[entry[3]]));
        if (zeros_kind == codes_minima) {
            minimum = load_f16x4(layout.zeros, entry);
            zero = _mm_setzero_si128();
        }
#pragma GCC unroll 6
        for (int t = 0; t < tokens; ++t) {
            const __m128i row = _mm_set1_epi32(x.sums[t * layout.groups + group]);
            const __m128i exact = _mm_sub_epi32(sums[t], _mm_mullo_epi32(zero, row));
            totals[t] = _mm_fmadd_ps(_mm_cvtepi32_ps(exact), scale, totals[t]);
            if (zeros_kind == codes_minima) totals[t] = _mm_fmadd_ps(_mm_cvtepi32_ps(row), minimum, totals[t]);
        }
        ++group;
        for (int r = 0; r < quad_rows; ++r) ++entry[r];
    }
    bool done() const { return group == layout.groups; }
};

template <class Isa, int bits, int tokens>
__attribute__((always_inline)) inline void quad_groups(const Quad& quad, const Tokens& x,
                                                       const CodesLayout<bits>& layout, std::uint32_t flags,
                                                       __m128 (&totals)[tokens]) {
    using Register = typename Isa::Register;
    constexpr int fields = CodeTraits<bits>::fields, parts = 64 / Isa::register_bytes;
    const std::int64_t lines = layout.row_bytes() / 64;
    QuadGroups<bits, tokens> groups(layout, x, flags, quad);
    Register acc[quad_rows][tokens];
    auto clear = [&] {
#pragma GCC unroll 4
        for (int r = 0; r < quad_rows; ++r)
#pragma GCC unroll 6
            for (int t = 0; t < tokens; ++t) acc[r][t] = Isa::zero();
    };
    clear();
    std::int64_t depth = 0;
    for (std::int64_t line = 0; line < lines && !groups.done(); ++line) {
        Register packed[parts][quad_rows];
#pragma GCC unroll 4
        for (int r = 0; r < quad_rows; ++r) {
#pragma GCC unroll 2
            for (int p = 0; p < parts; ++p)
                packed[p][r] = Isa::load(quad.codes[r] + line * 64 + p * Isa::register_bytes);
            _mm_prefetch(reinterpret_cast<const char*>(quad.next[r] + line * 64), _MM_HINT_T1);
        }
#pragma GCC unroll 4
        for (int f = 0; f < fields; ++f)
#pragma GCC unroll 2
            for (int p = 0; p < parts; ++p) {
#pragma GCC unroll 6
                for (int t = 0; t < tokens; ++t) {
                    const Register word = Isa::load(x.codes + t * x.stride + depth);
#pragma GCC unroll 4
                    for (int r = 0; r < quad_rows; ++r)
                        acc[r][t] = Isa::Dot::dot(acc[r][t], word, Isa::template field<bits>(packed[p][r], f));
                }
                depth += Isa::register_bytes;
                if ((depth & (layout.group - 1)) != 0 || groups.done()) continue;
                __m128i sums[tokens];
                if (layout.group < Isa::register_bytes) {
                    __m128i later[tokens];
#pragma GCC unroll 6
                    for (int t = 0; t < tokens; ++t)
                        Isa::sum4_halves(acc[0][t], acc[1][t], acc[2][t], acc[3][t], &sums[t], &later[t]);
                    groups.add(sums);
                    if (!groups.done()) groups.add(later);
                } else {
#pragma GCC unroll 6
                    for (int t = 0; t < tokens; ++t) sums[t] = Isa::sum4(acc[0][t], acc[1][t], acc[2][t], acc[3][t]);
                    groups.add(sums);
                }
                clear();
            }
    }
    for (int t = 0; t < tokens; ++t) totals[t] = groups.totals[t];
}

// values[t · stride + r] for the four rows and `tokens` tokens.
template <class Isa, int bits, int tokens>
void quad_values(const Quad& quad, const Tokens& x, const CodesLayout<bits>& layout, std::uint32_t flags, float* values,
                 std::int64_t stride) {
    if (layout.group) {
        __m128 totals[tokens];
        quad_groups<Isa, bits, tokens>(quad, x, layout, flags, totals);
        for (int t = 0; t < tokens; ++t)
            _mm_storeu_ps(values + t * stride, _mm_mul_ps(totals[t], _mm_set1_ps(x.scales[t])));
        return;
    }
    __m128i sums[tokens];
    quad_dots<Isa, bits, tokens>(quad, x, layout, sums);
    const __m128 scale = load_f32x4(layout.scales, quad.columns);
    for (int t = 0; t < tokens; ++t) {
        const __m128i exact = _mm_sub_epi32(sums[t], _mm_set1_epi32(CodeTraits<bits>::zero * x.sums[t]));
        _mm_storeu_ps(values + t * stride,
                      _mm_mul_ps(_mm_cvtepi32_ps(exact), _mm_mul_ps(_mm_set1_ps(x.scales[t]), scale)));
    }
}

template <class Isa, int bits>
void quad_values_of(std::int64_t tokens, const Quad& quad, const Tokens& x, const CodesLayout<bits>& layout,
                    std::uint32_t flags, float* values, std::int64_t stride) {
    if constexpr (Isa::most_tokens > 2) {
        switch (tokens) {
            case 3: return quad_values<Isa, bits, 3>(quad, x, layout, flags, values, stride);
            case 4: return quad_values<Isa, bits, 4>(quad, x, layout, flags, values, stride);
            case 5: return quad_values<Isa, bits, 5>(quad, x, layout, flags, values, stride);
            case 6: return quad_values<Isa, bits, 6>(quad, x, layout, flags, values, stride);
            default: break;
        }
    }
    if (tokens == 2) return quad_values<Isa, bits, 2>(quad, x, layout, flags, values, stride);
    return quad_values<Isa, bits, 1>(quad, x, layout, flags, values, stride);
}

template <int bits>
Tokens tokens_of(const std::byte* prepared, std::int64_t total_rows, std::int64_t row,
                 const CodesLayout<bits>& layout) {
    const CodesRows rows(total_rows, layout.padded_depth, layout.groups);
    return {prepared + row * rows.stride, rows.stride, reinterpret_cast<const float*>(prepared + rows.scales) + row,
            reinterpret_cast<const std::int32_t*>(prepared + rows.sums) + row * layout.groups};
}

// Four rows stay in L1 while all tokens pass over them.
template <class Isa, int bits>
void rows_multiply(const MultiplyArgs& a) noexcept {
    const CodesLayout<bits> layout(a.matrix);
    const std::int64_t row_bytes = layout.row_bytes(), first = a.first_panel * panel_columns;
    const std::int64_t ahead = quads_ahead(row_bytes) * quad_rows;
    for (std::int64_t c = 0; c < a.panels * panel_columns; c += quad_rows) {
        Quad quad;
        for (int r = 0; r < quad_rows; ++r) {
            quad.columns[r] = first + c + r;
            quad.codes[r] = layout.panels + quad.columns[r] * row_bytes;
            quad.next[r] = quad.codes[r] + ahead * row_bytes;
        }
        for (std::int64_t row = 0; row < a.rows; row += Isa::most_tokens) {
            const std::int64_t tokens = a.rows - row < Isa::most_tokens ? a.rows - row : Isa::most_tokens;
            quad_values_of<Isa, bits>(tokens, quad, tokens_of(a.prepared, a.total_rows, a.row0 + row, layout), layout,
                                      a.matrix.flags, a.tile + row * a.tile_stride + c, a.tile_stride);
        }
    }
}

template <class Isa, int bits>
void rows_dot(const DotRowsArgs& a) noexcept {
    const CodesLayout<bits> layout(a.matrix);
    const std::int64_t row_bytes = layout.row_bytes(), ahead = quads_ahead(row_bytes) * quad_rows;
    const Tokens x = tokens_of(a.prepared, a.total_rows, a.row, layout);
    for (std::int64_t i = 0; i < a.count; i += quad_rows) {
        const std::int64_t rows = a.count - i < quad_rows ? a.count - i : quad_rows;
        Quad quad;
        for (int r = 0; r < quad_rows; ++r) {
            const std::int64_t at = r < rows ? i + r : i, later = at + ahead;
            quad.columns[r] = a.columns[at];
            quad.codes[r] = layout.panels + quad.columns[r] * row_bytes;
            quad.next[r] = layout.panels + a.columns[later < a.count ? later : a.count - 1] * row_bytes;
        }
        if (rows == quad_rows) {
            quad_values<Isa, bits, 1>(quad, x, layout, a.matrix.flags, a.values + i, quad_rows);
            continue;
        }
        float values[quad_rows];
        quad_values<Isa, bits, 1>(quad, x, layout, a.matrix.flags, values, quad_rows);
        for (std::int64_t r = 0; r < rows; ++r) a.values[i + r] = values[r];
    }
}

// The kernels of one instruction set, from its RowsIsa.
template <class Isa, int bits>
constexpr FormatKernels rows_kernels(const char* name) {
    return {name,
            few_rows_limit,
            panels_per_task,
            true,
            true,  // groups and the width of activations are the matrix's
            1,
            codes_prepared_bytes<Isa, bits>,
            codes_prepare<Isa, bits>,
            rows_multiply<Isa, bits>,
            0,
            rows_dot<Isa, bits>};
}

}  // namespace
}  // namespace fastffn
