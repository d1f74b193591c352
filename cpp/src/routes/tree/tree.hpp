// A packed tree: a header, and one record per node, tree after tree in heap order.
//
//     record:  64 bytes  NodeHead
//              d_model   weights of the decision, in route_format, zero padded to whole cache lines
//              d_out     weights of the output, in format, the same (all-node form only)
//
// A record is an odd number of cache lines: the rows of a path, read side by side, then fall into different cache sets.
// No contiguous subtrees below the heap: a row of 3 KB fills most of a page by itself, so neighbours would share none.
#pragma once

#include <cstring>

#include "core/kernel.hpp"
#include "fastffn/fff.hpp"

namespace fastffn {

struct TreeHeader {
    char magic[8];          // "ffftree\0"
    std::uint16_t version;  // 1
    std::uint8_t form;      // TreeForm
    std::uint8_t tie;       // Tie
    std::uint8_t format, route_format;
    std::uint16_t flags;  // TreeFlags
    std::int64_t trees, depth, d_model, d_out;
    std::int64_t record_bytes;  // 0 where layout says so
    std::uint32_t layout;       // TreeLayouts
    std::uint32_t reserved[15];
    std::uint32_t payload_check;  // checksum of the payload; verify_tree compares it
    std::uint32_t header_check;   // checksum of the 124 bytes before it; every call compares it
};
static_assert(sizeof(TreeHeader) == 128, "two cache lines");

enum TreeFlags : std::uint16_t {
    tree_has_bias = 1,
    tree_has_threshold = 2,
    tree_outputs_finite = 4,  // so that an activation of 0 may skip its row
};

// Who can read the payload.
enum TreeLayouts : std::uint32_t {
    tree_records_layout = 0,  // the CPU: records, as above
    tree_device_layout = 2,   // CUDA devices: cuda/src/layout/tree.hpp
};

// How a node's dot product becomes a decision: z = dot · scale + bias.
struct NodeHead {
    float scale, bias, threshold, out_scale;  // the scales are 1 but for int8
};

// A tree whose header was checked.
struct PackedTree {
    TreeHeader header;
    const std::byte* records = nullptr;
    std::int64_t nodes = 0;   // per tree
    std::int64_t levels = 0;  // nodes that a token visits
    std::int64_t out_offset = 0;

    Format format() const { return static_cast<Format>(header.format); }
    Format route_format() const { return static_cast<Format>(header.route_format); }
    Tie tie() const { return static_cast<Tie>(header.tie); }
    bool all_nodes() const { return header.form == static_cast<std::uint8_t>(TreeForm::nodes); }
    std::int64_t leaves() const { return std::int64_t{1} << header.depth; }

    const std::byte* record(std::int64_t tree, std::int64_t node) const {
        return records + (tree * nodes + node) * header.record_bytes;
    }
    static NodeHead head(const std::byte* record) {
        NodeHead head;
        std::memcpy(&head, record, sizeof head);
        return head;
    }
};

constexpr std::int64_t node_head_bytes = 64;
constexpr std::int64_t tree_depth_limit = 30;  // leaves are numbered in 32 bits

inline std::int64_t format_bytes(Format format) { return format == Format::f32 ? 4 : format == Format::int8 ? 1 : 2; }

// What pack_tree() and open_tree() agree on.
constexpr char tree_magic[8] = {'f', 'f', 'f', 't', 'r', 'e', 'e', '\0'};
constexpr std::int64_t tree_dimension_limit = std::int64_t{1} << 31;
constexpr std::int64_t tree_bytes_limit = std::int64_t{1} << 46;
std::uint32_t tree_header_checksum(const TreeHeader& header);
std::int64_t tree_nodes(const TreeHeader& header);  // per tree
std::int64_t tree_record_bytes(const TreeHeader& header);
std::int64_t tree_out_offset(const TreeHeader& header);
std::int64_t tree_total_bytes(const TreeHeader& header);
TreeInfo info_of(const PackedTree& tree, std::int64_t bytes);
bool is_row_format(std::uint8_t format);  // f32, f16, bf16 or int8

// Writes the header that pack_tree() would, without the payload's checksum: for tests of trees that nobody can fill.
Status write_tree_header(const TreeParts& parts, const TreeOptions& options, void* out);

// Checks packed bytes as every call does: `operation` goes into the message. Trees on a device (tree_device_layout) bring a copy of
// their header; nothing behind it is read, and `records` and offsets are not set.
Status open_tree(const PackedView& packed, const char* operation, PackedTree* tree,
                 TreeLayouts layout = tree_records_layout);

}  // namespace fastffn
