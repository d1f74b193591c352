// Dots and weighted sums of a tree for any vector width. Include after simd_<isa>.hpp and a Rows with load<format>().
//
// A dot has four partial sums, one for every fourth register of columns, added up at the end: enough chains for one walker
// to fill the multiply-adds alone, and the same order whether tokens share the row or not.
#pragma once

#include "routes/tree/kernels.hpp"

namespace fastffn {
namespace {

constexpr int weights_f32 = 0, weights_f16 = 1, weights_bf16 = 2, weights_int8 = 3;
constexpr std::int64_t weight_bytes(int format) { return format == weights_f32 ? 4 : format == weights_int8 ? 1 : 2; }

// To L1 what the walker itself needs next, to L2 what the next tile does.
template <int level>
inline void prefetch(const std::byte* place, std::int64_t bytes) {
    for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(place + at, 0, level);
}

template <class Rows, int format, int count, bool shared>
inline void dot_block(const float* const* x, const std::byte* const* rows, std::int64_t depth, float* z) {
    using V = typename Rows::V;
    constexpr std::int64_t width = V::width, step = weight_bytes(format) * width;
    V sums[count][4];
    // Four registers of columns, or the `part` that is left. Constant indices keep the sums in registers.
    auto add = [&](std::int64_t c, int part) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            if (j >= part) break;
            const std::int64_t col = c + j * width, at = c / width * step + j * step;
            const V shared_row = Rows::template load<format>(rows[0] + at);
#pragma GCC unroll 4
            for (int i = 0; i < count; ++i)
                sums[i][j] =
                    multiply_add(V::load(x[i] + col),
                                 shared || i == 0 ? shared_row : Rows::template load<format>(rows[i] + at), sums[i][j]);
        }
    };
    std::int64_t c = 0;
    for (; c + 4 * width <= depth; c += 4 * width) add(c, 4);
    if (c < depth) add(c, static_cast<int>((depth - c + width - 1) / width));
#pragma GCC unroll 4
    for (int i = 0; i < count; ++i) z[i] = sum_lanes((sums[i][0] + sums[i][1]) + (sums[i][2] + sums[i][3]));
}

template <class Rows, int format>
void dot_each(const DotArgs& a) noexcept {
    if (a.ahead)
        for (std::int64_t i = 0; i < a.count; ++i) prefetch<3>(a.ahead[i], a.ahead_bytes);
    switch (a.count) {
        case 1: return dot_block<Rows, format, 1, false>(a.x, a.rows, a.depth, a.z);
        case 2: return dot_block<Rows, format, 2, false>(a.x, a.rows, a.depth, a.z);
        case 3:
            dot_block<Rows, format, 2, false>(a.x, a.rows, a.depth, a.z);
            return dot_block<Rows, format, 1, false>(a.x + 2, a.rows + 2, a.depth, a.z + 2);
        case 4:
            for (std::int64_t i = 0; i < 4; i += Rows::tokens)
                dot_block<Rows, format, Rows::tokens, false>(a.x + i, a.rows + i, a.depth, a.z + i);
            return;
        default: return;
    }
}

template <class Rows, int format>
void dot_shared(const DotArgs& a) noexcept {
    std::int64_t i = 0;
    for (; i + Rows::tokens <= a.count; i += Rows::tokens) {
        if (a.ahead)
            for (int j = 0; j < Rows::tokens; ++j) prefetch<2>(a.ahead[i + j], a.ahead_bytes);
        dot_block<Rows, format, Rows::tokens, true>(a.x + i, a.rows, a.depth, a.z + i);
    }
    if (Rows::tokens > 2 && i + 2 <= a.count) {
        dot_block<Rows, format, 2, true>(a.x + i, a.rows, a.depth, a.z + i);
        i += 2;
    }
    if (i < a.count) dot_block<Rows, format, 1, true>(a.x + i, a.rows, a.depth, a.z + i);
}

// `registers` of columns of one token.
template <class Rows, int format, int registers>
inline void sum_block(const SumArgs& a, std::int64_t token, std::int64_t col) {
    using V = typename Rows::V;
    constexpr std::int64_t width = V::width, step = weight_bytes(format) * width;
    const std::int64_t left = a.col0 + a.cols - col;
    const std::int64_t bytes = a.dtype == DType::f32 ? 4 : 2;
    std::byte* y = a.y[token] + col * bytes;
    V sums[registers];
    for (int r = 0; r < registers; ++r)
        sums[r] = a.add ? V::load_as(y + r * width * 4, DType::f32, left - r * width) : V(0.0f);
    for (std::int32_t j = a.begin[token]; j < a.begin[token + 1]; ++j) {
        const V weight(a.terms[j].weight);
        const std::byte* row = a.terms[j].row + col * weight_bytes(format);
        for (int r = 0; r < registers; ++r)
            sums[r] = multiply_add(weight, Rows::template load<format>(row + r * step), sums[r]);
    }
    if (a.stream && a.dtype == DType::f32 && left >= registers * width &&
        reinterpret_cast<std::uintptr_t>(y) % 16 == 0) {
        if (reinterpret_cast<std::uintptr_t>(y) % 64 == 0)
            for (int r = 0; r < registers; ++r) Rows::stream(y + r * width * 4, sums[r]);
        else
            for (int r = 0; r < registers; ++r) Rows::stream_quarters(y + r * width * 4, sums[r]);
        return;
    }
    for (int r = 0; r < registers; ++r) store_as(y + r * width * bytes, a.dtype, sums[r], left - r * width);
}

template <class Rows, int format>
void sum_rows(const SumArgs& a) noexcept {
    constexpr std::int64_t width = Rows::V::width, wide = Rows::sums * width;
    for (std::int64_t token = 0; token < a.count; ++token) {
        if (a.ahead) prefetch<2>(a.ahead[token], a.ahead_bytes);
        std::int64_t col = a.col0;
        const std::int64_t end = a.col0 + a.cols;
        for (; col + wide <= end; col += wide) sum_block<Rows, format, Rows::sums>(a, token, col);
        for (; col < end; col += width) sum_block<Rows, format, 1>(a, token, col);
    }
    if (a.stream) Rows::finish_streams();
}

template <class Rows>
void widen(const std::byte* src, DType dtype, std::int64_t cols, float* dst) noexcept {
    using V = typename Rows::V;
    const std::int64_t bytes = dtype == DType::f32 ? 4 : 2;
    for (std::int64_t c = 0; c < round_up(cols, 16); c += V::width)
        store(dst + c, c < cols ? V(V::load_as(src + c * bytes, dtype, cols - c)) : V(0.0f));
}

}  // namespace
}  // namespace fastffn
