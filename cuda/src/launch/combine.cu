#include "launch/combine.hpp"

#include "kernels/combine.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

unsigned at_most(std::int64_t blocks, std::int64_t most) {
    return static_cast<unsigned>(blocks < most ? blocks : most);
}

}  // namespace

cudaError_t launch_combine(const CombineArgs& args, const SpecialKinds& special, cudaStream_t stream) {
    const auto whole = [](const DeviceRows& rows) {
        return rows.stride * bytes_of(static_cast<DType>(rows.dtype)) % 16 == 0;
    };
    if (args.picks > most_picks || args.constants > most_special || !whole(args.routed) || !whole(args.shared))
        return cudaErrorInvalidValue;
    if (args.y.rows == 0 || args.y.cols == 0) return cudaSuccess;
    const std::int64_t columns = (args.y.cols + combine_columns - 1) / combine_columns;
    if (columns > 65535 || args.y.rows > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(args.y.rows), static_cast<unsigned>(columns)), dim3(combine_threads),
                       static_cast<int>(args.picks * 8 + args.constants * 4 + 4), stream, "combine"};
    return launch(combine_kernel, grid, args, special);
}

cudaError_t launch_dots(const DeviceRows& x, const DeviceTable& table, std::int64_t table_rows, bool is_sigmoid,
                        float* out, std::int64_t out_stride, cudaStream_t stream) {
    const std::int64_t blocks = (x.rows * table_rows + 7) / 8;
    return launch(dots_kernel, {dim3(at_most(blocks, 65536)), dim3(256), 0, stream, "dots"}, x, table, table_rows,
                  is_sigmoid, out, out_stride);
}

cudaError_t launch_weighted_rows(const DeviceRows& x, const DeviceSlots& weights, const GroupTables& tables,
                                 const DeviceRows& rows, cudaStream_t stream) {
    return launch(weighted_rows_kernel,
                  {dim3(at_most(tables.tokens * tables.slots, 65536)), dim3(256), 0, stream, "weighted_rows"}, x,
                  weights, tables, rows);
}

cudaError_t launch_load(const GroupTables& tables, bool adds, std::int64_t* load, cudaStream_t stream) {
    return launch(load_kernel, {dim3(at_most((tables.groups + 255) / 256, 0x7fffffff)), dim3(256), 0, stream, "load"},
                  tables, adds, load);
}

}  // namespace fastffn::cuda
