// Dots and weighted sums of a tree with avx2.
#include "core/simd_avx2.hpp"

#include "routes/tree/tree_simd.hpp"

namespace fastffn::avx2 {

namespace {

inline float sum_lanes(F32 a) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

struct Rows {
    struct V : F32 {
        V() : F32(_mm256_setzero_ps()) {}
        V(F32 a) : F32(a) {}
        explicit V(float a) : F32(a) {}
    };
    static constexpr int tokens = 2;  // 8 sums of 16 registers
    static constexpr int sums = 8;

    template <int format>
    static V load(const std::byte* src) {
        if constexpr (format == weights_f32) return V(F32(_mm256_loadu_ps(reinterpret_cast<const float*>(src))));
        if constexpr (format == weights_int8)
            return V(
                F32(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src))))));
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
        return V(F32(format == weights_f16 ? _mm256_cvtph_ps(halves) : widen_bf16(halves)));
    }
    static void stream(std::byte* dst, V a) { _mm256_stream_ps(reinterpret_cast<float*>(dst), a.v); }
    // For y that is aligned as malloc does, which NumPy uses.
    static void stream_quarters(std::byte* dst, V a) {
        auto* floats = reinterpret_cast<float*>(dst);
        _mm_stream_ps(floats, _mm256_castps256_ps128(a.v));
        _mm_stream_ps(floats + 4, _mm256_extractf128_ps(a.v, 1));
    }
    static void finish_streams() { _mm_sfence(); }
};

}  // namespace

const TreeKernels tree = {
    "tree/avx2",
    {dot_each<Rows, weights_f32>, dot_each<Rows, weights_f16>, dot_each<Rows, weights_bf16>,
     dot_each<Rows, weights_int8>},
    {dot_shared<Rows, weights_f32>, dot_shared<Rows, weights_f16>, dot_shared<Rows, weights_bf16>,
     dot_shared<Rows, weights_int8>},
    {sum_rows<Rows, weights_f32>, sum_rows<Rows, weights_f16>, sum_rows<Rows, weights_bf16>,
     sum_rows<Rows, weights_int8>},
    widen<Rows>,
};

}  // namespace fastffn::avx2
