// Segments of hidden columns: which of them a call uses.
#pragma once

#include <cstring>

#include "core/kernel.hpp"
#include "fastffn/ffn.hpp"

namespace fastffn {

// A call's segments, ascending and disjoint; count 0: all columns.
struct Segments {
    const Segment* list = nullptr;
    std::int64_t count = 0;

    bool any(std::int64_t col0, std::int64_t cols) const {
        if (count == 0) return true;
        for (std::int64_t i = 0; i < count; ++i)
            if (list[i].start < col0 + cols && list[i].start + list[i].length > col0) return true;
        return false;
    }

    // Zeros in the columns of a tile [rows, cols], whose first column is col0, that no segment holds.
    void zero_others(float* tile, std::int64_t stride, std::int64_t rows, std::int64_t col0, std::int64_t cols) const {
        if (count == 0) return;
        std::int64_t from = 0;
        const auto zero = [&](std::int64_t end) {
            if (end > cols) end = cols;
            for (std::int64_t r = 0; r < rows && from < end; ++r)
                std::memset(tile + r * stride + from, 0, static_cast<std::size_t>(end - from) * 4);
        };
        for (std::int64_t i = 0; i < count && from < cols; ++i) {
            zero(list[i].start - col0);
            const std::int64_t past = list[i].start + list[i].length - col0;
            if (past > from) from = past;
        }
        zero(cols);
    }
};

}  // namespace fastffn
