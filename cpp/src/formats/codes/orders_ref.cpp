// The orders rows and columns of codes in plain loops. The layout says where a code is, so the products are those of
// codes_ref.cpp; a single row is a panel of which one column is kept.
#include "formats/codes/layout.hpp"
#include "formats/kernels.hpp"

namespace fastffn::ref {

namespace {

template <int bits>
constexpr const FormatKernels& plain = bits == 2 ? ternary_kernels : int4_kernels;

template <int bits>
std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    return plain<bits>.prepared_bytes(total_rows, matrix);
}

template <int bits>
void prepare(const PrepareArgs& args) noexcept {
    plain<bits>.prepare(args);
}

template <int bits>
void multiply(const MultiplyArgs& args) noexcept {
    plain<bits>.multiply(args);
}

template <int bits>
void dot_rows(const DotRowsArgs& a) noexcept {
    for (std::int64_t i = 0; i < a.count; ++i) {
        alignas(64) float tile[panel_columns];
        const std::int64_t column = a.columns[i];
        plain<bits>.multiply(
            {a.matrix, a.prepared, a.total_rows, a.row, 1, column / panel_columns, 1, tile, panel_columns});
        a.values[i] = tile[column % panel_columns];
    }
}

}  // namespace

const FormatKernels ternary_rows_kernels = {
    "ternary/ref", 1, 4, true, true, 1, prepared_bytes<2>, prepare<2>, multiply<2>, 0, dot_rows<2>,
};
const FormatKernels int4_rows_kernels = {
    "int4/ref", 1, 4, true, true, 1, prepared_bytes<4>, prepare<4>, multiply<4>, 0, dot_rows<4>,
};
const FormatKernels ternary_columns_kernels = {
    "ternary/ref", 1, 4, true, true, 1, prepared_bytes<2>, prepare<2>, multiply<2>,
};
const FormatKernels int4_columns_kernels = {
    "int4/ref", 1, 4, true, true, 1, prepared_bytes<4>, prepare<4>, multiply<4>,
};

}  // namespace fastffn::ref
