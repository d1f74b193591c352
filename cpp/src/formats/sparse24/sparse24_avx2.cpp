// sparse24 with AVX2, all values; the kernels are in select_f32.hpp and select_int8.hpp.
//   instruction          latency  per cycle    (Zen 3 and 4; Intel since Haswell)
//   vpermilps ymm, ymm      1         2         (1: port 5)
//   vpshufb ymm             1         2         (1: port 5)
#include "core/simd_avx2.hpp"
#include "formats/common/registers_avx2.hpp"

#include "formats/int8/quads_avx2.hpp"
#include "formats/sparse24/picks_avx2.hpp"
#include "formats/sparse24/select_f32.hpp"
#include "formats/sparse24/select_int8.hpp"

#include "formats/kernels.hpp"

namespace fastffn::avx2 {

namespace {

void multiply_int8(const MultiplyArgs& a) noexcept {
    const Sparse24Payload payload = sparse24_payload(a.matrix, Sparse24Values::int8);
    quads_multiply_as<SelectOp<Int8Slots<QuadsOp>>>(a, int8_sections(payload), payload.blocks);
}

}  // namespace

const FormatKernels sparse24_bf16_kernels = {
    "sparse24/avx2",
    few_rows_limit,
    panels_per_task,
    false,
    false,
    4,
    prepared_bytes,
    prepare<F32, true>,
    multiply<Sparse24Values::bf16>,
};
const FormatKernels sparse24_f16_kernels = {
    "sparse24/avx2",
    few_rows_limit,
    panels_per_task,
    false,
    false,
    4,
    prepared_bytes,
    prepare<F32, false>,
    multiply<Sparse24Values::f16>,
};
const FormatKernels sparse24_f32_kernels = {
    "sparse24/avx2",
    few_rows_limit,
    panels_per_task,
    false,
    false,
    4,
    prepared_bytes,
    prepare<F32, false>,
    multiply<Sparse24Values::f32>,
};
const FormatKernels sparse24_int8_kernels = {
    "sparse24/avx2",      few_rows_limit, panels_per_task, true, false, 1,
    quads_prepared_bytes, quads_prepare,  multiply_int8,
};

}  // namespace fastffn::avx2
