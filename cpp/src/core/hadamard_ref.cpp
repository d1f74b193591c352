// The transform in plain loops: the specification.
#include "core/convert.hpp"
#include "core/hadamard.hpp"

namespace fastffn::ref {

void hadamard_row(const std::byte* src, DType dtype, float* dst, const HadamardShape& shape) noexcept {
    const std::int64_t n = shape.n, power = shape.power, bytes = element_bytes(dtype);
    for (std::int64_t k = 0; k < n; ++k) dst[k] = load_f32(src + k * bytes, dtype) * shape.scale;
    for (std::int64_t half = 1; half < power; half *= 2)
        for (std::int64_t k = 0; k < n; k += 2 * half)
            for (std::int64_t i = k; i < k + half; ++i) {
                const float a = dst[i], b = dst[i + half];
                dst[i] = a + b;
                dst[i + half] = a - b;
            }
    if (shape.order == 1) return;
    for (std::int64_t j = 0; j < power; ++j) {
        float x[largest_hadamard_order];
        for (std::int64_t k = 0; k < shape.order; ++k) x[k] = dst[k * power + j];
        const std::uint8_t* signs = shape.signs;
        for (std::int64_t i = 0; i < shape.order; ++i) {
            float sum = 0;
            for (std::int64_t k = 0; k < shape.order; k += 4, ++signs) {
                const auto signed_x = [&](int b) { return *signs >> (3 + b) & 1 ? -x[k + b] : x[k + b]; };
                const float part = (signed_x(0) + signed_x(1)) + (signed_x(2) + signed_x(3));
                sum = k ? sum + part : part;
            }
            dst[i * power + j] = sum;
        }
    }
}

}  // namespace fastffn::ref
