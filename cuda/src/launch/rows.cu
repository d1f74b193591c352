#include "launch/rows.hpp"

#include "kernels/rows.cuh"
#include "launch/launch.hpp"
#include "launch/transform.hpp"

namespace fastffn::cuda {

namespace {

unsigned blocks_for(std::int64_t tokens) { return static_cast<unsigned>(tokens < 65536 ? tokens : 65536); }

}  // namespace

cudaError_t launch_copy_rows(DType to, const RowsArgs& args, cudaStream_t stream) {
    const int element = to == DType::f32 ? 4 : 2;
    if ((to != DType::bf16 && to != DType::f16 && to != DType::f32) || args.tokens < 0 || args.depth < 0 ||
        args.row_bytes % element != 0 || args.row_bytes < element * args.depth)
        return cudaErrorInvalidValue;
    if (args.transform.any()) return launch_transform_rows(to, args, stream);
    return launch(copy_rows_kernel, {dim3(blocks_for(args.tokens)), dim3(rows_threads), 0, stream, "copy_rows"}, args,
                  to);
}

cudaError_t launch_quantize_rows(const QuantizeArgs& args, cudaStream_t stream) {
    const RowsArgs& rows = args.rows;
    if (rows.tokens < 0 || rows.depth < 0 || rows.row_bytes < rows.depth) return cudaErrorInvalidValue;
    if ((args.sums || args.interleaved) && (rows.row_bytes % 64 != 0 || rows.row_stride % 16 != 0))
        return cudaErrorInvalidValue;
    if (args.group % 32 != 0 || args.group < 0) return cudaErrorInvalidValue;
    if (args.sums && (args.group ? args.groups * args.group < rows.depth : args.groups != 1))
        return cudaErrorInvalidValue;
    if (rows.transform.any()) return launch_transform_quantize(args, stream);
    return launch(quantize_rows_kernel, {dim3(blocks_for(rows.tokens)), dim3(rows_threads), 0, stream, "quantize_rows"},
                  args);
}

}  // namespace fastffn::cuda
