// Whether loops that read weights front to back fetch them ahead of the hardware.
//
// One row of bf16 on panels of 128 KiB, GB/s from L3 and from memory (one core; 2 cores alike, at twice the rate):
//
//     ahead by             none      512 B     2 KiB, L1   4 KiB, L1   2 KiB, L2   4 KiB, L2   a loop that only reads
//     Zen 4             93 and 29   93 and 28   68 and 22   72 and 27   75 and 29   74 and 29        99 and 29
//     Zen 5                                     86 and 30   80 and 31   58 and 27
//
// On Zen 4 two, four and eight panels at a time read no faster either: 93, 94 and 90 from L3.
// Included by kernel files.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastffn {

// False on AMD before Zen 5, whose prefetchers do better alone; elsewhere a fetch bridges the 4 KiB pages at which they stop.
bool fetches_weights() noexcept;

namespace {
inline void fetch_ahead(const std::byte* weights) { __builtin_prefetch(weights + 2048); }
}  // namespace

}  // namespace fastffn
