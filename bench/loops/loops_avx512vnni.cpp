// AVX-512 VNNI: vpdpbusd, 64 products of bytes per instruction.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "loops/loops.hpp"

namespace bench {
namespace avx512vnni {
namespace {

constexpr int chains = 16;  // two per cycle at a latency of 4 to 5 need 10

void run_int8(const void* seed, std::int64_t steps, double* sink) noexcept {
    const char* values = static_cast<const char*>(seed);
    __m512i acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = _mm512_loadu_si512(values + 64 * i);
    __m512i a = _mm512_loadu_si512(values + 64 * chains), b = _mm512_loadu_si512(values + 64 * chains + 64);
    for (std::int64_t step = 0; step < steps; ++step) {
        __asm__ volatile("" : "+v"(a), "+v"(b));  // operands of unknown value: nothing can be computed ahead
        for (int i = 0; i < chains; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], a, b);
    }
    alignas(64) std::int32_t lanes[16];
    for (int i = 0; i < chains; ++i) {
        _mm512_store_si512(lanes, acc[i]);
        for (std::int32_t lane : lanes) *sink += lane;
    }
}

}  // namespace

const PeakLoop peak_int8 = {Numbers::int8, 3, "vpdpbusd zmm", 2.0 * 64 * chains, run_int8};

}  // namespace avx512vnni
}  // namespace bench
