// f16 with AVX2; the kernel is in f16_simd.hpp.
#include "core/simd_avx2.hpp"
#include "formats/common/registers_avx2.hpp"

#include "formats/f16/f16_simd.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx2 {

const FormatKernels f16_kernels = {"f16/avx2", few_rows_limit, panels_per_task, false,    false,
                                   4,          prepared_bytes, prepare<F32>,    multiply, 32};

}  // namespace fastffn::avx2
