// The packed tree: what is in its header, and the checks of every call.
#include "routes/tree/tree.hpp"

#include "core/checksum.hpp"
#include "core/convert.hpp"
#include "cuda/src/layout/tree.hpp"

namespace fastffn {

namespace {

Status fail(const char* operation, const std::string& text) {
    return {StatusCode::invalid_argument, std::string(operation) + ": " + text};
}

std::int64_t row_bytes(std::int64_t elements, std::uint8_t format) {
    return round_up(elements * format_bytes(static_cast<Format>(format)), 64);
}

void unpack_row(const PackedTree& tree, std::int64_t k, std::int64_t node, bool out, float* dst) {
    const std::byte* record = tree.record(k, node);
    const NodeHead head = PackedTree::head(record);
    const std::byte* src = record + (out ? tree.out_offset : node_head_bytes);
    const Format format = out ? tree.format() : tree.route_format();
    const std::int64_t cols = out ? tree.header.d_out : tree.header.d_model;
    const float scale = out ? head.out_scale : head.scale;
    for (std::int64_t c = 0; c < cols; ++c) {
        if (format == Format::int8) dst[c] = scale * static_cast<float>(static_cast<std::int8_t>(src[c]));
        else if (format == Format::f32) dst[c] = load_f32(src + 4 * c, DType::f32);
        else dst[c] = load_f32(src + 2 * c, format == Format::f16 ? DType::f16 : DType::bf16);
    }
}

}  // namespace

std::uint32_t tree_header_checksum(const TreeHeader& header) {
    return checksum(reinterpret_cast<const std::byte*>(&header), 124);
}

std::int64_t tree_nodes(const TreeHeader& header) {
    const bool leaf = header.form == static_cast<std::uint8_t>(TreeForm::leaf);
    return (std::int64_t{1} << (header.depth + (leaf ? 0 : 1))) - 1;
}

std::int64_t tree_record_bytes(const TreeHeader& header) {
    const std::int64_t bytes =
        node_head_bytes + row_bytes(header.d_model, header.route_format) + row_bytes(header.d_out, header.format);
    return bytes / 64 % 2 ? bytes : bytes + 64;
}

std::int64_t tree_out_offset(const TreeHeader& header) {
    return node_head_bytes + row_bytes(header.d_model, header.route_format);
}

std::int64_t tree_total_bytes(const TreeHeader& header) {
    if (header.layout == tree_device_layout)
        return static_cast<std::int64_t>(sizeof header) + cuda::tree_layout(header.format, header.route_format,
                                                                            header.trees * tree_nodes(header),
                                                                            header.d_model, header.d_out)
                                                              .bytes;
    return static_cast<std::int64_t>(sizeof header) + header.trees * tree_nodes(header) * header.record_bytes;
}

bool is_row_format(std::uint8_t format) {
    return format >= static_cast<std::uint8_t>(Format::f32) && format <= static_cast<std::uint8_t>(Format::int8);
}

Status open_tree(const PackedView& packed, const char* operation, PackedTree* tree, TreeLayouts layout) {
    auto damaged = [&](const std::string& text) {
        return Status(StatusCode::corrupt, std::string(operation) + ": tree " + text);
    };
    if (!packed.data) return fail(operation, "tree is null");
    if (packed.bytes < static_cast<std::int64_t>(sizeof(TreeHeader)))
        return damaged("has " + std::to_string(packed.bytes) +
                       " bytes, less than the 128-byte header of a packed tree; make it with pack_tree()");
    TreeHeader& header = tree->header;
    std::memcpy(&header, layout == tree_device_layout ? static_cast<const void*>(packed.header) : packed.data,
                sizeof header);
    if (std::memcmp(header.magic, tree_magic, sizeof tree_magic) != 0)
        return damaged("is not a packed tree (its first bytes are not 'ffftree'); make it with pack_tree()");
    if (header.header_check != tree_header_checksum(header))
        return damaged("has a damaged header (its checksum differs)");
    if (header.version != 1)
        return damaged("has header version " + std::to_string(header.version) +
                       ", this library reads version 1; pack the tree again");
    if (header.layout != layout)
        return damaged(header.layout == tree_device_layout ? "is packed for CUDA devices; pack it without device="
                       : layout == tree_device_layout      ? "is packed for the CPU; pack it with device="
                                                           : "has a layout that is not known; pack the tree again");
    // The checksum is no proof of origin: a forged header must still not lead a kernel out of the payload.
    auto in_range = [](std::int64_t extent) { return extent >= 1 && extent < tree_dimension_limit; };
    const bool leaf = header.form == static_cast<std::uint8_t>(TreeForm::leaf);
    bool valid = (leaf || header.form == static_cast<std::uint8_t>(TreeForm::nodes)) &&
                 (header.tie == 1 || header.tie == 2) && is_row_format(header.format) &&
                 is_row_format(header.route_format) && header.flags < 8 && in_range(header.trees) &&
                 in_range(header.d_model) && header.depth >= 0 && header.depth <= tree_depth_limit &&
                 (leaf ? header.d_out == 0 : in_range(header.d_out));
    const std::int64_t record_bytes = valid ? tree_record_bytes(header) : 1;
    valid = valid && header.record_bytes == (layout == tree_device_layout ? 0 : record_bytes) &&
            header.trees <= tree_bytes_limit / record_bytes / (tree_nodes(header) + 1) &&
            header.trees <= tree_dimension_limit / 2 / (std::int64_t{1} << header.depth);
    if (!valid) return damaged("has a header whose values contradict each other");
    if (packed.bytes != tree_total_bytes(header))
        return damaged("has " + std::to_string(packed.bytes) + " bytes, its header says " +
                       std::to_string(tree_total_bytes(header)) +
                       (packed.bytes < tree_total_bytes(header) ? "; it was truncated" : "; something follows it"));
    tree->records = static_cast<const std::byte*>(packed.data) + sizeof header;
    tree->nodes = tree_nodes(header);
    tree->levels = header.depth + (leaf ? 0 : 1);
    tree->out_offset = tree_out_offset(header);
    return {};
}

TreeInfo info_of(const PackedTree& tree, std::int64_t bytes) {
    const TreeHeader& h = tree.header;
    return {static_cast<TreeForm>(h.form),
            tree.tie(),
            tree.format(),
            tree.route_format(),
            h.trees,
            h.depth,
            tree.nodes,
            h.d_model,
            h.d_out,
            (h.flags & tree_has_bias) != 0,
            (h.flags & tree_has_threshold) != 0,
            bytes};
}

Status inspect_tree(const PackedView& packed, TreeInfo* info) {
    PackedTree tree;
    if (Status status = open_tree(packed, "inspect_tree", &tree); !status.ok()) return status;
    *info = info_of(tree, packed.bytes);
    return {};
}

Status verify_tree(const PackedView& packed) {
    PackedTree tree;
    if (Status status = open_tree(packed, "verify_tree", &tree); !status.ok()) return status;
    if (checksum(tree.records, packed.bytes - static_cast<std::int64_t>(sizeof(TreeHeader))) !=
        tree.header.payload_check)
        return {StatusCode::corrupt, "verify_tree: tree has damaged weights (their checksum differs)"};
    return {};
}

Status unpack_tree(const PackedView& packed, const TreeParts& parts) {
    if (Status status = verify_tree(packed); !status.ok()) return status;
    PackedTree tree;
    if (Status status = open_tree(packed, "unpack_tree", &tree); !status.ok()) return status;
    const TreeHeader& h = tree.header;
    struct Wanted {
        const char* name;
        const TensorView* array;
        std::int64_t cols;  // 0: none
    };
    const Wanted wanted[] = {{"w_node", parts.w_node, h.d_model},
                             {"b_node", parts.b_node, 0},
                             {"threshold", parts.threshold, 0},
                             {"w_out", parts.w_out, h.d_out}};
    for (const Wanted& w : wanted) {
        if (!w.array) continue;
        if (w.array == parts.w_out && h.d_out == 0)
            return fail("unpack_tree", "tree has no w_out: it is of the leaf form");
        const TensorView expected = w.cols ? TensorView(w.array->data, DType::f32, {h.trees, tree.nodes, w.cols})
                                           : TensorView(w.array->data, DType::f32, {h.trees, tree.nodes});
        bool same = w.array->ndim == expected.ndim && w.array->dtype == DType::f32;
        for (int i = 0; same && i < expected.ndim; ++i)
            same = w.array->shape[i] == expected.shape[i] &&
                   (expected.size() == 0 || w.array->shape[i] == 1 || w.array->strides[i] == expected.strides[i]);
        if (!same)
            return fail("unpack_tree", std::string(w.name) + " has shape " + w.array->shape_string() +
                                           ", expected contiguous f32 " + expected.shape_string());
        if (!w.array->data && expected.size()) return fail("unpack_tree", std::string(w.name) + " has no data");
    }
    for (std::int64_t k = 0; k < h.trees; ++k)
        for (std::int64_t n = 0; n < tree.nodes; ++n) {
            const std::int64_t at = k * tree.nodes + n;
            const NodeHead head = PackedTree::head(tree.record(k, n));
            if (parts.w_node) unpack_row(tree, k, n, false, static_cast<float*>(parts.w_node->data) + at * h.d_model);
            if (parts.w_out) unpack_row(tree, k, n, true, static_cast<float*>(parts.w_out->data) + at * h.d_out);
            if (parts.b_node) static_cast<float*>(parts.b_node->data)[at] = head.bias;
            if (parts.threshold) static_cast<float*>(parts.threshold->data)[at] = head.threshold;
        }
    return {};
}

}  // namespace fastffn
