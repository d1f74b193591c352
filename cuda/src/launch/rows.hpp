// Rows of x as kernels take them: padded, in the type of the product, quantised where that is an integer; and what may come before
// that: an RMSNorm and a Hadamard transform.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/dtype.hpp"

namespace fastffn::cuda {

// x · (1/√(mean(x²) + eps)) ⊙ γ, in f32. Rows of a stack's positions have the γ of their group: row p that of group g where
// offsets[g] <= p < offsets[g + 1]; rows that no group has are left out.
struct RowNorm {
    const void* gamma = nullptr;  // [depth], or [groups, depth]; nullptr: no norm
    DType dtype = DType::f32;
    float eps = 0;
    std::int64_t mean_of = 0;               // columns that the mean is of: the depth, or fewer where others are zero
    const std::int32_t* offsets = nullptr;  // [groups + 1]; nullptr: one γ for all rows
    std::int64_t groups = 0;
};

// H · x of rows of order · power columns, or of every `power` of them (order 1).
struct RowHadamard {
    std::int64_t power = 1;  // 1 and order 1: none
    int order = 1;           // of the matrix across the parts; 1: none
    bool is_inverse = false;
    float scale = 1;
};

struct RowTransform {
    RowNorm norm = {};
    RowHadamard hadamard = {};
    bool any() const { return norm.gamma || hadamard.power > 1 || hadamard.order > 1; }
};

struct RowsArgs {
    const void* x;  // f32, f16 or bf16
    DType dtype;
    std::int64_t x_stride;  // elements
    std::int64_t tokens, depth;
    void* rows;
    std::int64_t row_bytes;   // written of each row, zeros behind the depth; what products take is a multiple of 16
    std::int64_t row_stride;  // bytes
    RowTransform transform = {};
    float* scratch = nullptr;  // transform_scratch_bytes() where rows are transformed
};

// How a row becomes integers; what the CPU's int8, ternary and int4 do (formats/int8/rows_ref.hpp, formats/codes/layout.hpp).
enum class RowRule : std::uint8_t {
    int8,        // absmax / 127; rows below 1e-35 are zero
    ternary,     // the same, no magnitude below BitNet's 1e-5
    int4,        // the same, none below 1e-35
    mean4,       // BitNet a4.8: √7 / mean|x|, to [-8, 7], 1e-5 added to the mean
    mean4_int4,  // with 1e-35
};

struct QuantizeArgs {
    RowsArgs rows;
    float* scales;  // [tokens]
    // [tokens, groups], sums of the codes of each group of `group` columns (a multiple of 32; 0: of all); nullptr: none
    std::int32_t* sums;
    std::int64_t group, groups;
    RowRule rule;
    // In the order of codes_few_tokens: of 64 columns, eight at a time of the first and the second 32 in turn.
    bool interleaved;
};

cudaError_t launch_copy_rows(DType to, const RowsArgs& args, cudaStream_t stream);  // f32, f16 or bf16
cudaError_t launch_quantize_rows(const QuantizeArgs& args, cudaStream_t stream);

}  // namespace fastffn::cuda
