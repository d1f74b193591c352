// Rows and products of ternary and int4 matrices for launch/matrix.cu.
#pragma once

#include "launch/matrix.hpp"

namespace fastffn::cuda {

// int4 with act='bf16': rows of bf16, in the matrix's padded depth, and sums where zeros need them.
bool is_bf16_codes(const DeviceMatrix& w);
cudaError_t prepare_bf16_codes(const DeviceRows& x, const DeviceMatrix& w, const RowTransform& transform,
                               float* scratch, Pieces& pieces, cudaStream_t stream, Input* input);

cudaError_t multiply_codes(const Input& x, const DeviceMatrix& w, const DeviceMatrix& gate, const DeviceBias& bias,
                           const DeviceBias& gate_bias, Activation activation, const DeviceRows& y,
                           const TokenGroups* groups, cudaStream_t stream, const Slice& slice);

}  // namespace fastffn::cuda
