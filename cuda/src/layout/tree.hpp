// What trees packed for devices hold, behind their 128-byte header (TreeHeader, layout 2): plain offsets, for the host that writes
// them and the launchers that read them. No CUDA here.
//
//   heads    [trees · nodes] of 16 bytes: scale, bias, threshold, out_scale (f32), as NodeHead has them
//   w_node   [trees · nodes] rows of d_model weights in route_format, each padded with zeros to 16 bytes
//   w_out    [trees · nodes] rows of d_out weights in format, likewise; none in the leaf form
//
// Nodes in heap order, tree after tree; each part begins at a multiple of 128 bytes. The very numbers of the CPU's records, so both
// directions are exact. Nothing is gathered into subtrees: a row is several times the 128 bytes that a request to memory takes.
#pragma once

#include <cstdint>

namespace fastffn::cuda {

struct TreeLayout {
    std::int64_t node_bytes = 0, out_bytes = 0;  // of a row
    std::int64_t w_node = 0, w_out = 0;          // offsets
    std::int64_t bytes = 0;                      // of the payload
};

constexpr std::int64_t tree_head_bytes = 16;

// Formats as fastffn::Format: f32 1, f16 2, bf16 3, int8 4.
constexpr std::int64_t tree_row_bytes(int format, std::int64_t elements) {
    return (elements * (format == 1 ? 4 : format == 4 ? 1 : 2) + 15) / 16 * 16;
}

constexpr TreeLayout tree_layout(int format, int route_format, std::int64_t all_nodes, std::int64_t d_model,
                                 std::int64_t d_out) {
    const auto whole = [](std::int64_t bytes) { return (bytes + 127) / 128 * 128; };
    TreeLayout layout;
    layout.node_bytes = tree_row_bytes(route_format, d_model);
    layout.out_bytes = tree_row_bytes(format, d_out);
    layout.w_node = whole(all_nodes * tree_head_bytes);
    layout.w_out = layout.w_node + whole(all_nodes * layout.node_bytes);
    layout.bytes = layout.w_out + whole(all_nodes * layout.out_bytes);
    return layout;
}

}  // namespace fastffn::cuda
