// The checks of hadamard() and quantize(), for devices too.
#pragma once

#include "core/hadamard.hpp"
#include "fastffn/hadamard.hpp"
#include "layers/rows.hpp"

namespace fastffn {

struct HadamardRows {
    RowsView x, y;
    HadamardShape shape;
};

// Every check of a call of hadamard(). y == nullptr: of a query, which has no y.
Status open_hadamard(const TensorView& x, const HadamardOptions& options, const TensorView* y, HadamardRows* transform);

// The same of quantize(). codes == nullptr: of a query, which has no results.
Status check_quantize(const TensorView& x, ActivationCodes kind, const TensorView* codes, const TensorView* scale,
                      RowsView* rows);

}  // namespace fastffn
