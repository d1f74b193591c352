// Top-k routing with AVX-512.
#include "core/simd_avx512.hpp"

#include "core/activations.hpp"

namespace fastffn::avx512 {
namespace {

inline F32 fill_after(F32 a, std::int64_t count, float value) {
    return _mm512_mask_blend_ps(first_lanes(count), _mm512_set1_ps(value), a.v);
}
inline bool all_below_infinity(F32 a) {
    return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ) == 0xffff;
}
inline float largest(F32 a) { return _mm512_reduce_max_ps(a.v); }
inline float total(F32 a) { return _mm512_reduce_add_ps(a.v); }

// Sixteen keys.
struct I32 {
    static constexpr std::int64_t width = 16;
    __m512i v;

    I32(__m512i value) : v(value) {}
    explicit I32(std::int32_t value) : v(_mm512_set1_epi32(value)) {}
    static I32 load(const std::int32_t* src) { return _mm512_loadu_si512(src); }
    // Lanes from `count` on can never be picked before a real one.
    static I32 key_of(F32 a, std::int64_t count) {
        const __m512i bits = _mm512_castps_si512(a.v);
        const __m512i flip = _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1);
        return _mm512_mask_blend_epi32(first_lanes(count), _mm512_set1_epi32(INT32_MIN), _mm512_xor_si512(bits, flip));
    }
};
inline I32 maximum(I32 a, I32 b) { return _mm512_max_epi32(a.v, b.v); }
inline std::int32_t largest(I32 a) { return _mm512_reduce_max_epi32(a.v); }
inline void store(std::int32_t* dst, I32 a) { _mm512_storeu_si512(dst, a.v); }
inline unsigned equal_lanes(I32 a, std::int32_t value) {
    return _mm512_cmpeq_epi32_mask(a.v, _mm512_set1_epi32(value));
}
inline I32 replace_lane(I32 a, int lane, std::int32_t value) {
    return _mm512_mask_set1_epi32(a.v, static_cast<__mmask16>(1u << lane), value);
}

}  // namespace
}  // namespace fastffn::avx512

#include "routes/topk/topk_simd.hpp"

namespace fastffn::avx512 {

namespace {
void rows(const TopkArgs& args) noexcept { route_rows<F32, I32>(args); }
}  // namespace

const TopkKernels topk = {"topk/avx512", rows};

}  // namespace fastffn::avx512
