// Top-k routing with AVX2.
#include "core/simd_avx2.hpp"

#include "core/activations.hpp"

namespace fastffn::avx2 {
namespace {

inline F32 fill_after(F32 a, std::int64_t count, float value) {
    return _mm256_blendv_ps(_mm256_set1_ps(value), a.v, _mm256_castsi256_ps(first_lanes(count)));
}
inline bool all_below_infinity(F32 a) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a.v, _mm256_set1_ps(__builtin_inff()), _CMP_LT_OQ)) == 0xff;
}
inline float largest(F32 a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}
inline float total(F32 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// Eight keys.
struct I32 {
    static constexpr std::int64_t width = 8;
    __m256i v;

    I32(__m256i value) : v(value) {}
    explicit I32(std::int32_t value) : v(_mm256_set1_epi32(value)) {}
    static I32 load(const std::int32_t* src) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)); }
    // Lanes from `count` on can never be picked before a real one.
    static I32 key_of(F32 a, std::int64_t count) {
        const __m256i bits = _mm256_castps_si256(a.v);
        const __m256i flip = _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1);
        return _mm256_blendv_epi8(_mm256_set1_epi32(INT32_MIN), _mm256_xor_si256(bits, flip), first_lanes(count));
    }
};
inline I32 maximum(I32 a, I32 b) { return _mm256_max_epi32(a.v, b.v); }
inline std::int32_t largest(I32 a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
inline void store(std::int32_t* dst, I32 a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), a.v); }
inline unsigned equal_lanes(I32 a, std::int32_t value) {
    return static_cast<unsigned>(
        _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, _mm256_set1_epi32(value)))));
}
inline I32 replace_lane(I32 a, int lane, std::int32_t value) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_blendv_epi8(a.v, _mm256_set1_epi32(value), _mm256_cmpeq_epi32(index, _mm256_set1_epi32(lane)));
}

}  // namespace
}  // namespace fastffn::avx2

#include "routes/topk/topk_simd.hpp"

namespace fastffn::avx2 {

namespace {
void rows(const TopkArgs& args) noexcept { route_rows<F32, I32>(args); }
}  // namespace

const TopkKernels topk = {"topk/avx2", rows};

}  // namespace fastffn::avx2
