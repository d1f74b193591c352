// Registers and multiply-adds of AVX-512 for blocks.hpp: one register is one panel of 16 columns.
#pragma once

#include <immintrin.h>

#include "core/kernel.hpp"

namespace fastffn {
namespace {

constexpr std::int64_t panels_per_task = 4;

struct Wide {
    using Register = __m512i;
    static constexpr int register_bytes = 64, block_registers = 4;
    // Few rows: at most 24 accumulators, of one or two panels.
    static constexpr int few_panels = 2;
    static constexpr int few_unroll(int rows) { return rows <= 3 ? 4 : 2; }
    using Weights = Register;
    static constexpr std::int64_t word_bytes = 4, weight_bytes = 64;
    static constexpr int direct_blocks = 0;
    static constexpr std::int64_t few_rows = 6;  // few_rows_limit of blocks.hpp, which says why
    static Weights load(const std::byte* panel, std::int64_t k, int part) {
        return load_weights(panel + k * 64 + part * register_bytes);
    }
    static Register load_weights(const std::byte* weights) { return _mm512_loadu_si512(weights); }
    static Register broadcast(const std::byte* word) {
        int value;
        __builtin_memcpy(&value, word, 4);
        return _mm512_set1_epi32(value);
    }

    // bf16 is the upper half of f32: a shift and a mask split a pair of depths.
    using Floats = __m512;
    static Floats even_bf16(Register pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
    static Floats odd_bf16(Register pairs) {
        return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
    }
    static Floats widen_f16(const std::byte* halves) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
    }
    static Floats multiply_add(Register a, Floats b, Floats c) { return _mm512_fmadd_ps(_mm512_castsi512_ps(a), b, c); }
    static void store_floats(std::byte* dst, Floats value) { _mm512_storeu_ps(reinterpret_cast<float*>(dst), value); }
};

struct SumF32 : Wide {
    using Acc = __m512;
    static Acc zero() { return _mm512_setzero_ps(); }
    static Acc load_acc(const float* tile) { return _mm512_loadu_ps(tile); }
    static void store_acc(float* tile, Acc acc) { _mm512_storeu_ps(tile, acc); }
    static Acc sum(Acc a, Acc b) { return _mm512_add_ps(a, b); }
};

// int32 sums live in the f32 tile as bits until the last chunk.
struct SumI32 : Wide {
    using Acc = __m512i;
    static Acc zero() { return _mm512_setzero_si512(); }
    static Acc load_acc(const float* tile) { return _mm512_loadu_si512(tile); }
    static void store_acc(float* tile, Acc acc) { _mm512_storeu_si512(tile, acc); }
    static Acc sum(Acc a, Acc b) { return _mm512_add_epi32(a, b); }
};

//   instruction        latency  per cycle    (Zen 5; Intel server cores alike)
//   vfmadd231ps zmm       4         2
//   vbroadcastss m32      -         2        shares the two load ports with the weights
struct FmaF32 : SumF32 {
    static Acc dot(Acc acc, Register word, Register weights) {
        return multiply_add(word, _mm512_castsi512_ps(weights), acc);
    }
};

}  // namespace
}  // namespace fastffn
