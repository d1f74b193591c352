// AMX: tdpbf16ps and tdpbssd on whole tiles (16 rows of 64 bytes).
// Six accumulators and one tile of each operand: a product takes 16 cycles and its result about 52, so four chains
// would just do and six leave slack. The caller has the operating system's permission for tile registers.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "loops/loops.hpp"

namespace bench {
namespace amx {
namespace {

constexpr int chains = 6;

struct alignas(64) TileConfig {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t bytes_per_row[16];
    std::uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "ldtilecfg reads 64 bytes");

inline void configure() {
    TileConfig config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        config.bytes_per_row[tile] = 64;
        config.rows[tile] = 16;
    }
    // gcc 12's _tile_loadconfig does not say that it reads all 64 bytes, so stores to them might be dropped.
    __asm__ volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
    __asm__ volatile("" ::"r"(&config) : "memory");
}

inline void load_operands(const void* seed) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    __asm__ volatile("" ::"r"(seed) : "memory");
    _tile_loadd(6, seed, 64);
    _tile_loadd(7, static_cast<const char*>(seed) + 1024, 64);
}

// Adds one tile's contents to the sink and gives the tile registers back.
inline void finish(double* sink) {
    alignas(64) std::int32_t words[256] = {};
    __asm__ volatile("" ::"r"(words) : "memory");
    _tile_stored(0, words, 64);
    __asm__ volatile("" ::"r"(words) : "memory");
    _tile_release();
    for (int i = 0; i < 256; ++i) *sink += words[i];
}

void run_bf16(const void* seed, std::int64_t steps, double* sink) noexcept {
    configure();
    load_operands(seed);
    for (std::int64_t step = 0; step < steps; ++step) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    finish(sink);
}

void run_int8(const void* seed, std::int64_t steps, double* sink) noexcept {
    configure();
    load_operands(seed);
    for (std::int64_t step = 0; step < steps; ++step) {
        _tile_dpbssd(0, 6, 7);
        _tile_dpbssd(1, 6, 7);
        _tile_dpbssd(2, 6, 7);
        _tile_dpbssd(3, 6, 7);
        _tile_dpbssd(4, 6, 7);
        _tile_dpbssd(5, 6, 7);
    }
    finish(sink);
}

}  // namespace

const PeakLoop peak_bf16 = {Numbers::bf16, 5, "tdpbf16ps", 2.0 * 16 * 16 * 32 * chains, run_bf16};
const PeakLoop peak_int8 = {Numbers::int8, 5, "tdpbssd", 2.0 * 16 * 16 * 64 * chains, run_int8};

}  // namespace amx
}  // namespace bench
