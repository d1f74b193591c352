#include "launch/hadamard.hpp"

#include <cmath>

#include "core/hadamard_matrices.hpp"
#include "launch/pieces.hpp"
#include "launch/transform.hpp"
#include "layout.hpp"

namespace fastffn::cuda {

namespace {

bool hadamard_of(int mode, std::int64_t cols, std::int64_t block, bool is_inverse, RowHadamard* result) {
    std::int64_t power = 0, order = 1;
    if (!split_hadamard(static_cast<Hadamard>(mode), cols, block, &power, &order)) return false;
    *result = {power, static_cast<int>(order), is_inverse,
               static_cast<float>(1.0 / std::sqrt(static_cast<double>(order * power)))};
    return true;
}

RowsArgs rows_of(const HadamardCall& call) {
    const auto to = static_cast<DType>(call.y.dtype);
    RowsArgs args = {call.x.data,
                     static_cast<DType>(call.x.dtype),
                     call.x.stride,
                     call.x.rows,
                     call.x.cols,
                     call.y.data,
                     call.x.cols * bytes_of(to),
                     call.y.stride * bytes_of(to)};
    hadamard_of(call.mode, call.x.cols, call.block, call.is_inverse != 0, &args.transform.hadamard);
    return args;
}

}  // namespace

RowHadamard hadamard_of_flags(std::uint32_t flags, std::uint32_t block, std::int64_t cols) {
    RowHadamard result;
    const auto mode = static_cast<int>((flags & layout_hadamard_mask) >> layout_hadamard_shift);
    if (mode) hadamard_of(mode, cols, block, false, &result);
    return result;
}

const char* refusal(const HadamardCall& call) {
    RowHadamard unused;
    return hadamard_of(call.mode, call.x.cols, call.block, false, &unused)
               ? nullptr
               : "rows of this length have no such transform";
}

const char* refusal(const QuantizeCall& call) {
    return call.kind == 0 || call.kind == 1 ? nullptr : "this kind of codes has no CUDA kernels";
}

std::int64_t workspace_bytes(const HadamardCall& call) {
    // f32 rows of y may be scratch themselves, which depends on how they lie; this does not.
    return round_to(transform_scratch_bytes(call.x.rows, call.x.cols, rows_of(call).transform), 256);
}

std::int64_t workspace_bytes(const QuantizeCall&) { return 0; }

cudaError_t run(const HadamardCall& call, void* workspace, cudaStream_t stream) {
    RowsArgs args = rows_of(call);
    args.scratch = static_cast<float*>(workspace);
    // Also of one column, or blocks of one: where nothing is mixed, x becomes y's type.
    return launch_copy_rows(static_cast<DType>(call.y.dtype), args, stream);
}

cudaError_t run(const QuantizeCall& call, void*, cudaStream_t stream) {
    QuantizeArgs args = {};
    args.rows = {
        call.x.data, static_cast<DType>(call.x.dtype), call.x.stride, call.x.rows, call.x.cols, call.codes, call.x.cols,
        call.x.cols};
    args.scales = call.scales;
    args.rule = call.kind == 0 ? RowRule::ternary : RowRule::mean4;
    return launch_quantize_rows(args, stream);
}

}  // namespace fastffn::cuda
