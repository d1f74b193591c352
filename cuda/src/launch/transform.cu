#include "launch/transform.hpp"

#include <mutex>

#include "core/hadamard_matrices.hpp"
#include "kernels/long_rows.cuh"
#include "kernels/transform_rows.cuh"
#include "launch/launch.hpp"
#include "launch/pieces.hpp"

namespace fastffn::cuda {

namespace {

// Every device since sm_80 gives a block 99 KiB; a row within 96 of them needs no scratch.
constexpr std::int64_t sure_shared_bytes = 96 * 1024;
static_assert(sure_shared_bytes + 3 * 1024 <= shared_bytes_everywhere);
// Scratch of long rows, beyond one row: 64 MiB stay in an H200's L2 in part, and are enough to fill it.
constexpr std::int64_t scratch_floats = 16 << 20;
// Columns of a long row that are transformed as rows of their own.
constexpr int long_part_log = 12;

std::int64_t row_floats(std::int64_t depth) {
    const std::int64_t whole = round_to(depth, 8);
    return whole + whole / 256 * 8 + 8;
}

int log_of(std::int64_t power) {
    int log = 0;
    while (std::int64_t{1} << log < power) log++;
    return log;
}

// Arguments of a kernel end at 4 KiB before CUDA 12.1.
static_assert(sizeof(TransformArgs) + sizeof(OrderSigns) <= 4096, "mix_rows_kernel has too many arguments");

// The signs of an order's matrix, made when they are asked for first.
const OrderSigns& signs_of(int order, bool is_inverse) {
    static OrderSigns tables[hadamard_order_count][2];
    static std::once_flag made[hadamard_order_count][2];
    int which = 0;
    while (which + 1 < hadamard_order_count && hadamard_orders[which] != order) which++;
    OrderSigns& signs = tables[which][is_inverse];
    std::call_once(made[which][is_inverse], [&] {
        for (int i = 0; i < order; i++)
            for (int j = 0; j < order; j++) {
                const int entry = is_inverse ? hadamard_entry(order, j, i) : hadamard_entry(order, i, j);
                if (entry < 0) signs.words[(i * order + j) / 32] |= 1u << (i * order + j) % 32;
            }
    });
    return signs;
}

int attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&value, which, device);
    return value;
}

bool fits_shared(std::int64_t depth, int order) {
    const std::int64_t bytes = row_floats(depth) * 4 + order_table_bytes(order);
    if (bytes <= sure_shared_bytes) return true;
    constexpr int static_bytes = 1024;  // more than the kernels' own
    return bytes <= attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_bytes;
}

cudaError_t launch_in_shared(TransformArgs args, bool is_inverse, cudaStream_t stream) {
    const bool has_order = args.order > 1;
    const int most = has_order ? mix_threads : transform_threads;
    // 32 columns a thread, and blocks of at least 256 threads where rows are short. Few rows: a vector a thread, as nothing else
    // hides the latency of loads.
    const int columns = args.rows <= 128 ? 8 : 32;
    const auto wanted = static_cast<int>(round_to((args.depth + columns - 1) / columns, 32));
    args.team = wanted < most ? wanted : most;
    args.row_floats = static_cast<int>(row_floats(args.depth));
    int teams = 256 / args.team;
    if (teams < 1) teams = 1;
    while (teams > 1 && teams / 2 >= args.rows) teams /= 2;
    const std::int64_t shared = std::int64_t{teams} * args.row_floats * 4 + order_table_bytes(args.order);
    std::int64_t blocks = (args.rows + teams - 1) / teams;
    // With signs to copy a block takes several rows.
    const std::int64_t limit = has_order ? 4 * attribute(cudaDevAttrMultiProcessorCount) : 0x7fffffff;
    if (blocks > limit) blocks = limit;
    const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(teams * args.team)),
                       static_cast<int>(shared), stream, has_order ? "mix_rows" : "transform_rows"};
    return has_order ? launch(mix_rows_kernel, grid, args, signs_of(args.order, is_inverse))
                     : launch(transform_rows_kernel, grid, args);
}

TransformArgs arguments(const RowsArgs& rows) {
    const RowTransform& t = rows.transform;
    TransformArgs args = {};
    args.x = rows.x;
    args.dtype = rows.dtype;
    args.x_stride = rows.x_stride;
    args.rows = rows.tokens;
    args.depth = static_cast<int>(rows.depth);
    args.parts_per_row = 1;
    args.gamma = t.norm.gamma;
    args.gamma_dtype = t.norm.dtype;
    args.offsets = t.norm.offsets;
    args.groups_of_gamma = t.norm.groups;
    args.mean_of = t.norm.mean_of;
    args.eps = t.norm.eps;
    args.transforms = t.hadamard.power > 1 || t.hadamard.order > 1;
    args.log_power = log_of(t.hadamard.power);
    args.order = t.hadamard.order;
    args.scale = t.hadamard.scale;
    args.out = rows.rows;
    args.out_stride = rows.row_stride;
    args.out_bytes = rows.row_bytes;
    return args;
}

cudaError_t far_butterflies(const LongRows& rows, int levels, int log_step, cudaStream_t stream) {
    const std::int64_t units = rows.count * (rows.depth >> levels), blocks = (units + long_threads - 1) / long_threads;
    const Grid grid = {dim3(static_cast<unsigned>(blocks < 0x7fffffff ? blocks : 0x7fffffff)), dim3(long_threads), 0,
                       stream, "far_butterflies"};
    switch (levels) {
        case 1: return launch(far_butterflies_kernel<2>, grid, rows, log_step);
        case 2: return launch(far_butterflies_kernel<4>, grid, rows, log_step);
        case 3: return launch(far_butterflies_kernel<8>, grid, rows, log_step);
        default: return launch(far_butterflies_kernel<16>, grid, rows, log_step);
    }
}

// Rows first … first + rows.count of args as transformed f32.
cudaError_t transform_long(const RowsArgs& args, std::int64_t first, const LongRows& rows, cudaStream_t stream) {
    const RowTransform& t = args.transform;
    const RowHadamard& h = t.hadamard;
    const std::int64_t element = bytes_of(args.dtype);
    const auto* const x = static_cast<const unsigned char*>(args.x) + first * args.x_stride * element;
    const bool transforms = h.power > 1 || h.order > 1;
    if (t.norm.gamma) {
        const auto blocks = static_cast<unsigned>(rows.count);
        const cudaError_t status = launch(norm_rows_kernel, {dim3(blocks), dim3(long_threads), 0, stream, "norm_rows"},
                                          rows, args.x, args.dtype, args.x_stride, first, t.norm);
        if (status != cudaSuccess || !transforms) return status;
    }
    // The first levels: parts of a row as rows, or halves of 4096 columns of parts.
    const int log_power = log_of(h.power), part_log = log_power < long_part_log ? log_power : long_part_log;
    RowsArgs parts = args;
    parts.transform = {};
    parts.transform.hadamard = h;
    parts.transform.hadamard.order = 1;
    TransformArgs part = arguments(parts);
    part.transforms = true;
    part.x = t.norm.gamma ? rows.rows : static_cast<const void*>(x);
    part.dtype = t.norm.gamma ? DType::f32 : args.dtype;
    part.x_stride = t.norm.gamma ? rows.stride : args.x_stride;
    // Short parts lie side by side in rows of up to 4096 columns that divide the depth.
    std::int64_t columns = std::int64_t{1} << part_log;
    while (columns < 1 << long_part_log && args.depth % (columns * 2) == 0) columns *= 2;
    part.depth = static_cast<int>(columns);
    part.log_power = part_log;
    part.parts_per_row = static_cast<int>(args.depth / columns);
    part.rows = rows.count * part.parts_per_row;
    part.to = DType::f32;
    part.out = rows.rows;
    part.out_stride = rows.stride * 4;
    part.out_bytes = columns * 4;
    if (const cudaError_t status = launch_in_shared(part, false, stream); status != cudaSuccess) return status;
    for (int level = part_log; level < log_power; level += 4) {
        const int levels = log_power - level < 4 ? log_power - level : 4;
        if (const cudaError_t status = far_butterflies(rows, levels, level, stream); status != cudaSuccess)
            return status;
    }
    if (h.order == 1) return cudaSuccess;
    const std::int64_t power = args.depth / h.order, blocks = (power + long_threads / 2 - 1) / (long_threads / 2);
    const Grid grid = {dim3(static_cast<unsigned>(blocks < 65536 ? blocks : 65536),
                            static_cast<unsigned>(rows.count < 65535 ? rows.count : 65535)),
                       dim3(long_threads), order_table_bytes(h.order), stream, "mix_long_rows"};
    return launch(mix_long_rows_kernel, grid, rows, h.order, signs_of(h.order, h.is_inverse));
}

// Long rows, some at a time: finish(first row, f32 rows) makes of them what is wanted.
template <class Finish>
cudaError_t through_memory(const RowsArgs& args, LongRows rows, std::int64_t at_once, cudaStream_t stream,
                           Finish finish) {
    for (std::int64_t first = 0; first < args.tokens; first += at_once) {
        rows.count = args.tokens - first < at_once ? args.tokens - first : at_once;
        if (cudaError_t status = transform_long(args, first, rows, stream); status != cudaSuccess) return status;
        if (cudaError_t status = finish(first, rows); status != cudaSuccess) return status;
        if (rows.rows != args.scratch) rows.rows += rows.count * rows.stride;
    }
    return cudaSuccess;
}

std::int64_t rows_at_once(std::int64_t tokens, std::int64_t depth) {
    const std::int64_t most = scratch_floats / depth < 1 ? 1 : scratch_floats / depth;
    return tokens < most ? tokens : most;
}

bool wrong(const RowsArgs& args) {
    const RowHadamard& h = args.transform.hadamard;
    return args.tokens < 0 || args.tokens > 0x7fffffff || args.depth < 1 || h.power < 1 || h.order < 1 ||
           (h.power & (h.power - 1)) != 0 || args.depth % (h.power * h.order) != 0 ||
           (h.order > 1 && args.depth != h.power * h.order) ||
           (args.transform.norm.gamma && args.transform.norm.mean_of < 1);
}

RowsArgs from_scratch(const RowsArgs& args, std::int64_t first, const LongRows& rows) {
    RowsArgs plain = args;
    plain.transform = {};
    plain.x = rows.rows;
    plain.dtype = DType::f32;
    plain.x_stride = rows.stride;
    plain.tokens = rows.count;
    plain.rows = static_cast<unsigned char*>(args.rows) + first * args.row_stride;
    return plain;
}

}  // namespace

std::int64_t transform_scratch_bytes(std::int64_t tokens, std::int64_t depth, const RowTransform& transform) {
    if (!transform.any() || row_floats(depth) * 4 + order_table_bytes(transform.hadamard.order) <= sure_shared_bytes)
        return 0;
    return rows_at_once(tokens, depth) * round_to(depth, 4) * 4;
}

cudaError_t launch_transform_rows(DType to, const RowsArgs& args, cudaStream_t stream) {
    if (wrong(args) || args.row_bytes < bytes_of(to) * args.depth) return cudaErrorInvalidValue;
    if (args.tokens == 0) return cudaSuccess;
    if (fits_shared(args.depth, args.transform.hadamard.order)) {
        TransformArgs whole = arguments(args);
        whole.to = to;
        return launch_in_shared(whole, args.transform.hadamard.is_inverse, stream);
    }
    // f32 rows are their own scratch.
    if (to == DType::f32 && args.row_bytes == 4 * args.depth && args.row_stride % 16 == 0 &&
        reinterpret_cast<std::uintptr_t>(args.rows) % 16 == 0)
        return through_memory(args, {static_cast<float*>(args.rows), args.row_stride / 4, 0, args.depth}, args.tokens,
                              stream, [](std::int64_t, const LongRows&) { return cudaSuccess; });
    if (!args.scratch) return cudaErrorInvalidValue;
    return through_memory(args, {args.scratch, round_to(args.depth, 4), 0, args.depth},
                          rows_at_once(args.tokens, args.depth), stream, [&](std::int64_t first, const LongRows& rows) {
                              return launch_copy_rows(to, from_scratch(args, first, rows), stream);
                          });
}

cudaError_t launch_transform_quantize(const QuantizeArgs& args, cudaStream_t stream) {
    const RowsArgs& rows = args.rows;
    if (wrong(rows) || rows.row_bytes % 8 != 0 || rows.row_bytes < rows.depth) return cudaErrorInvalidValue;
    if (args.sums && args.group && args.group != 32 && args.group != 64 && args.group != 128 && args.group != 256)
        return cudaErrorInvalidValue;
    if (rows.tokens == 0) return cudaSuccess;
    if (fits_shared(rows.depth, rows.transform.hadamard.order)) {
        TransformArgs whole = arguments(rows);
        whole.is_code = true;
        whole.scales = args.scales;
        whole.sums = args.sums;
        whole.group = args.group;
        whole.groups = args.groups;
        whole.rule = args.rule;
        whole.interleaved = args.interleaved;
        return launch_in_shared(whole, rows.transform.hadamard.is_inverse, stream);
    }
    if (!rows.scratch) return cudaErrorInvalidValue;
    return through_memory(rows, {rows.scratch, round_to(rows.depth, 4), 0, rows.depth},
                          rows_at_once(rows.tokens, rows.depth), stream, [&](std::int64_t first, const LongRows& made) {
                              QuantizeArgs plain = args;
                              plain.rows = from_scratch(rows, first, made);
                              plain.scales += first;
                              if (plain.sums) plain.sums += first * args.groups;
                              return launch_quantize_rows(plain, stream);
                          });
}

}  // namespace fastffn::cuda
