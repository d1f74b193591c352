#include "formats/sparse24/select_avx512bf16.hpp"
#include "formats/sparse24/select_avx512vnni.hpp"

#include "formats/kernels.hpp"

namespace fastffn::amx {
const FormatKernels sparse24_bf16_kernels = {
    "sparse24/amx",       few_rows_limit,       panels_per_task,       false, false, 2,
    pairs_prepared_bytes, select_pairs_prepare, select_pairs_multiply,
};
const FormatKernels sparse24_int8_kernels = {
    "sparse24/amx",       few_rows_limit, panels_per_task,       true, false, 1,
    quads_prepared_bytes, quads_prepare,  select_quads_multiply,
};
}  // namespace fastffn::amx
