// Reader and f32 peak in plain C++: what the compiler makes of a loop with the flags of the whole build.
#include <cstddef>
#include <cstdint>

#include "loops/loops.hpp"

namespace bench {
namespace ref {
namespace {

constexpr int lanes = 4, chains = 10;  // 10 registers of 4 floats cover an add's latency of 3 to 4 at 2 per cycle
typedef float f32x4 __attribute__((vector_size(16)));

void run_f32(const void* seed, std::int64_t steps, double* sink) noexcept {
    const f32x4* values = static_cast<const f32x4*>(seed);
    f32x4 acc[chains];
    for (int i = 0; i < chains; ++i) acc[i] = values[i];
    const f32x4 scale = values[chains] * 1e-3f + 0.5f, shift = values[chains + 1];
    for (std::int64_t step = 0; step < steps; ++step) {
        for (int i = 0; i < chains; ++i) acc[i] = acc[i] * scale + shift;
    }
    for (int i = 0; i < chains; ++i) {
        for (int lane = 0; lane < lanes; ++lane) *sink += static_cast<double>(acc[i][lane]);
    }
}

}  // namespace

std::uint64_t read(const void* data, std::int64_t bytes, std::int64_t passes) noexcept {
    std::uint64_t total[8] = {};
    for (std::int64_t pass = 0; pass < passes; ++pass) {
        const std::uint64_t* words = static_cast<const std::uint64_t*>(data);
        for (std::int64_t i = 0; i < bytes / 8; i += 8) {
            for (int j = 0; j < 8; ++j) total[j] ^= words[i + j];
        }
        __asm__ volatile("" ::: "memory");  // the next pass may not reuse this one's loads
    }
    return total[0] ^ total[1] ^ total[2] ^ total[3] ^ total[4] ^ total[5] ^ total[6] ^ total[7];
}

const PeakLoop peak_f32 = {Numbers::f32, 0, "multiply and add, plain C++", 2.0 * lanes * chains, run_f32};

}  // namespace ref
}  // namespace bench
