// AVX2: 32-byte loads; vfmadd231ps; vpmaddubsw + vpmaddwd + vpaddd, the int8 dot of a CPU without VNNI.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "loops/loops.hpp"

namespace bench {
namespace avx2 {
namespace {

// 16 registers: 12 chains cover two FMAs per cycle at a latency of 4 to 5, and leave room for the operands.
constexpr int chains = 12;

template <bool ahead>
inline std::uint64_t read_lines(const void* data, std::int64_t bytes, std::int64_t passes) {
    // Far enough to hide DRAM behind 100 lines in flight; the last prefetches run past the end, which never faults.
    constexpr std::int64_t distance = 6144;
    __m256i acc0 = _mm256_setzero_si256(), acc1 = acc0, acc2 = acc0, acc3 = acc0, acc4 = acc0, acc5 = acc0, acc6 = acc0,
            acc7 = acc0;
    for (std::int64_t pass = 0; pass < passes; ++pass) {
        const char* at = static_cast<const char*>(data);
        const char* const end = at + bytes;
        for (; at != end; at += 256) {
            if (ahead) {
                for (int line = 0; line < 4; ++line) _mm_prefetch(at + distance + 64 * line, _MM_HINT_T0);
            }
            const __m256i* line = reinterpret_cast<const __m256i*>(at);
            acc0 = _mm256_xor_si256(acc0, _mm256_load_si256(line + 0));
            acc1 = _mm256_xor_si256(acc1, _mm256_load_si256(line + 1));
            acc2 = _mm256_xor_si256(acc2, _mm256_load_si256(line + 2));
            acc3 = _mm256_xor_si256(acc3, _mm256_load_si256(line + 3));
            acc4 = _mm256_xor_si256(acc4, _mm256_load_si256(line + 4));
            acc5 = _mm256_xor_si256(acc5, _mm256_load_si256(line + 5));
            acc6 = _mm256_xor_si256(acc6, _mm256_load_si256(line + 6));
            acc7 = _mm256_xor_si256(acc7, _mm256_load_si256(line + 7));
        }
        __asm__ volatile("" ::: "memory");  // the next pass may not reuse this one's loads
    }
    acc0 = _mm256_xor_si256(_mm256_xor_si256(acc0, acc1), _mm256_xor_si256(acc2, acc3));
    acc4 = _mm256_xor_si256(_mm256_xor_si256(acc4, acc5), _mm256_xor_si256(acc6, acc7));
    alignas(32) std::uint64_t words[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(words), _mm256_xor_si256(acc0, acc4));
    return words[0] ^ words[1] ^ words[2] ^ words[3];
}

void run_f32(const void* seed, std::int64_t steps, double* sink) noexcept {
    const float* values = static_cast<const float*>(seed);
    __m256 acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = _mm256_loadu_ps(values + 8 * i);
    __m256 a = _mm256_loadu_ps(values + 8 * chains), b = _mm256_loadu_ps(values + 8 * chains + 8);
    for (std::int64_t step = 0; step < steps; ++step) {
        __asm__ volatile("" : "+x"(a), "+x"(b));  // operands of unknown value: nothing can be computed ahead
        for (int i = 0; i < chains; ++i) acc[i] = _mm256_fmadd_ps(a, b, acc[i]);
    }
    alignas(32) float lanes[8];
    for (int i = 0; i < chains; ++i) {
        _mm256_store_ps(lanes, acc[i]);
        for (float lane : lanes) *sink += static_cast<double>(lane);
    }
}

void run_int8(const void* seed, std::int64_t steps, double* sink) noexcept {
    constexpr int dots = 8;  // 8 accumulators, one temporary each in flight
    const __m256i* values = static_cast<const __m256i*>(seed);
    __m256i acc[dots];
    for (int i = 0; i < dots; ++i) acc[i] = _mm256_loadu_si256(values + i);
    __m256i a = _mm256_loadu_si256(values + dots), b = _mm256_loadu_si256(values + dots + 1);
    const __m256i ones = _mm256_set1_epi16(1);
    for (std::int64_t step = 0; step < steps; ++step) {
        for (int i = 0; i < dots; ++i) {
            __asm__ volatile("" : "+x"(a), "+x"(b));  // or the product would be taken out of the loop
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
        }
    }
    alignas(32) std::int32_t lanes[8];
    for (int i = 0; i < dots; ++i) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), acc[i]);
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

const PeakLoop peak_f32 = {Numbers::f32, 1, "vfmadd231ps ymm", 2.0 * 8 * chains, run_f32};
const PeakLoop peak_int8 = {Numbers::int8, 1, "vpmaddubsw + vpmaddwd + vpaddd ymm", 2.0 * 32 * 8, run_int8};

}  // namespace avx2
}  // namespace bench
