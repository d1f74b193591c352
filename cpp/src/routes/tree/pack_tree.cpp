// Plain arrays into a packed tree.
#include <atomic>
#include <cmath>
#include <cstring>

#include "core/checksum.hpp"
#include "core/convert.hpp"
#include "core/overlap.hpp"
#include "core/parallel.hpp"
#include "routes/tree/tree.hpp"

namespace fastffn {

namespace {

Status fail(const char* operation, const std::string& text) {
    return {StatusCode::invalid_argument, std::string(operation) + ": " + text};
}

bool is_float(DType dtype) {
    return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64;
}

// An array of parts seen as [trees, nodes, cols] or [trees, nodes]; strides in bytes.
struct PartView {
    const std::byte* data = nullptr;
    DType dtype = DType::f32;
    std::int64_t trees = 1, nodes = 0, cols = 1;
    std::int64_t tree_stride = 0, node_stride = 0, col_stride = 0;

    bool given() const { return data != nullptr || nodes == 0; }
    // As f32; false where a finite f64 does not fit.
    bool load(std::int64_t tree, std::int64_t node, std::int64_t col, float* value) const {
        const std::byte* src = data + tree * tree_stride + node * node_stride + col * col_stride;
        if (dtype != DType::f64) {
            *value = load_f32(src, dtype);
            return true;
        }
        double wide;
        std::memcpy(&wide, src, 8);
        *value = static_cast<float>(wide);
        return !std::isfinite(wide) || std::isfinite(*value);
    }
};

// matrix: the array has a last dimension of columns.
Status view_part(const char* name, const TensorView& array, bool matrix, PartView* part) {
    const int plain = matrix ? 2 : 1;
    if (array.ndim != plain && array.ndim != plain + 1)
        return fail("pack_tree",
                    std::string(name) + " has shape " + array.shape_string() + ", expected " +
                        (matrix ? "[nodes, features] or [trees, nodes, features]" : "[nodes] or [trees, nodes]"));
    if (!is_float(array.dtype))
        return fail("pack_tree",
                    std::string(name) + " has dtype " + dtype_name(array.dtype) + ", expected f32, f16, bf16 or f64");
    const std::int64_t element = dtype_bytes(array.dtype);
    const int first = array.ndim - plain;  // the dimension of nodes
    part->data = static_cast<const std::byte*>(array.data);
    part->dtype = array.dtype;
    part->trees = first ? array.shape[0] : 1;
    part->tree_stride = first ? array.strides[0] * element : 0;
    part->nodes = array.shape[first];
    part->node_stride = array.strides[first] * element;
    if (matrix) {
        part->cols = array.shape[first + 1];
        part->col_stride = array.strides[first + 1] * element;
    }
    for (int i = 0; i < array.ndim; ++i)
        if (array.shape[i] < (i == first ? 0 : 1) || array.shape[i] >= tree_dimension_limit)
            return fail("pack_tree", std::string(name) + " has shape " + array.shape_string() +
                                         ", expected every dimension from 1 to 2^31 - 1");
    if (array.size() && !array.data) return fail("pack_tree", std::string(name) + " has no data");
    return {};
}

struct Parts {
    PartView w_node, b_node, threshold, w_out;
    bool has_bias = false, has_threshold = false, has_out = false;
};

// Depth of a tree of so many nodes: nodes = 2^(depth + extra) - 1.
bool depth_of(std::int64_t nodes, std::int64_t extra, std::int64_t* depth) {
    for (*depth = 0; *depth <= tree_depth_limit; ++*depth)
        if (nodes == (std::int64_t{1} << (*depth + extra)) - 1) return true;
    return false;
}

Status plan_tree(const TreeParts& given, const TreeOptions& options, Parts* parts, TreeHeader* header) {
    if (!given.w_node) return fail("pack_tree", "w_node is missing");
    if (Status status = view_part("w_node", *given.w_node, true, &parts->w_node); !status.ok()) return status;
    parts->has_bias = given.b_node != nullptr;
    parts->has_threshold = given.threshold != nullptr;
    parts->has_out = given.w_out != nullptr;
    const PartView& w_node = parts->w_node;
    const std::string from = " from w_node " + given.w_node->shape_string();
    std::int64_t depth = 0;
    if (!depth_of(w_node.nodes, parts->has_out ? 1 : 0, &depth))
        return fail("pack_tree", "w_node has shape " + given.w_node->shape_string() + ": " +
                                     std::to_string(w_node.nodes) + " nodes per tree, expected " +
                                     (parts->has_out ? "2^(depth+1) - 1 (1, 3, 7, …) with w_out"
                                                     : "2^depth - 1 (0, 1, 3, 7, …) without w_out"));
    const TensorView* vectors[] = {given.b_node, given.threshold};
    const char* names[] = {"b_node", "threshold"};
    PartView* views[] = {&parts->b_node, &parts->threshold};
    for (int i = 0; i < 2; ++i) {
        if (!vectors[i]) continue;
        if (Status status = view_part(names[i], *vectors[i], false, views[i]); !status.ok()) return status;
        if (views[i]->trees != w_node.trees || views[i]->nodes != w_node.nodes)
            return fail("pack_tree", std::string(names[i]) + " has shape " + vectors[i]->shape_string() +
                                         ", expected (" + std::to_string(w_node.trees) + ", " +
                                         std::to_string(w_node.nodes) + ")" + from);
    }
    if (parts->has_out) {
        if (Status status = view_part("w_out", *given.w_out, true, &parts->w_out); !status.ok()) return status;
        if (parts->w_out.trees != w_node.trees || parts->w_out.nodes != w_node.nodes)
            return fail("pack_tree", "w_out has shape " + given.w_out->shape_string() + ", expected (" +
                                         std::to_string(w_node.trees) + ", " + std::to_string(w_node.nodes) +
                                         ", d_out)" + from);
    }
    *header = {};
    std::memcpy(header->magic, tree_magic, sizeof tree_magic);
    header->version = 1;
    header->form = static_cast<std::uint8_t>(parts->has_out ? TreeForm::nodes : TreeForm::leaf);
    header->tie = static_cast<std::uint8_t>(options.tie);
    header->format = static_cast<std::uint8_t>(options.format);
    header->route_format = static_cast<std::uint8_t>(options.route_format);
    if (header->tie != 1 && header->tie != 2)
        return fail("pack_tree", "tie number " + std::to_string(header->tie) + " is not known");
    if (!is_row_format(header->format) || !is_row_format(header->route_format))
        return fail("pack_tree",
                    std::string("rows of a tree have format ") +
                        format_name(is_row_format(header->format) ? options.route_format : options.format) +
                        ", expected f32, f16, bf16 or int8");
    header->flags = static_cast<std::uint16_t>((parts->has_bias ? tree_has_bias : 0) |
                                               (parts->has_threshold ? tree_has_threshold : 0));
    header->trees = w_node.trees;
    header->depth = depth;
    header->d_model = w_node.cols;
    header->d_out = parts->has_out ? parts->w_out.cols : 0;
    header->record_bytes = tree_record_bytes(*header);
    const std::int64_t nodes = tree_nodes(*header) + 1;
    if (header->trees > tree_bytes_limit / header->record_bytes / nodes ||
        header->trees > tree_dimension_limit / 2 / (std::int64_t{1} << depth))
        return fail("pack_tree", "w_node has shape " + given.w_node->shape_string() + ", too large");
    return {};
}

float nearest_integer(float x) {  // to even, for |x| < 2^22
    constexpr float no_fraction = 12582912.0f;
    return (x + no_fraction) - no_fraction;
}

enum class RowFault : int { none, beyond_f32, beyond_format, not_finite };

RowFault pack_row(const PartView& part, std::int64_t tree, std::int64_t node, Format format, std::byte* dst,
                  float* scale, bool* finite) {
    *scale = 1;
    float largest = 0;
    for (std::int64_t c = 0; c < part.cols; ++c) {
        float value;
        if (!part.load(tree, node, c, &value)) return RowFault::beyond_f32;
        if (std::isfinite(value)) largest = std::fmax(largest, std::fabs(value));
        else *finite = false;
        if (format == Format::int8) {
            if (!std::isfinite(value)) return RowFault::not_finite;
            continue;
        }
        const DType dtype = format == Format::f32 ? DType::f32 : format == Format::f16 ? DType::f16 : DType::bf16;
        std::byte* at = dst + c * format_bytes(format);
        store_f32(at, dtype, value);
        if (std::isfinite(value) && !std::isfinite(load_f32(at, dtype))) return RowFault::beyond_format;
    }
    if (format != Format::int8) return RowFault::none;
    *scale = largest / 127.0f;
    for (std::int64_t c = 0; c < part.cols; ++c) {
        float value;
        part.load(tree, node, c, &value);
        const float q = *scale > 0 ? nearest_integer(value / *scale) : 0.0f;
        dst[c] = static_cast<std::byte>(static_cast<std::int8_t>(q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q));
    }
    return RowFault::none;
}

// The first faulty node, whichever thread saw it.
struct Fault {
    std::atomic<std::int64_t> first{INT64_MAX};  // node · 8 + which · 4 + fault
    void note(std::int64_t node, bool out, RowFault fault) {
        const std::int64_t value = node * 8 + (out ? 4 : 0) + static_cast<int>(fault);
        std::int64_t lowest = first.load();
        while (value < lowest && !first.compare_exchange_weak(lowest, value)) {}
    }
    Status status(const Parts& parts, const TreeHeader& header) const {
        const std::int64_t value = first.load();
        if (value == INT64_MAX) return {};
        const bool out = value % 8 >= 4;
        const std::int64_t node = value / 8;
        const Format format = static_cast<Format>(out ? header.format : header.route_format);
        std::string text = std::string("node ") + std::to_string(node % parts.w_node.nodes);
        if (header.trees > 1) text += " of tree " + std::to_string(node / parts.w_node.nodes);
        text += std::string(" of ") + (out ? "w_out" : "w_node") + " holds ";
        const auto fault = static_cast<RowFault>(value % 4);
        if (fault == RowFault::not_finite) text += "NaN or infinity, which int8 cannot represent";
        else
            text += std::string("a finite weight beyond the range of ") +
                    (fault == RowFault::beyond_f32 ? "f32" : format_name(format));
        return fail("pack_tree", text);
    }
};

}  // namespace

Status tree_bytes(const TreeParts& given, const TreeOptions& options, std::int64_t* bytes) {
    Parts parts;
    TreeHeader header;
    if (Status status = plan_tree(given, options, &parts, &header); !status.ok()) return status;
    *bytes = tree_total_bytes(header);
    return {};
}

Status write_tree_header(const TreeParts& given, const TreeOptions& options, void* out) {
    Parts parts;
    TreeHeader header;
    if (Status status = plan_tree(given, options, &parts, &header); !status.ok()) return status;
    header.header_check = tree_header_checksum(header);
    std::memcpy(out, &header, sizeof header);
    return {};
}

Status pack_tree(const TreeParts& given, const TreeOptions& options, void* out, std::int64_t out_bytes) {
    Parts parts;
    TreeHeader header;
    if (Status status = plan_tree(given, options, &parts, &header); !status.ok()) return status;
    if (!out) return fail("pack_tree", "out must not be null");
    if (out_bytes != tree_total_bytes(header))
        return fail("pack_tree", "out has " + std::to_string(out_bytes) + " bytes, expected " +
                                     std::to_string(tree_total_bytes(header)));
    const TensorView* arrays[] = {given.w_node, given.b_node, given.threshold, given.w_out};
    const char* names[] = {"w_node", "b_node", "threshold", "w_out"};
    for (int i = 0; i < 4; ++i)
        if (arrays[i] && may_overlap(*arrays[i], out, out_bytes))
            return fail("pack_tree",
                        std::string(names[i]) + " and out share a range of memory; give out memory of its own");

    auto* bytes = static_cast<std::byte*>(out);
    std::byte* records = bytes + sizeof header;
    const std::int64_t nodes = tree_nodes(header), all = header.trees * nodes;
    const std::int64_t out_offset = tree_out_offset(header);
    Fault fault;
    std::atomic<bool> finite{true};
    constexpr std::int64_t nodes_per_task = 16;
    const bool small = all * header.record_bytes < (1 << 18);
    parallel_for(small ? 1 : usable_threads(default_threads()), divide_up(all, nodes_per_task),
                 [&](std::int64_t task, int) {
                     const std::int64_t end = (task + 1) * nodes_per_task < all ? (task + 1) * nodes_per_task : all;
                     for (std::int64_t i = task * nodes_per_task; i < end; ++i) {
                         std::byte* record = records + i * header.record_bytes;
                         std::memset(record, 0, static_cast<std::size_t>(header.record_bytes));
                         const std::int64_t tree = i / nodes, node = i % nodes;
                         NodeHead head{1, 0, 0, 1};
                         bool in_finite = true, out_finite = true;
                         RowFault found = pack_row(parts.w_node, tree, node, static_cast<Format>(header.route_format),
                                                   record + node_head_bytes, &head.scale, &in_finite);
                         if (found != RowFault::none) fault.note(i, false, found);
                         if (parts.has_bias && !parts.b_node.load(tree, node, 0, &head.bias))
                             fault.note(i, false, RowFault::beyond_f32);
                         if (parts.has_threshold && !parts.threshold.load(tree, node, 0, &head.threshold))
                             fault.note(i, false, RowFault::beyond_f32);
                         if (parts.has_out) {
                             found = pack_row(parts.w_out, tree, node, static_cast<Format>(header.format),
                                              record + out_offset, &head.out_scale, &out_finite);
                             if (found != RowFault::none) fault.note(i, true, found);
                         }
                         if (!out_finite) finite = false;
                         std::memcpy(record, &head, sizeof head);
                     }
                 });
    if (Status status = fault.status(parts, header); !status.ok()) return status;
    if (finite) header.flags |= tree_outputs_finite;
    header.payload_check = checksum(records, out_bytes - static_cast<std::int64_t>(sizeof header));
    header.header_check = tree_header_checksum(header);
    std::memcpy(bytes, &header, sizeof header);
    return {};
}

}  // namespace fastffn
