// ternary and int4 with AVX2: VPMADDUBSW on codes and activations.
#include "formats/codes/isa_avx2.hpp"

#include "formats/codes/multiply.hpp"
#include "formats/codes/rows.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx2 {

const FormatKernels ternary_kernels = {
    "ternary/avx2",
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
    "int4/avx2",
    few_rows_limit,
    panels_per_task,
    true,
    false,
    1,
    codes_prepared_bytes<CodesIsa, 4>,
    codes_prepare<CodesIsa, 4>,
    codes_multiply<CodesIsa, 4>,
};

}  // namespace fastffn::avx2
