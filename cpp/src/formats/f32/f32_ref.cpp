// f32 in plain loops.
#include "formats/common/float_ref.hpp"
#include "formats/kernels.hpp"

namespace fastffn::ref {

namespace {

void multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t panel_bytes = round_up(packed_columns(a.matrix), 16) * 64;
    float_ref_multiply(a, panel_bytes, [](const std::byte* panel, std::int64_t k, std::int64_t c) {
        return load_f32(panel + k * 64 + c * 4, DType::f32);
    });
}

}  // namespace

const FormatKernels f32_kernels = {"f32/ref", 1, 4, false, false, 4, float_ref_prepared_bytes, float_ref_prepare<false>,
                                   multiply,  64};

}  // namespace fastffn::ref
