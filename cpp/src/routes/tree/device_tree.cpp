// Trees for CUDA devices, of the CPU's bytes, and back. Both directions copy the same numbers.
#include "core/checksum.hpp"
#include "core/parallel.hpp"
#include "cuda/src/layout/tree.hpp"
#include "fastffn/cuda.hpp"
#include "routes/tree/tree.hpp"

namespace fastffn {

namespace {

Status fail(const char* operation, const std::string& text) {
    return {StatusCode::invalid_argument, std::string(operation) + ": " + text};
}

// The header of the same tree in the other layout.
TreeHeader other_header(TreeHeader header) {
    header.layout = header.layout == tree_device_layout ? tree_records_layout : tree_device_layout;
    header.record_bytes = header.layout == tree_device_layout ? 0 : tree_record_bytes(header);
    return header;
}

// Checks `from`, and what it becomes in the other layout.
Status open_both(const char* operation, const PackedView& from, TreeLayouts layout, PackedTree* tree,
                 TreeHeader* header) {
    PackedView view = from;
    if (!view.header)
        view.header = static_cast<const PackedHeader*>(view.data);  // host memory: they are its first bytes
    if (view.bytes < static_cast<std::int64_t>(sizeof(TreeHeader))) view.header = nullptr;
    if (Status status = open_tree(view, operation, tree, layout); !status.ok()) return status;
    *header = other_header(tree->header);
    return {};
}

// Copies every node between the layouts.
template <bool to_device>
void copy_nodes(const TreeHeader& records_header, std::byte* records, std::byte* device) {
    const std::int64_t nodes = records_header.trees * tree_nodes(records_header);
    const cuda::TreeLayout layout = cuda::tree_layout(records_header.format, records_header.route_format, nodes,
                                                      records_header.d_model, records_header.d_out);
    const std::int64_t out_offset = tree_out_offset(records_header), record_bytes = records_header.record_bytes;
    constexpr std::int64_t nodes_per_task = 16;
    const bool small = nodes * record_bytes < (1 << 18);
    parallel_for(
        small ? 1 : usable_threads(default_threads()), divide_up(nodes, nodes_per_task), [&](std::int64_t task, int) {
            const std::int64_t end = (task + 1) * nodes_per_task < nodes ? (task + 1) * nodes_per_task : nodes;
            for (std::int64_t node = task * nodes_per_task; node < end; ++node) {
                std::byte* record = records + node * record_bytes;
                const auto copy = [](std::byte* ours, std::byte* theirs, std::int64_t bytes) {
                    std::memcpy(to_device ? theirs : ours, to_device ? ours : theirs, static_cast<std::size_t>(bytes));
                };
                copy(record, device + node * cuda::tree_head_bytes, sizeof(NodeHead));
                copy(record + node_head_bytes, device + layout.w_node + node * layout.node_bytes, layout.node_bytes);
                copy(record + out_offset, device + layout.w_out + node * layout.out_bytes, layout.out_bytes);
            }
        });
}

Status convert(const char* operation, const PackedView& from, TreeLayouts layout, void* out, std::int64_t out_bytes) {
    PackedTree tree;
    TreeHeader header;
    if (Status status = open_both(operation, from, layout, &tree, &header); !status.ok()) return status;
    const std::int64_t expected = tree_total_bytes(header), skip = sizeof header;
    if (!out || out_bytes != expected)
        return fail(operation,
                    "out has " + std::to_string(out ? out_bytes : 0) + " bytes, expected " + std::to_string(expected));
    auto* source = static_cast<std::byte*>(const_cast<void*>(from.data));
    if (checksum(source + skip, from.bytes - skip) != tree.header.payload_check)
        return {StatusCode::corrupt, std::string(operation) + ": tree has damaged weights (their checksum differs)"};
    auto* bytes = static_cast<std::byte*>(out);
    std::memset(bytes, 0, static_cast<std::size_t>(out_bytes));
    if (layout == tree_records_layout) copy_nodes<true>(tree.header, source + skip, bytes + skip);
    else copy_nodes<false>(header, bytes + skip, source + skip);
    header.payload_check = checksum(bytes + skip, out_bytes - skip);
    header.header_check = tree_header_checksum(header);
    std::memcpy(bytes, &header, sizeof header);
    return {};
}

Status other_bytes(const char* operation, const PackedView& from, TreeLayouts layout, std::int64_t* bytes) {
    PackedTree tree;
    TreeHeader header;
    if (Status status = open_both(operation, from, layout, &tree, &header); !status.ok()) return status;
    *bytes = tree_total_bytes(header);
    return {};
}

}  // namespace

Status device_tree_bytes(const PackedView& tree, std::int64_t* bytes) {
    return other_bytes("tree_for_device", tree, tree_records_layout, bytes);
}

Status tree_for_device(const PackedView& tree, void* out, std::int64_t out_bytes) {
    return convert("tree_for_device", tree, tree_records_layout, out, out_bytes);
}

Status cpu_tree_bytes(const PackedView& tree, std::int64_t* bytes) {
    return other_bytes("tree_for_cpu", tree, tree_device_layout, bytes);
}

Status tree_for_cpu(const PackedView& tree, void* out, std::int64_t out_bytes) {
    return convert("tree_for_cpu", tree, tree_device_layout, out, out_bytes);
}

Status inspect_device_tree(const PackedView& packed, TreeInfo* info) {
    constexpr const char* operation = "inspect_device_tree";
    if (!packed.header) return fail(operation, "tree has no header on the host; see read_device_tree()");
    PackedTree tree;
    if (Status status = open_tree(packed, operation, &tree, tree_device_layout); !status.ok()) return status;
    *info = info_of(tree, packed.bytes);
    return {};
}

}  // namespace fastffn
