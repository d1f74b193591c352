// sparse24 with AVX-512: values bf16, f16 and f32, summed in f32; the kernel is in select_f32.hpp.
//   instruction          latency  per cycle    (Zen 4; Intel server cores)
//   vpermilps zmm, zmm      1         1         (1: port 5)
//   vfmadd231ps zmm         4         1         (2)
#include "core/simd_avx512.hpp"
#include "formats/common/registers_avx512.hpp"

#include "formats/sparse24/picks_avx512.hpp"
#include "formats/sparse24/select_f32.hpp"

#include "formats/kernels.hpp"

namespace fastffn::avx512 {

const FormatKernels sparse24_bf16_kernels = {
    "sparse24/avx512base",
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
    "sparse24/avx512base",
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
    "sparse24/avx512base",
    few_rows_limit,
    panels_per_task,
    false,
    false,
    4,
    prepared_bytes,
    prepare<F32, false>,
    multiply<Sparse24Values::f32>,
};

}  // namespace fastffn::avx512
