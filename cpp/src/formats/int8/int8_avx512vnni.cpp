// int8 with AVX-512 VNNI; the kernel is in quads_avx512vnni.hpp, which AMX shares for few rows.
#include "formats/int8/quads_avx512vnni.hpp"

#include "formats/kernels.hpp"

namespace fastffn::avx512vnni {

const FormatKernels int8_kernels = {
    "int8/avx512vnni",    few_rows_limit, panels_per_task, true, false, 1,
    quads_prepared_bytes, quads_prepare,  quads_multiply,
};

}  // namespace fastffn::avx512vnni
