// What the stand-ins for NVIDIA's libraries share: numbers by cudaDataType, and C as column-major products make it.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "core/convert.hpp"

namespace fake {

// cudaDataType
constexpr int r_32f = 0, r_16f = 2, r_8i = 3, r_32i = 10, r_16bf = 14;

inline double load(const void* data, int type, std::int64_t i) {
    if (type == r_8i) return static_cast<const std::int8_t*>(data)[i];
    if (type == r_32f) return static_cast<const float*>(data)[i];
    const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[i];
    return type == r_16bf ? fastffn::bf16_to_f32(bits) : fastffn::f16_to_f32(bits);
}

inline void store(void* data, int type, std::int64_t i, double value) {
    const auto narrow = static_cast<float>(value);
    if (type == r_32i) static_cast<std::int32_t*>(data)[i] = static_cast<std::int32_t>(value);
    else if (type == r_32f) static_cast<float*>(data)[i] = narrow;
    else
        static_cast<std::uint16_t*>(data)[i] =
            type == r_16bf ? fastffn::f32_to_bf16(narrow) : fastffn::f32_to_f16(narrow);
}

// A matrix as a library is told of it.
struct Matrix {
    int type = 0;
    std::int64_t rows = 0, cols = 0, ld = 0;
    bool by_rows = false, transposed = false;
    std::int64_t at(std::int64_t row, std::int64_t col) const {
        if (transposed) std::swap(row, col);
        return by_rows ? row * ld + col : col * ld + row;
    }
    std::int64_t height() const { return transposed ? cols : rows; }
    std::int64_t width() const { return transposed ? rows : cols; }
};

// c = op(a) · op(b); false where the shapes do not fit.
inline bool multiply(const Matrix& a, const void* a_data, const Matrix& b, const void* b_data, const Matrix& c,
                     void* c_data) {
    if (a.width() != b.height() || c.rows != a.height() || c.cols != b.width()) return false;
    for (std::int64_t row = 0; row < c.rows; ++row)
        for (std::int64_t col = 0; col < c.cols; ++col) {
            double sum = 0;
            for (std::int64_t k = 0; k < a.width(); ++k)
                sum += load(a_data, a.type, a.at(row, k)) * load(b_data, b.type, b.at(k, col));
            store(c_data, c.type, c.at(row, col), sum);
        }
    return true;
}

}  // namespace fake
