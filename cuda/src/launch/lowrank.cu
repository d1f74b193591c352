#include "launch/lowrank.hpp"

#include "kernels/blocked_int8.cuh"
#include "launch/launch.hpp"
#include "layout/lowrank.hpp"

namespace fastffn::cuda {

namespace {

int factors_of(const DeviceMatrix& pair) { return lowrank_factors_of(pair.parameters[1]); }

LowRankLayout layout_of(const DeviceMatrix& pair) {
    return lowrank_layout(pair.parameters[0], factors_of(pair), pair.out_features, pair.in_features);
}

DeviceMatrix factor(const DeviceMatrix& pair, std::int64_t offset, std::int64_t out_features,
                    std::int64_t in_features) {
    const void* const payload = pair.payload ? static_cast<const unsigned char*>(pair.payload) + offset : nullptr;
    return {payload, factors_of(pair), 0, {0, 0}, out_features, in_features, pair.count, pair.matrix_bytes};
}

}  // namespace

DeviceMatrix lowrank_outer(const DeviceMatrix& pair) {
    return factor(pair, layout_of(pair).outer_offset, pair.out_features, pair.parameters[0]);
}

const char* lowrank_refusal(const DeviceMatrix& pair) {
    const LowRankLayout layout = layout_of(pair);
    return layout.bytes == 0 ? layout.reason : nullptr;
}

cudaError_t prepare_lowrank(const DeviceRows& x, const DeviceMatrix& pair, Pieces& pieces, cudaStream_t stream,
                            Input* input, const TokenGroups* groups) {
    const LowRankLayout layout = layout_of(pair);
    const std::int64_t rank = pair.parameters[0];
    const DeviceMatrix inner = factor(pair, 0, rank, pair.in_features), outer = lowrank_outer(pair);
    const DType dtype = hidden_dtype(outer, static_cast<DType>(x.dtype));
    DeviceRows p = {nullptr, static_cast<std::int32_t>(dtype), groups ? groups->positions : x.rows, rank, 0};
    p.stride = round_to(rank * bytes_of(dtype), 16) / bytes_of(dtype);
    p.data = pieces.take(p.rows * p.stride * bytes_of(dtype));
    if (inner.format == format_int8) {
        BlockedInt8Args args = {};
        args.x = x.data;
        args.dtype = static_cast<DType>(x.dtype);
        args.x_stride = x.stride;
        args.codes = pieces.take<signed char>(x.rows * layout.inner.row_bytes);
        args.scales = pieces.take<float>(x.rows * layout.blocks * 4);
        args.u = static_cast<const signed char*>(inner.payload);
        args.row_bytes = layout.inner.row_bytes;
        args.blocks = layout.blocks;
        args.depth = pair.in_features;
        args.rank = rank;
        args.tokens = x.rows;
        args.matrix_bytes = pair.matrix_bytes;
        args.p = static_cast<float*>(p.data);
        args.p_stride = p.stride;
        if (!pieces.counts_only()) {
            args.u_scales = reinterpret_cast<const float*>(args.u + layout.inner.scales_offset);
            if (const cudaError_t status = launch_blocked_int8(args, groups, stream); status != cudaSuccess)
                return status;
        }
    } else {
        Input rows;
        if (const cudaError_t status = prepare(x, inner, pieces, stream, &rows); status != cudaSuccess) return status;
        if (!pieces.counts_only()) {
            const cudaError_t status = multiply(rows, inner, {}, {}, {}, Activation::identity, p, groups, stream);
            if (status != cudaSuccess) return status;
        }
    }
    const cudaError_t status = prepare(p, outer, pieces, stream, input);
    input->is_by_position = groups != nullptr;
    return status;
}

cudaError_t launch_blocked_int8(const BlockedInt8Args& args, const TokenGroups* groups, cudaStream_t stream) {
    if (args.row_bytes % 16 != 0 || args.matrix_bytes % 16 != 0 || args.blocks * blocked_columns < args.depth)
        return cudaErrorInvalidValue;
    if (args.tokens == 0 || args.rank == 0) return cudaSuccess;
    const std::int64_t pieces = (args.tokens * args.blocks + blocked_warps - 1) / blocked_warps;
    // 16 blocks of 8 warps on each of 132 multiprocessors are all that run at once.
    const Grid codes = {dim3(static_cast<unsigned>(pieces < 2112 ? pieces : 2112)), dim3(blocked_warps * 32), 0, stream,
                        "blocked_codes"};
    if (const cudaError_t status = launch(blocked_codes_kernel, codes, args); status != cudaSuccess) return status;
    const std::int64_t rows = (args.rank + blocked_rows - 1) / blocked_rows;
    const std::int64_t tiles = groups ? groups->max_tiles : (args.tokens + blocked_tokens - 1) / blocked_tokens;
    const Grid grid = {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(tiles < 65535 ? tiles : 65535)),
                       dim3(blocked_warps * 32), 0, stream, "blocked_int8"};
    return groups ? launch(blocked_int8_kernel<GroupedTokens>, grid, args, GroupedTokens{*groups}, groups->tile_tokens)
                  : launch(blocked_int8_kernel<AllTokens>, grid, args, AllTokens{args.tokens}, blocked_tokens);
}

}  // namespace fastffn::cuda
