// Prepared rows for the AVX2 and AVX-512 kernels: row-major 32-bit words, one per step that the inner loop broadcasts.
// A word is an f32, a pair of bf16, or a quad of int8. Included by kernel files.
#pragma once

#include "core/convert.hpp"
#include "core/kernel.hpp"

namespace fastffn {
namespace {

// Bytes of a packed panel: steps padded to whole AMX tiles of 16.
inline std::int64_t panel_bytes_of(std::int64_t steps, std::int64_t step_bytes) {
    return round_up(steps, 16) * step_bytes;
}

// Bytes from row to row: an odd number of cache lines, so that rows of a power-of-two depth do not all fall into the
// same cache sets.
inline std::int64_t words_stride(std::int64_t words) { return round_up(words * 4, 64) | 64; }

// Steps of B that a chunk of the reduction dimension holds: 128 steps × 4 panels × 64 bytes are 32 KiB, which stay in a
// 48 KiB L1 while all rows pass over them.
constexpr std::int64_t chunk_steps = 128;

// Chunks of nearly equal length; depends on the depth alone, so that results do.
inline std::int64_t balanced_chunk(std::int64_t steps) {
    const std::int64_t chunks = divide_up(steps, chunk_steps);
    return divide_up(steps, chunks);
}

}  // namespace
}  // namespace fastffn
