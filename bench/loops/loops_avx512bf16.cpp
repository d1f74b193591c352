// AVX-512 BF16: vdpbf16ps, 32 products of bfloat16 per instruction.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "loops/loops.hpp"

namespace bench {
namespace avx512bf16 {
namespace {

constexpr int chains = 16;  // a latency of 6 at two per cycle needs 12

void run_bf16(const void* seed, std::int64_t steps, double* sink) noexcept {
    const float* values = static_cast<const float*>(seed);
    __m512 acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = _mm512_loadu_ps(values + 16 * i);
    // The seed holds bfloat16; pairs of them read as the accumulators' first values.
    __m512i a = _mm512_loadu_si512(values + 16 * chains), b = _mm512_loadu_si512(values + 16 * chains + 16);
    for (std::int64_t step = 0; step < steps; ++step) {
        __asm__ volatile("" : "+v"(a), "+v"(b));  // operands of unknown value: nothing can be computed ahead
        for (int i = 0; i < chains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)a, (__m512bh)b);
    }
    alignas(64) float lanes[16];
    for (int i = 0; i < chains; ++i) {
        _mm512_store_ps(lanes, acc[i]);
        for (float lane : lanes) *sink += static_cast<double>(lane);
    }
}

}  // namespace

const PeakLoop peak_bf16 = {Numbers::bf16, 4, "vdpbf16ps zmm", 2.0 * 32 * chains, run_bf16};

}  // namespace avx512bf16
}  // namespace bench
