// int8 with AMX: TDPBSSD on tiles for many rows, VPDPBUSD for few.
#include "formats/int8/quad_tiles_amx.hpp"

#include "formats/kernels.hpp"

namespace fastffn::amx {

namespace {

void multiply(const MultiplyArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return quads_multiply(a);
    quad_tiles_multiply_as<PackedTiles>(a, int8_layout(a.matrix.payload, a.matrix.out_features, a.matrix.in_features));
}

}  // namespace

const FormatKernels int8_kernels = {
    "int8/amx",         few_rows_limit, amx_panels_per_task, true, false, 1, quad_tiles_prepared_bytes,
    quad_tiles_prepare, multiply,
};

}  // namespace fastffn::amx
