// Hadamard transforms with AVX-512.
//   instruction                  latency  per cycle    (Zen 4; Zen 5 and Intel twice that, shuffles once)
//   vaddps, vfmadd zmm           3, 4        1, 1      on different pipes: butterflies between lanes multiply by ±1, which is exact
//   vpermilps, vshuff32x4 zmm    1, 2        1
#include "core/simd_avx512.hpp"

#include "core/hadamard_simd.hpp"

namespace fastffn::avx512 {

namespace {

struct HadamardIsa {
    using F32 = avx512::F32;
    static constexpr int registers = 16;

    template <int half>
    static F32 lanes(F32 x) {
        __m512 other;
        if constexpr (half == 1) other = _mm512_permute_ps(x.v, 0xB1);
        if constexpr (half == 2) other = _mm512_permute_ps(x.v, 0x4E);
        if constexpr (half == 4) other = _mm512_shuffle_f32x4(x.v, x.v, 0xB1);
        if constexpr (half == 8) other = _mm512_shuffle_f32x4(x.v, x.v, 0x4E);
        constexpr int upper = half == 1 ? 0xAAAA : half == 2 ? 0xCCCC : half == 4 ? 0xF0F0 : 0xFF00;
        const __m512 signs =
            _mm512_mask_blend_ps(static_cast<__mmask16>(upper), _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
        return _mm512_fmadd_ps(x.v, signs, other);
    }
};

}  // namespace

void hadamard_row(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) noexcept {
    hadamard_any<HadamardIsa>(src, dtype, dst, shape);
}

}  // namespace fastffn::avx512
