// ternary and int4 with AVX-512 VNNI: VPDPBUSD on codes and activations.
#include "formats/codes/isa_avx512vnni.hpp"

#include "formats/codes/multiply.hpp"
#include "formats/codes/rows.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx512vnni {

const FormatKernels ternary_kernels = {
    "ternary/avx512vnni",
    few_rows_limit,
    panels_per_task,
    true,
    false,
    1,
    codes_prepared_bytes<CodesIsa, 2>,
    codes_prepare<CodesIsa, 2>,
    codes_multiply<CodesIsa, 2>,
};

const FormatKernels int4_kernels = {
    "int4/avx512vnni",
    few_rows_limit,
    panels_per_task,
    true,
    false,
    1,
    codes_prepared_bytes<CodesIsa, 4>,
    codes_prepare<CodesIsa, 4>,
    codes_multiply<CodesIsa, 4>,
};

}  // namespace fastffn::avx512vnni
