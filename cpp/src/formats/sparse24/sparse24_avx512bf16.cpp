// sparse24 with bf16 values and AVX-512 BF16; the kernel is in select_avx512bf16.hpp, which AMX shares for few rows.
#include "formats/sparse24/select_avx512bf16.hpp"

#include "formats/kernels.hpp"

namespace fastffn::avx512bf16 {

const FormatKernels sparse24_bf16_kernels = {
    "sparse24/avx512bf16", few_rows_limit,       panels_per_task,       false, false, 2,
    pairs_prepared_bytes,  select_pairs_prepare, select_pairs_multiply,
};

}  // namespace fastffn::avx512bf16
