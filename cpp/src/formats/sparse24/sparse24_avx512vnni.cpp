// sparse24 with int8 values and VPDPBUSD; the kernel is in select_avx512vnni.hpp, which AMX shares for few rows.
#include "formats/sparse24/select_avx512vnni.hpp"

#include "formats/kernels.hpp"

namespace fastffn::avx512vnni {

const FormatKernels sparse24_int8_kernels = {
    "sparse24/avx512vnni", few_rows_limit, panels_per_task,       true, false, 1,
    quads_prepared_bytes,  quads_prepare,  select_quads_multiply,
};

}  // namespace fastffn::avx512vnni
