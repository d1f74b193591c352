// AVX-512 F and BW: 64-byte loads; vfmadd231ps; vpmaddubsw + vpmaddwd + vpaddd, the int8 dot without VNNI.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "loops/loops.hpp"

namespace bench {
namespace avx512 {
namespace {

constexpr int chains = 16;  // two FMAs per cycle at a latency of 4 need 8; twice that hides any scheduling luck

template <bool ahead>
inline std::uint64_t read_lines(const void* data, std::int64_t bytes, std::int64_t passes) {
    constexpr std::int64_t distance = 6144;  // as in loops_avx2.cpp
    __m512i acc0 = _mm512_setzero_si512(), acc1 = acc0, acc2 = acc0, acc3 = acc0, acc4 = acc0, acc5 = acc0, acc6 = acc0,
            acc7 = acc0;
    for (std::int64_t pass = 0; pass < passes; ++pass) {
        const char* at = static_cast<const char*>(data);
        const char* const end = at + bytes;
        for (; at != end; at += 512) {
            if (ahead) {
                for (int line = 0; line < 8; ++line) _mm_prefetch(at + distance + 64 * line, _MM_HINT_T0);
            }
            acc0 = _mm512_xor_si512(acc0, _mm512_load_si512(at + 0));
            acc1 = _mm512_xor_si512(acc1, _mm512_load_si512(at + 64));
            acc2 = _mm512_xor_si512(acc2, _mm512_load_si512(at + 128));
            acc3 = _mm512_xor_si512(acc3, _mm512_load_si512(at + 192));
            acc4 = _mm512_xor_si512(acc4, _mm512_load_si512(at + 256));
            acc5 = _mm512_xor_si512(acc5, _mm512_load_si512(at + 320));
            acc6 = _mm512_xor_si512(acc6, _mm512_load_si512(at + 384));
            acc7 = _mm512_xor_si512(acc7, _mm512_load_si512(at + 448));
        }
        __asm__ volatile("" ::: "memory");  // the next pass may not reuse this one's loads
    }
    acc0 = _mm512_xor_si512(_mm512_xor_si512(acc0, acc1), _mm512_xor_si512(acc2, acc3));
    acc4 = _mm512_xor_si512(_mm512_xor_si512(acc4, acc5), _mm512_xor_si512(acc6, acc7));
    alignas(64) std::uint64_t words[8];
    _mm512_store_si512(words, _mm512_xor_si512(acc0, acc4));
    return words[0] ^ words[1] ^ words[2] ^ words[3] ^ words[4] ^ words[5] ^ words[6] ^ words[7];
}

void run_f32(const void* seed, std::int64_t steps, double* sink) noexcept {
    const float* values = static_cast<const float*>(seed);
    __m512 acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = _mm512_loadu_ps(values + 16 * i);
    __m512 a = _mm512_loadu_ps(values + 16 * chains), b = _mm512_loadu_ps(values + 16 * chains + 16);
    for (std::int64_t step = 0; step < steps; ++step) {
        __asm__ volatile("" : "+v"(a), "+v"(b));  // operands of unknown value: nothing can be computed ahead
        for (int i = 0; i < chains; ++i) acc[i] = _mm512_fmadd_ps(a, b, acc[i]);
    }
    alignas(64) float lanes[16];
    for (int i = 0; i < chains; ++i) {
        _mm512_store_ps(lanes, acc[i]);
        for (float lane : lanes) *sink += static_cast<double>(lane);
    }
}

void run_int8(const void* seed, std::int64_t steps, double* sink) noexcept {
    const char* values = static_cast<const char*>(seed);
    __m512i acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = _mm512_loadu_si512(values + 64 * i);
    __m512i a = _mm512_loadu_si512(values + 64 * chains), b = _mm512_loadu_si512(values + 64 * chains + 64);
    const __m512i ones = _mm512_set1_epi16(1);
    for (std::int64_t step = 0; step < steps; ++step) {
        for (int i = 0; i < chains; ++i) {
            __asm__ volatile("" : "+v"(a), "+v"(b));  // or the product would be taken out of the loop
            acc[i] = _mm512_add_epi32(acc[i], _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
        }
    }
    alignas(64) std::int32_t lanes[16];
    for (int i = 0; i < chains; ++i) {
        _mm512_store_si512(lanes, acc[i]);
        for (std::int32_t lane : lanes) *sink += lane;
    }
}

}  // namespace

std::uint64_t read(const void* data, std::int64_t bytes, std::int64_t passes) noexcept {
    return read_lines<false>(data, bytes, passes);
}
std::uint64_t read_ahead(const void* data, std::int64_t bytes, std::int64_t passes) noexcept {
    return read_lines<true>(data, bytes, passes);
}

const PeakLoop peak_f32 = {Numbers::f32, 2, "vfmadd231ps zmm", 2.0 * 16 * chains, run_f32};
const PeakLoop peak_int8 = {Numbers::int8, 2, "vpmaddubsw + vpmaddwd + vpaddd zmm", 2.0 * 64 * chains, run_int8};

}  // namespace avx512
}  // namespace bench
