// moe's arguments, checked: what is left to find out are the values of ids.
#pragma once

#include <memory>
#include <new>
#include <string>

#include "fastffn/moe.hpp"
#include "layers/grouped.hpp"

namespace fastffn::moe_checks {

// [..., k] of any strides, row by row.
struct Slots {
    const TensorView* array = nullptr;

    std::int64_t picks() const { return array->shape[array->ndim - 1]; }
    const std::byte* at(std::int64_t row, std::int64_t pick) const {
        std::int64_t offset = pick * array->strides[array->ndim - 1];
        for (int i = array->ndim - 2; i >= 0; --i) {
            offset += (i ? row % array->shape[i] : row) * array->strides[i];
            if (i) row /= array->shape[i];
        }
        return static_cast<const std::byte*>(array->data) + offset * dtype_bytes(array->dtype);
    }
};

// A layer whose weights were checked. The first few stacks need no memory of their own.
struct OpenLayer {
    GroupedLayer grouped;
    std::int64_t experts = 0, shared = 0, constants = 0;  // routed experts, shared ones, constant ones
    std::int64_t d_model = 0, d_out = 0;
    std::string shape;  // of the first stack's w_up, for messages
    bool has_shared_gate = false;
    bool on_device = false;  // set before the checks: weights and arrays lie on a CUDA device

    GroupStack* make(std::int64_t count) {
        if (count <= inline_stacks) return few_;
        many_.reset(new (std::nothrow) GroupStack[static_cast<std::size_t>(count)]);
        return many_.get();
    }

  private:
    static constexpr std::int64_t inline_stacks = 4;
    GroupStack few_[inline_stacks];
    std::unique_ptr<GroupStack[]> many_;
};

inline Status invalid(const std::string& text) { return {StatusCode::invalid_argument, "moe: " + text}; }

// The layer's weights alone.
Status open_layer(const MoeWeights& weights, OpenLayer* layer);
// Everything that the workspace depends on.
Status open_shapes(const TensorView& x, std::int64_t picks, const MoeWeights& weights, OpenLayer* layer,
                   RowsView* x_rows);
// A whole call; weights and load may be nullptr.
Status open_call(const TensorView& x, const TensorView& ids, const TensorView* weights, const MoeWeights& layer,
                 const TensorView& y, const std::int64_t* load, OpenLayer* open, RowsView* x_rows, RowsView* y_rows);

}  // namespace fastffn::moe_checks
