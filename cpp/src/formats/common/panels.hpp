// The packed layout that all plain formats share, for files compiled without special flags.
//
// A matrix [out_features, in_features] is cut into panels of 16 output columns. Within a panel the reduction dimension
// runs in steps; a step holds, for each of the 16 columns, `depth_per_step` consecutive weights:
//
//     format   depth_per_step   bytes per step
//     f32            1               64
//     f16            1               32
//     bf16           2               64      pairs, as VDPBF16PS and TDPBF16PS want them
//     int8           4               64      quads, as VPDPBUSD and TDPBSSD want them
//
// Steps are padded with zero weights to a multiple of 16, so that 16 steps of 64 bytes are one AMX tile.
#pragma once

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "core/convert.hpp"
#include "core/kernel.hpp"
#include "core/parallel.hpp"
#include "fastffn/context.hpp"
#include "formats/format.hpp"

namespace fastffn {
namespace {

inline std::int64_t padded_steps(std::int64_t in_features, std::int64_t depth_per_step) {
    return round_up(divide_up(in_features, depth_per_step), 16);
}

// The first row that a packer found fault with, whichever thread saw it.
class LowestRow {
  public:
    void note(std::int64_t row) {
        std::int64_t lowest = row_.load();
        while (row < lowest && !row_.compare_exchange_weak(lowest, row)) {}
    }
    bool found() const { return row_.load() != none; }
    std::int64_t row() const { return row_.load(); }

  private:
    static constexpr std::int64_t none = INT64_MAX;
    std::atomic<std::int64_t> row_{none};
};

// Calls put(row, weights) for every row of the matrix, [0, out_features), rows of a panel on one thread, in order.
// weights: f32, in_features of them. `which` begins error messages.
template <class Put>
Status for_each_row(const PlainMatrix& matrix, const std::string& which, Put&& put) {
    const std::int64_t panels = divide_up(matrix.out_features, panel_columns);
    // Waking the team for a few thousand weights costs more than packing them.
    const bool small = matrix.out_features * matrix.in_features < (1 << 16);
    LowestRow beyond_f32;
    std::atomic<bool> out_of_memory{false};
    parallel_for(small ? 1 : usable_threads(default_threads()), panels, [&](std::int64_t panel, int) {
        const std::unique_ptr<float[]> weights(new (std::nothrow) float[static_cast<std::size_t>(matrix.in_features)]);
        if (!weights) {
            out_of_memory = true;
            return;
        }
        const std::int64_t begin = panel * panel_columns;
        const std::int64_t end =
            begin + panel_columns < matrix.out_features ? begin + panel_columns : matrix.out_features;
        for (std::int64_t row = begin; row < end; ++row) {
            const std::byte* src = matrix.data + row * matrix.row_stride;
            if (matrix.dtype == DType::f64) {
                for (std::int64_t k = 0; k < matrix.in_features; ++k) {
                    double value;
                    std::memcpy(&value, src + k * matrix.col_stride, 8);
                    weights[static_cast<std::size_t>(k)] = static_cast<float>(value);
                    if (std::isfinite(value) && !std::isfinite(weights[static_cast<std::size_t>(k)]))
                        beyond_f32.note(row);
                }
            } else if (matrix.dtype == DType::i8 || matrix.dtype == DType::u8) {
                for (std::int64_t k = 0; k < matrix.in_features; ++k) {
                    const std::byte code = src[k * matrix.col_stride];
                    weights[static_cast<std::size_t>(k)] = matrix.dtype == DType::i8
                                                               ? static_cast<float>(static_cast<std::int8_t>(code))
                                                               : static_cast<float>(static_cast<std::uint8_t>(code));
                }
            } else {
                for (std::int64_t k = 0; k < matrix.in_features; ++k)
                    weights[static_cast<std::size_t>(k)] = load_f32(src + k * matrix.col_stride, matrix.dtype);
            }
            put(row, weights.get());
        }
    });
    if (out_of_memory) return {StatusCode::out_of_memory, which + ": no memory for a row of weights"};
    if (beyond_f32.found())
        return {StatusCode::invalid_argument, which + ": row " + std::to_string(beyond_f32.row()) +
                                                  " of w holds a finite weight beyond the range of f32"};
    return {};
}

}  // namespace
}  // namespace fastffn
