// Registers and multiply-adds of AVX2 for blocks.hpp: two registers are one panel of 16 columns.
#pragma once

#include <immintrin.h>

#include "core/kernel.hpp"

namespace fastffn {
namespace {

constexpr std::int64_t panels_per_task = 4;

struct Wide {
    using Register = __m256i;
    // 6 rows × 2 registers are 12 accumulators of the 16 registers; 2 hold weights, 1 the broadcast activation.
    static constexpr int register_bytes = 32, block_registers = 2;
    static constexpr int few_panels = 1;
    static constexpr int few_unroll(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
    using Weights = Register;
    static constexpr std::int64_t word_bytes = 4, weight_bytes = 64;
    static constexpr int direct_blocks = 0;
    static constexpr std::int64_t few_rows = 6;  // few_rows_limit of blocks.hpp, which says why
    static Weights load(const std::byte* panel, std::int64_t k, int part) {
        return load_weights(panel + k * 64 + part * register_bytes);
    }
    static Register load_weights(const std::byte* weights) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights));
    }
    static Register broadcast(const std::byte* word) {
        int value;
        __builtin_memcpy(&value, word, 4);
        return _mm256_set1_epi32(value);
    }

    // bf16 is the upper half of f32: a shift and a mask split a pair of depths.
    using Floats = __m256;
    static Floats even_bf16(Register pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
    static Floats odd_bf16(Register pairs) {
        return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static Floats widen_f16(const std::byte* halves) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    }
    static Floats multiply_add(Register a, Floats b, Floats c) { return _mm256_fmadd_ps(_mm256_castsi256_ps(a), b, c); }
    static void store_floats(std::byte* dst, Floats value) { _mm256_storeu_ps(reinterpret_cast<float*>(dst), value); }
};

struct SumF32 : Wide {
    using Acc = __m256;
    static Acc zero() { return _mm256_setzero_ps(); }
    static Acc load_acc(const float* tile) { return _mm256_loadu_ps(tile); }
    static void store_acc(float* tile, Acc acc) { _mm256_storeu_ps(tile, acc); }
    static Acc sum(Acc a, Acc b) { return _mm256_add_ps(a, b); }
};

// int32 sums live in the f32 tile as bits until the last chunk.
struct SumI32 : Wide {
    using Acc = __m256i;
    static Acc zero() { return _mm256_setzero_si256(); }
    static Acc load_acc(const float* tile) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile)); }
    static void store_acc(float* tile, Acc acc) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(tile), acc); }
    static Acc sum(Acc a, Acc b) { return _mm256_add_epi32(a, b); }
};

//   instruction        latency  per cycle    (Haswell to Zen 5)
//   vfmadd231ps ymm      4-5        2
struct FmaF32 : SumF32 {
    static Acc dot(Acc acc, Register word, Register weights) {
        return multiply_add(word, _mm256_castsi256_ps(weights), acc);
    }
};

}  // namespace
}  // namespace fastffn
