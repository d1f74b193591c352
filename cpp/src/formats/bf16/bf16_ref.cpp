// bf16 in plain loops.
#include "formats/common/float_ref.hpp"
#include "formats/kernels.hpp"

namespace fastffn::ref {

namespace {

void multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t panel_bytes = round_up(divide_up(packed_columns(a.matrix), 2), 16) * 64;
    float_ref_multiply(a, panel_bytes, [](const std::byte* panel, std::int64_t k, std::int64_t c) {
        return load_f32(panel + k / 2 * 64 + c * 4 + k % 2 * 2, DType::bf16);
    });
}

}  // namespace

const FormatKernels bf16_kernels = {
    "bf16/ref", 1, 4, false, false, 4, float_ref_prepared_bytes, float_ref_prepare<true>, multiply, 32};

}  // namespace fastffn::ref
