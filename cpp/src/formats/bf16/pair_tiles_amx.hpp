// Rows of bf16 pairs as AMX tiles, for every format that multiplies with TDPBF16PS; few rows as VDPBF16PS wants them.
#pragma once

#include "formats/bf16/pairs_avx512bf16.hpp"
#include "formats/common/tiles_amx.hpp"

namespace fastffn {
namespace {

struct PairsProduct {
    template <int accumulator>
    static void run() {
        if constexpr (accumulator == 0) _tile_dpbf16ps(0, 4, 6);
        if constexpr (accumulator == 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (accumulator == 2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (accumulator == 3) _tile_dpbf16ps(3, 5, 7);
    }
};

inline std::int64_t pair_tiles_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    if (total_rows <= few_rows_limit) return pairs_prepared_bytes(total_rows, matrix);
    return TileLayout(total_rows, depth * 2).bytes();
}

inline void pair_tiles_prepare(const PrepareArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return pairs_prepare(a);
    const TileLayout layout(a.total_rows, a.depth * 2);
    const std::int64_t bytes = element_bytes(a.dtype);
    const bool reaches_end = a.col0 + a.cols == a.depth;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        // Half a line, 16 columns, at a time; lanes past the last column are stored as zeros.
        std::int64_t c = 0;
        for (; c < a.cols; c += 16) {
            const std::int64_t column = a.col0 + c;
            std::byte* dst = a.prepared + layout.line(a.row0 + r, column / 32) + column % 32 * 2;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), load_bf16(src + c * bytes, a.dtype, a.cols - c));
        }
        if (reaches_end && (a.col0 + c) % 32) {
            const std::int64_t column = a.col0 + c;
            std::byte* dst = a.prepared + layout.line(a.row0 + r, column / 32) + column % 32 * 2;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), _mm256_setzero_si256());
        }
    }
}

}  // namespace
}  // namespace fastffn
