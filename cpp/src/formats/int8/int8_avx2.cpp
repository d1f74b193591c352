// int8 with AVX2; the kernel is in quads_avx2.hpp.
#include "formats/int8/quads_avx2.hpp"

#include "formats/kernels.hpp"

namespace fastffn::avx2 {

namespace {

void multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t depth = a.matrix.in_features;
    quads_multiply_as<QuadsOp>(a, int8_layout(a.matrix.payload, a.matrix.out_features, depth), divide_up(depth, 4));
}

}  // namespace

const FormatKernels int8_kernels = {
    "int8/avx2", few_rows_limit, panels_per_task, true, false, 1, quads_prepared_bytes, quads_prepare, multiply,
};

}  // namespace fastffn::avx2
