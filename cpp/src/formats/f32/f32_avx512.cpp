// f32 with AVX-512; the kernel is in f32_simd.hpp.
#include "core/simd_avx512.hpp"
#include "formats/common/registers_avx512.hpp"

#include "formats/f32/f32_simd.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx512 {

const FormatKernels f32_kernels = {"f32/avx512base", few_rows_limit, panels_per_task, false, false, 4,
                                   prepared_bytes,   prepare<F32>,   multiply,        64};

}  // namespace fastffn::avx512
