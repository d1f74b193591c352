// The checksum of packed weights and trees.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastffn {

// A multiplicative checksum over 64-bit words: it finds damage, it is no defence against forgery (kernels are safe with
// any payload). Four lanes, because one multiply per word would wait for the one before it.
inline std::uint32_t checksum(const std::byte* data, std::int64_t bytes) {
    constexpr std::uint64_t factor = 0x9e3779b97f4a7c15u;  // 2^64 over the golden ratio
    std::uint64_t lanes[4] = {1, 2, 3, 4};
    std::int64_t at = 0;
    auto mix = [&](std::uint64_t& lane, std::uint64_t word) {
        lane = (lane ^ word) * factor;
        lane ^= lane >> 29;
    };
    for (; at + 32 <= bytes; at += 32) {
        std::uint64_t words[4];
        std::memcpy(words, data + at, 32);
        for (int i = 0; i < 4; ++i) mix(lanes[i], words[i]);
    }
    for (; at < bytes; at += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, data + at, static_cast<std::size_t>(bytes - at < 8 ? bytes - at : 8));
        mix(lanes[0], word);
    }
    std::uint64_t sum = static_cast<std::uint64_t>(bytes);
    for (std::uint64_t lane : lanes) mix(sum, lane);
    return static_cast<std::uint32_t>(sum ^ (sum >> 32));
}

}  // namespace fastffn
