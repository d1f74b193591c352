// bf16 with AVX-512 BF16; the kernel is in pairs_avx512bf16.hpp, which AMX shares for few rows.
#include "formats/bf16/pairs_avx512bf16.hpp"

#include "formats/kernels.hpp"

namespace fastffn::avx512bf16 {

const FormatKernels bf16_kernels = {"bf16/avx512bf16",    few_rows_limit, panels_per_task, false, false, 2,
                                    pairs_prepared_bytes, pairs_prepare,  pairs_multiply,  32};

}  // namespace fastffn::avx512bf16
