// Dots and weighted sums of a tree with avx512.
//
//   instruction          latency  per cycle    (Zen 4 / Zen 5)
//   vfmadd231ps zmm, m      4       1 / 2
//   load zmm                        1 / 2      so a shared row leaves the loads just behind the multiply-adds
#include "core/simd_avx512.hpp"

#include "routes/tree/tree_simd.hpp"

namespace fastffn::avx512 {

namespace {

inline float sum_lanes(F32 a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Rows {
    struct V : F32 {
        V() : F32(_mm512_setzero_ps()) {}
        V(F32 a) : F32(a) {}
        explicit V(float a) : F32(a) {}
    };
    static constexpr int tokens = 4;  // 16 sums of 32 registers
    static constexpr int sums = 4;    // four chains of multiply-adds; 8 and 12 were no faster

    template <int format>
    static V load(const std::byte* src) {
        if constexpr (format == weights_f32) return V(F32(_mm512_loadu_ps(src)));
        if constexpr (format == weights_int8)
            return V(
                F32(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))))));
        const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src));
        return V(F32(format == weights_f16 ? _mm512_cvtph_ps(halves) : widen_bf16(halves)));
    }
    static void stream(std::byte* dst, V a) { _mm512_stream_ps(reinterpret_cast<float*>(dst), a.v); }
    // For y that is aligned as malloc does, which NumPy uses.
    static void stream_quarters(std::byte* dst, V a) {
        auto* floats = reinterpret_cast<float*>(dst);
        _mm_stream_ps(floats, _mm512_castps512_ps128(a.v));
        _mm_stream_ps(floats + 4, _mm512_extractf32x4_ps(a.v, 1));
        _mm_stream_ps(floats + 8, _mm512_extractf32x4_ps(a.v, 2));
        _mm_stream_ps(floats + 12, _mm512_extractf32x4_ps(a.v, 3));
    }
    static void finish_streams() { _mm_sfence(); }
};

}  // namespace

const TreeKernels tree = {
    "tree/avx512base",
    {dot_each<Rows, weights_f32>, dot_each<Rows, weights_f16>, dot_each<Rows, weights_bf16>,
     dot_each<Rows, weights_int8>},
    {dot_shared<Rows, weights_f32>, dot_shared<Rows, weights_f16>, dot_shared<Rows, weights_bf16>,
     dot_shared<Rows, weights_int8>},
    {sum_rows<Rows, weights_f32>, sum_rows<Rows, weights_f16>, sum_rows<Rows, weights_bf16>,
     sum_rows<Rows, weights_int8>},
    widen<Rows>,
};

}  // namespace fastffn::avx512
