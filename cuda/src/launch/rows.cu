#include "launch/rows.hpp"

#include "kernels/quantize_rows.cuh"
#include "launch/launch.hpp"
#include "launch/pieces.hpp"
#include "launch/transform.hpp"

namespace fastffn::cuda {

namespace {

unsigned blocks_for(std::int64_t tokens) { return static_cast<unsigned>(tokens < 65536 ? tokens : 65536); }

// Rows that threads can hold, with groups of columns that a warp can.
bool fits_registers(const QuantizeArgs& args) {
    const RowsArgs& rows = args.rows;
    return rows.row_bytes <= std::int64_t{8} * quantize_units * quantize_threads && rows.row_bytes % 8 == 0 &&
           rows.row_stride % 8 == 0 && reinterpret_cast<std::uintptr_t>(rows.rows) % 8 == 0 &&
           (args.group == 0 || (args.group <= 256 && (args.group & (args.group - 1)) == 0));
}

cudaError_t quantize_in_registers(const QuantizeArgs& args, cudaStream_t stream) {
    const RowsArgs& rows = args.rows;
    const std::int64_t eights = rows.row_bytes / 8;
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(rows.x) % 16 == 0 &&
                            (rows.tokens <= 1 || rows.x_stride * bytes_of(rows.dtype) % 16 == 0);
    // Few tokens: a thread for every eight columns. Many: two eights each, as blocks fill the device anyway.
    const std::int64_t least = (eights + quantize_threads - 1) / quantize_threads;
    const std::int64_t units = rows.tokens > 256 && least == 1 ? 2 : least;
    const auto threads = static_cast<unsigned>(units ? round_to((eights + units - 1) / units, 32) : 32);
    const Grid grid = {dim3(blocks_for(rows.tokens)), dim3(threads), 0, stream, "quantize_rows"};
    return launch(quantize_in_registers_kernel, grid, args, is_aligned);
}

}  // namespace

cudaError_t launch_copy_rows(DType to, const RowsArgs& args, cudaStream_t stream) {
    const int element = to == DType::f32 ? 4 : 2;
    if ((to != DType::bf16 && to != DType::f16 && to != DType::f32) || args.tokens < 0 || args.depth < 0 ||
        args.row_bytes % element != 0 || args.row_bytes < element * args.depth)
        return cudaErrorInvalidValue;
    if (args.transform.any()) return launch_transform_rows(to, args, stream);
    // Few tokens: a few columns per thread, as nothing hides the latency of a long loop.
    const std::int64_t columns = args.row_bytes / bytes_of(to) / (2 * rows_threads);
    const auto parts = static_cast<unsigned>(args.tokens > 256 || columns < 1 ? 1 : columns < 64 ? columns : 64);
    return launch(copy_rows_kernel, {dim3(blocks_for(args.tokens), parts), dim3(rows_threads), 0, stream, "copy_rows"},
                  args, to);
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
    if (fits_registers(args)) return quantize_in_registers(args, stream);
    return launch(quantize_rows_kernel, {dim3(blocks_for(rows.tokens)), dim3(rows_threads), 0, stream, "quantize_rows"},
                  args);
}

}  // namespace fastffn::cuda
