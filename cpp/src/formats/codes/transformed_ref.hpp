// Rows of H · x for the plain loops, one at a time.
#pragma once

#include "core/hadamard.hpp"
#include "formats/codes/layout.hpp"

namespace fastffn::ref {
namespace {

// prepare_rows(args), on rows that are transformed where the header asks for it.
template <class PrepareRows>
void prepare_transformed(const PrepareArgs& a, PrepareRows prepare_rows) noexcept {
    if (!(a.matrix->flags & codes_hadamard_mask)) return prepare_rows(a);
    auto* row = static_cast<float*>(__builtin_alloca(static_cast<std::size_t>(a.depth) * 4));
    HadamardShape shape;
    codes_hadamard(a.matrix->flags, a.depth, a.matrix->parameters[1], false, &shape);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        hadamard_row(a.src + r * a.src_stride, a.dtype, row, shape);
        PrepareArgs one = a;
        one.src = reinterpret_cast<const std::byte*>(row);
        one.dtype = DType::f32;
        one.rows = 1;
        one.row0 = a.row0 + r;
        prepare_rows(one);
    }
}

}  // namespace
}  // namespace fastffn::ref
