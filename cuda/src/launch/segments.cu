#include "launch/segments.hpp"

namespace fastffn::cuda {

DeviceRows columns_of(const DeviceRows& rows, std::int64_t first, std::int64_t cols) {
    DeviceRows part = rows;
    part.data = static_cast<unsigned char*>(rows.data) + first * bytes_of(static_cast<DType>(rows.dtype));
    part.cols = cols;
    return part;
}

cudaError_t zero_between(const FfnCall& call, const DeviceRows& hidden, const Pieces& pieces, cudaStream_t stream) {
    if (pieces.counts_only() || hidden.rows == 0) return cudaSuccess;
    const auto element = static_cast<std::size_t>(bytes_of(static_cast<DType>(hidden.dtype)));
    std::int64_t from = 0;
    for (std::int64_t i = 0; i <= call.segment_count; ++i) {
        const std::int64_t to = i < call.segment_count ? call.segments[i].start : hidden.cols;
        if (to > from) {
            const cudaError_t status = cudaMemset2DAsync(
                columns_of(hidden, from, to - from).data, static_cast<std::size_t>(hidden.stride) * element, 0,
                static_cast<std::size_t>(to - from) * element, static_cast<std::size_t>(hidden.rows), stream);
            if (status != cudaSuccess) return status;
        }
        if (i < call.segment_count) from = to + call.segments[i].length;
    }
    return cudaSuccess;
}

Slice used_columns(const FfnCall& call) {
    Slice slice;
    if (!has_col_slices(call.down)) return slice;
    // Lines of 64 columns: whole cache lines of 16-bit weights.
    const DeviceSegment& last = call.segments[call.segment_count - 1];
    const std::int64_t end = round_to(last.start + last.length, 64);
    slice.first_col = call.segments[0].start / 64 * 64;
    if (end < call.down.in_features) slice.cols = end - slice.first_col;
    return slice;
}

cudaError_t hidden_norm(const FfnCall& call, Pieces& pieces, cudaStream_t stream, RowNorm* norm) {
    const std::int64_t d_ff = call.up.out_features;
    norm->gamma = call.sub_norm.data;
    norm->dtype = static_cast<DType>(call.sub_norm.dtype);
    norm->eps = call.sub_norm_eps;
    norm->mean_of = d_ff;
    if (!call.segment_count) return cudaSuccess;
    const std::int64_t element = bytes_of(norm->dtype);
    auto* const gamma = pieces.take<unsigned char>(d_ff * element);
    norm->gamma = gamma;
    norm->mean_of = 0;
    for (std::int64_t i = 0; i < call.segment_count; ++i) norm->mean_of += call.segments[i].length;
    if (pieces.counts_only()) {
        norm->gamma = call.sub_norm.data;  // that there is one is all that counting asks
        return cudaSuccess;
    }
    if (const cudaError_t status = cudaMemsetAsync(gamma, 0, static_cast<std::size_t>(d_ff * element), stream);
        status != cudaSuccess)
        return status;
    for (std::int64_t i = 0; i < call.segment_count; ++i) {
        const std::int64_t from = call.segments[i].start * element;
        const cudaError_t status = cudaMemcpyAsync(
            gamma + from, static_cast<const unsigned char*>(call.sub_norm.data) + from,
            static_cast<std::size_t>(call.segments[i].length * element), cudaMemcpyDeviceToDevice, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

}  // namespace fastffn::cuda
