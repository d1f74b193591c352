// The loops that dense layers share: token tiles, column blocks, threads, and where intermediate results live.
//
// A call walks over token tiles. Per tile:  prepare x → [multiply up (and gate) → activate → prepare hidden] per block of
// hidden columns → [multiply down → store y] per block of output columns. One packed byte is read once per tile, by one
// worker, so tiles are as large as the workspace budget allows.
#pragma once

#include "core/elementwise.hpp"
#include "fastffn/context.hpp"
#include "formats/format.hpp"
#include "layers/rows.hpp"
#include "layers/segments.hpp"

namespace fastffn {

// RMSNorm of hidden rows.
struct SubNorm {
    const std::byte* gamma = nullptr;  // [d_ff]; nullptr: none
    DType dtype{};
    float eps = 0;
    std::int64_t cols = 0;  // that the mean is of
};

// One weight of a layer with everything its products need.
struct Operand {
    MatrixView matrix;
    const FormatKernels* kernels = nullptr;
    const TensorView* bias = nullptr;  // [out_features] f32, f16 or bf16; nullptr: none
    bool low_rank = false;             // a pair of factors
};

struct DenseLayer {
    Operand up, gate, down;  // linear is `down` alone
    bool has_hidden = false, has_gate = false;
    bool on_device = false;   // set before the checks: weights and arrays lie on a CUDA device
    bool gate_first = false;  // run by gate_first.hpp
    Activation activation{};
    const ElementwiseKernels* elementwise = nullptr;
    Segments segments;
    SubNorm sub_norm;

    const Operand& first() const { return has_hidden ? up : down; }
};

// Sizes of one call, all derived from shapes and threads; offsets into the workspace in bytes.
struct DensePlan {
    std::int64_t tokens = 0, token_tile = 0;
    int threads = 1;
    std::int64_t prepared_x = 0, prepared_x_gate = 0, prepared_hidden = 0, hidden = 0;  // offsets
    std::int64_t hidden_stride = 0;          // floats; hidden rows in f32, where prepare or a norm must see whole rows
    std::int64_t tiles = 0, tile_bytes = 0;  // per worker: an up tile and a gate tile
    std::int64_t workspace_bytes = 0;
};

DensePlan plan_dense(const DenseLayer& layer, std::int64_t tokens, int threads);

void run_dense(const DenseLayer& layer, const DensePlan& plan, const RowsView& x, const RowsView& y,
               std::byte* workspace) noexcept;

}  // namespace fastffn
