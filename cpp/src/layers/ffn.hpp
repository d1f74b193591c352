// The checks of ffn(), for layers that hold a dense one.
#pragma once

#include "fastffn/ffn.hpp"
#include "layers/engine.hpp"

namespace fastffn {

// Every check of a call of ffn(). y == nullptr: of a query, which has no y; then y_rows is left alone.
Status open_ffn(const TensorView& x, const FfnWeights& weights, const TensorView* y, DenseLayer* layer,
                RowsView* x_rows, RowsView* y_rows);

// Which order an opened layer runs in: gate first where it can and nobody says otherwise.
Status choose_order(const FfnWeights& weights, DenseLayer* layer);

// Every check of a call of linear().
Status open_linear(const TensorView& x, const PackedView& w, const TensorView* bias, const TensorView* y,
                   DenseLayer* layer, RowsView* x_rows, RowsView* y_rows);

}  // namespace fastffn
