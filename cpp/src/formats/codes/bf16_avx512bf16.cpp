// int4 with bf16 activations on AVX-512 BF16: codes → bf16 by VPERMW, VDPBF16PS.
#include "formats/codes/bf16_isa_avx512bf16.hpp"

#include "formats/codes/bf16_multiply.hpp"
#include "formats/codes/bf16_rows.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx512bf16 {

const FormatKernels int4_bf16_kernels = {
    "int4/avx512bf16",
    few_rows_limit,
    panels_per_task,
    true,
    false,
    2,
    codes_bf16_prepared_bytes<CodesBf16Isa>,
    codes_bf16_prepare<CodesBf16Isa>,
    codes_bf16_multiply<CodesBf16Isa>,
};

}  // namespace fastffn::avx512bf16
