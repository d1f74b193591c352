#include "numbers.hpp"

#include <cmath>

#include "fastffn/tensor.hpp"

namespace bench::cuda {

namespace {

float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

float from_half(std::uint16_t half) {
    const int exponent = half >> 10 & 31;
    const float sign = half & 0x8000 ? -1.0f : 1.0f, fraction = static_cast<float>(half & 1023);
    if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
    return exponent == 0 ? sign * std::ldexp(fraction, -24) : sign * std::ldexp(fraction + 1024, exponent - 25);
}

}  // namespace

float read_number(const std::byte* data, fastffn::DType dtype, std::int64_t index) {
    using fastffn::DType;
    const std::byte* const at = data + index * fastffn::dtype_bytes(dtype);
    std::uint16_t half;
    std::int32_t integer;
    float value;
    switch (dtype) {
        case DType::i8: return static_cast<float>(static_cast<std::int8_t>(*at));
        case DType::i32: std::memcpy(&integer, at, 4); return static_cast<float>(integer);
        case DType::f16: std::memcpy(&half, at, 2); return from_half(half);
        case DType::bf16: std::memcpy(&half, at, 2); return from_bits(static_cast<std::uint32_t>(half) << 16);
        default: std::memcpy(&value, at, 4); return value;
    }
}

void keep_two_of_four(std::byte* data, fastffn::DType dtype, std::int64_t count) {
    const std::int64_t size = fastffn::dtype_bytes(dtype);
    // The six pairs of places that stay.
    constexpr int kept[6] = {0b0011, 0b0101, 0b1001, 0b0110, 0b1010, 0b1100};
    for (std::int64_t i = 0; i < count; ++i)
        if (!(kept[i / 4 * 7 % 6] >> i % 4 & 1)) std::memset(data + i * size, 0, static_cast<std::size_t>(size));
}

}  // namespace bench::cuda
