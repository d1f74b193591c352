// One product of any format: y = act(x · wᵀ + b), or gated. What layers are made of; the only place that knows all formats.
//
//   prepare     rows of x in the form that the format's kernels take: padded, quantised, transformed
//   multiply    the product of prepared rows, with one matrix or, with TokenGroups, of each group with its matrix of a stack
#pragma once

#include <cuda_runtime.h>

#include "abi.hpp"
#include "fastffn/activation.hpp"
#include "launch/groups.hpp"
#include "launch/pieces.hpp"
#include "launch/rows.hpp"

namespace fastffn::cuda {

// Rows as the kernels of a matrix take them.
struct Input {
    DType dtype = DType::f32;  // that x had
    const void* rows = nullptr;
    std::int64_t stride = 0, row_bytes = 0;
    float* scales = nullptr;
    std::int32_t* sums = nullptr;
    float* bf16_sums = nullptr;  // of rows that are not quantised
    // prepare()'s last launch, no dependent, made these rows: the product may overlap with it if it is the next on the stream.
    bool is_fresh = false;
    bool is_by_position = false;  // of groups: already one row per position, not per row of x
};

// nullptr: there are kernels; else why not.
const char* refusal(const DeviceMatrix& w);

// Whether rows prepared for one matrix serve the other, and a gated multiply() takes both.
bool shares_rows(const DeviceMatrix& up, const DeviceMatrix& gate);

// What the hidden activations in front of `down` are stored as, for x of this type.
DType hidden_dtype(const DeviceMatrix& down, DType x);

// Makes rows of x for w, normalised first where a norm is given, transformed where w's flags say so: one kernel for all. With pieces
// that only count, says what that takes.
// groups: those that multiply() will get; low-rank stacks need them here, as every group has its own u.
cudaError_t prepare(const DeviceRows& x, const DeviceMatrix& w, Pieces& pieces, cudaStream_t stream, Input* input,
                    const TokenGroups* groups = nullptr, const RowNorm& norm = {});

// Part of a product: rows of the matrices, and columns of them and of x, the first a multiple of 16. Columns of x from there to the next
// multiple of 16 behind the last are zeros.
struct Slice {
    std::int64_t first_row = 0, rows = -1;  // -1: all
    std::int64_t first_col = 0, cols = -1;
};
// Whether multiply() takes slices of this format.
bool has_row_slices(const DeviceMatrix& w);
bool has_col_slices(const DeviceMatrix& w);

// y = act(x · wᵀ + bias), or gated: act(x · gateᵀ + gate_bias) ⊙ (x · wᵀ + bias); gate.payload == nullptr: not gated. With groups,
// row p of y is the product of row groups->rows[p] of x with its group's matrix (and row of each bias).
cudaError_t multiply(const Input& x, const DeviceMatrix& w, const DeviceMatrix& gate, const DeviceBias& bias,
                     const DeviceBias& gate_bias, Activation activation, const DeviceRows& y, const TokenGroups* groups,
                     cudaStream_t stream, const Slice& slice = {});

}  // namespace fastffn::cuda
