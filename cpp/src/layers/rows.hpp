// RowsView: an array [..., cols] seen as a list of rows.
#pragma once

#include <string>

#include "core/kernel.hpp"
#include "core/overlap.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

struct RowsView {
    std::byte* data = nullptr;
    DType dtype = DType::f32;
    std::int64_t rows = 0, cols = 0;
    int dims = 0;  // leading dimensions left after merging; at least 1
    std::int64_t shape[max_dims] = {};
    std::int64_t strides[max_dims] = {};  // bytes

    // Address of a row, and how many rows from it on, up to `wanted`, keep one stride (row_stride()).
    std::byte* row(std::int64_t index, std::int64_t wanted, std::int64_t* run) const noexcept {
        const std::int64_t inner = shape[dims - 1], position = index % inner;
        std::byte* address = data + position * strides[dims - 1];
        std::int64_t rest = index / inner;
        for (int i = dims - 2; i >= 0; --i) {
            address += rest % shape[i] * strides[i];
            rest /= shape[i];
        }
        *run = dims == 1 || inner - position > wanted ? wanted : inner - position;
        return address;
    }
    std::int64_t row_stride() const noexcept { return strides[dims - 1]; }
};

// Checks that `array` is f32, f16 or bf16, has 1 to 8 dimensions, a contiguous last one and no negative stride.
Status view_rows(const char* operation, const char* name, const TensorView& array, RowsView* rows);

// True unless the strides keep all elements of `array` apart (its last dimension is contiguous).
bool rows_overlap(const TensorView& array) noexcept;

}  // namespace fastffn
