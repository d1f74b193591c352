#include "buffer.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

namespace bench {

Buffer::Buffer(std::int64_t bytes, bool huge_pages) : bytes_(bytes) {
    if (bytes <= 0) return;
    void* memory =
        mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::runtime_error("not enough memory for " + std::to_string(bytes >> 20) + " MiB");
    }
#if defined(MADV_HUGEPAGE)
    if (huge_pages) madvise(memory, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
#else
    (void)huge_pages;
#endif
    data_ = static_cast<std::byte*>(memory);
}

Buffer::~Buffer() {
    if (data_) munmap(data_, static_cast<std::size_t>(bytes_));
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

namespace {

// splitmix64 (Steele, Lea, Flood 2014): every index its own number, so loops vectorise.
inline std::uint64_t mix(std::uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

inline float uniform(std::uint64_t seed, std::int64_t index, float scale) {
    const std::uint64_t bits = mix(seed * 0x100000001b3u + static_cast<std::uint64_t>(index));
    return (static_cast<float>(bits >> 40) * 0x1p-23f - 1.0f) * scale;
}

inline std::uint32_t float_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// Truncates; good enough for random data. Below the smallest normal f16: zero.
inline std::uint16_t to_f16(float value) {
    const std::uint32_t bits = float_bits(value), sign = (bits >> 16) & 0x8000u;
    const int exponent = static_cast<int>((bits >> 23) & 0xff) - 127 + 15;
    if (exponent <= 0) return static_cast<std::uint16_t>(sign);
    if (exponent >= 31) return static_cast<std::uint16_t>(sign | 0x7bffu);
    return static_cast<std::uint16_t>(sign | (static_cast<std::uint32_t>(exponent) << 10) | ((bits >> 13) & 0x3ffu));
}

}  // namespace

void fill_random(std::byte* data, std::int64_t count, fastffn::DType dtype, float scale, std::uint64_t seed) {
    if (dtype == fastffn::DType::f32) {
        float* out = reinterpret_cast<float*>(data);
        for (std::int64_t i = 0; i < count; ++i) out[i] = uniform(seed, i, scale);
    } else if (dtype == fastffn::DType::bf16) {
        std::uint16_t* out = reinterpret_cast<std::uint16_t*>(data);
        for (std::int64_t i = 0; i < count; ++i) {
            out[i] = static_cast<std::uint16_t>(float_bits(uniform(seed, i, scale)) >> 16);
        }
    } else if (dtype == fastffn::DType::f16) {
        std::uint16_t* out = reinterpret_cast<std::uint16_t*>(data);
        for (std::int64_t i = 0; i < count; ++i) out[i] = to_f16(uniform(seed, i, scale));
    } else {
        const std::int64_t bytes = count * fastffn::dtype_bytes(dtype);
        for (std::int64_t i = 0; i < bytes; i += 8) {
            const std::uint64_t word = mix(seed + static_cast<std::uint64_t>(i));
            std::memcpy(data + i, &word, static_cast<std::size_t>(bytes - i < 8 ? bytes - i : 8));
        }
    }
}

std::int64_t available_memory() {
    std::int64_t kilobytes = -1;
    if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
        char line[256];
        while (std::fgets(line, sizeof line, file)) {
            long long value = 0;
            if (std::sscanf(line, "MemAvailable: %lld kB", &value) == 1) kilobytes = value;
        }
        std::fclose(file);
    }
    return kilobytes < 0 ? std::numeric_limits<std::int64_t>::max() : kilobytes * 1024;
}

}  // namespace bench
