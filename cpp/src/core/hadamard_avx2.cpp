// Hadamard transforms with AVX2.
//   instruction                 latency  per cycle    (Zen 3 and later; Intel the same but one VPERM2F128)
//   vaddps, vfmadd ymm          3, 4        2, 2      butterflies between lanes multiply by ±1, which is exact
//   vpermilps, vperm2f128       1, 3        2, 1
#include "core/simd_avx2.hpp"

#include "core/hadamard_simd.hpp"

namespace fastffn::avx2 {

namespace {

struct HadamardIsa {
    using F32 = avx2::F32;
    static constexpr int registers = 8;

    template <int half>
    static F32 lanes(F32 x) {
        __m256 other;
        if constexpr (half == 1) other = _mm256_permute_ps(x.v, 0xB1);
        if constexpr (half == 2) other = _mm256_permute_ps(x.v, 0x4E);
        if constexpr (half == 4) other = _mm256_permute2f128_ps(x.v, x.v, 0x01);
        constexpr int upper = half == 1 ? 0xAA : half == 2 ? 0xCC : 0xF0;
        const __m256 signs = _mm256_blend_ps(_mm256_set1_ps(1.0f), _mm256_set1_ps(-1.0f), upper);
        return _mm256_fmadd_ps(x.v, signs, other);
    }
};

}  // namespace

void hadamard_row(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) noexcept {
    hadamard_any<HadamardIsa>(src, dtype, dst, shape);
}

}  // namespace fastffn::avx2
