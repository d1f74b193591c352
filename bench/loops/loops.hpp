// The loops that measure this machine: one reader and the arithmetic peaks of each instruction set.
// Plain data and function pointers only, as the files that fill it are compiled with different flags.
#pragma once

#include <cstdint>

namespace bench {

// Reads `bytes` (a multiple of read_granule) from `data`, which is 64-byte aligned, `passes` times over; returns the
// exclusive or of what it read, so that no load can be left out.
using ReadLoop = std::uint64_t (*)(const void* data, std::int64_t bytes, std::int64_t passes) noexcept;
constexpr std::int64_t read_granule = 1024;

// Runs `steps` rounds of arithmetic on registers, starting from `seed` (peak_seed_bytes of random f32, bf16 or int8
// numbers near 1, as `numbers` says); adds to *sink.
using PeakFunction = void (*)(const void* seed, std::int64_t steps, double* sink) noexcept;
constexpr std::int64_t peak_seed_bytes = 4096;

enum class Numbers { f32, bf16, int8 };

struct PeakLoop {
    Numbers numbers;
    int isa;              // fastffn::Isa that it needs
    const char* what;     // the instruction
    double ops_per_step;  // a multiply and an add count as two
    PeakFunction run;
};

namespace ref {
std::uint64_t read(const void*, std::int64_t, std::int64_t) noexcept;
extern const PeakLoop peak_f32;
}  // namespace ref
namespace avx2 {
std::uint64_t read(const void*, std::int64_t, std::int64_t) noexcept;
std::uint64_t read_ahead(const void*, std::int64_t, std::int64_t) noexcept;
extern const PeakLoop peak_f32, peak_int8;
}  // namespace avx2
namespace avx512 {
std::uint64_t read(const void*, std::int64_t, std::int64_t) noexcept;
std::uint64_t read_ahead(const void*, std::int64_t, std::int64_t) noexcept;
extern const PeakLoop peak_f32, peak_int8;
}  // namespace avx512
namespace avx512vnni {
extern const PeakLoop peak_int8;
}
namespace avx512bf16 {
extern const PeakLoop peak_bf16;
}
namespace amx {
extern const PeakLoop peak_bf16, peak_int8;
}

}  // namespace bench
