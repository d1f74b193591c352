// C: the layers and their routes.
#include <vector>

#include "capi/capi.hpp"

using namespace fastffn;
using namespace fastffn::capi;

namespace {

// FfnWeights and what it points to.
struct Ffn {
    Ffn(const char* operation, const fastffn_ffn_weights* argument)
        : weights_(sized(operation, "weights", argument)),
          b_up_(operation, "b_up", weights_.b_up),
          b_down_(operation, "b_down", weights_.b_down),
          b_gate_(operation, "b_gate", weights_.b_gate) {
        layer.w_up = view(weights_.w_up);
        layer.w_down = view(weights_.w_down);
        layer.w_gate = view(weights_.w_gate);
        layer.b_up = b_up_.get();
        layer.b_down = b_down_.get();
        layer.b_gate = b_gate_.get();
        layer.activation = parse(operation, "activation", weights_.activation, parse_activation);
        if (!weights_.segments) return;
        for (std::size_t i = 0; i < weights_.segment_count; ++i)
            segments_.push_back({weights_.segments[2 * i], weights_.segments[2 * i + 1]});
        if (segments_.empty()) refuse(operation, "segments is empty, expected at least one (start, length)");
        layer.segments = segments_.data();
        layer.segment_count = static_cast<std::int64_t>(segments_.size());
    }
    Ffn(const Ffn&) = delete;

    FfnWeights layer;

  private:
    const fastffn_ffn_weights& weights_;
    OptionalView b_up_, b_down_, b_gate_;
    std::vector<Segment> segments_;
};

// One stack of experts and its biases.
struct Experts {
    Experts(const char* operation, const fastffn_moe_experts& experts)
        : b_up(operation, "b_up", experts.b_up),
          b_down(operation, "b_down", experts.b_down),
          b_gate(operation, "b_gate", experts.b_gate),
          w_up(view(experts.w_up)),
          w_down(view(experts.w_down)),
          w_gate(view(experts.w_gate)) {}
    MoeExperts get() const { return {w_up, w_down, w_gate, b_up.get(), b_down.get(), b_gate.get()}; }

    OptionalView b_up, b_down, b_gate;
    PackedView w_up, w_down, w_gate;
};

struct Moe {
    Moe(const char* operation, const fastffn_moe_weights* argument) {
        const fastffn_moe_weights& weights = sized(operation, "layer", argument);
        if (!weights.experts || !weights.stacks)
            refuse(operation, "layer->experts is empty, expected at least one stack");
        if (!weights.shared && weights.shared_stacks)
            refuse(operation, "layer->shared is NULL with shared_stacks " + std::to_string(weights.shared_stacks));
        stacks_.reserve(weights.stacks + weights.shared_stacks);
        gates_.reserve(weights.shared_stacks);
        for (std::size_t i = 0; i < weights.stacks; ++i) {
            stacks_.emplace_back(operation, weights.experts[i]);
            experts_.push_back(stacks_.back().get());
        }
        for (std::size_t i = 0; i < weights.shared_stacks; ++i) {
            stacks_.emplace_back(operation, weights.shared[i].experts);
            gates_.emplace_back(operation, "gate", weights.shared[i].gate);
            shared_.push_back({stacks_.back().get(), gates_.back().get()});
        }
        layer.experts = experts_.data();
        layer.stacks = static_cast<std::int64_t>(experts_.size());
        layer.shared = shared_.data();
        layer.shared_stacks = static_cast<std::int64_t>(shared_.size());
        layer.activation = parse(operation, "activation", weights.activation, parse_activation);
        layer.weights_on_input = weights.weights_on_input != 0;
    }
    Moe(const Moe&) = delete;

    MoeWeights layer;

  private:
    std::vector<Experts> stacks_;  // reserved: pointers into it stay
    std::vector<OptionalView> gates_;
    std::vector<MoeExperts> experts_;
    std::vector<MoeShared> shared_;
};

struct Tree {
    Tree(const char* operation, const fastffn_tree_parts* argument)
        : source_(sized(operation, "parts", argument)),
          w_node_(operation, "w_node", source_.w_node),
          b_node_(operation, "b_node", source_.b_node),
          threshold_(operation, "threshold", source_.threshold),
          w_out_(operation, "w_out", source_.w_out) {
        parts.w_node = w_node_.get();
        parts.b_node = b_node_.get();
        parts.threshold = threshold_.get();
        parts.w_out = w_out_.get();
        if (source_.format) options.format = parse(operation, "format", source_.format, parse_format);
        if (source_.route_format)
            options.route_format = parse(operation, "route_format", source_.route_format, parse_format);
        if (!source_.tie || !std::strcmp(source_.tie, "ge")) options.tie = Tie::right;
        else if (!std::strcmp(source_.tie, "gt")) options.tie = Tie::left;
        else refuse(operation, std::string("tie is '") + source_.tie + "', expected 'ge' or 'gt'");
    }
    Tree(const Tree&) = delete;

    TreeParts parts;
    TreeOptions options;

  private:
    const fastffn_tree_parts& source_;
    OptionalView w_node_, b_node_, threshold_, w_out_;
};

}  // namespace

fastffn_status fastffn_linear(fastffn_context* context, const fastffn_tensor* x, fastffn_packed w,
                              const fastffn_tensor* bias, const fastffn_tensor* y, fastffn_error* error) {
    return call(error, [&] {
        const OptionalView bias_view("linear", "bias", bias);
        return linear(context_of("linear", context), view("linear", "x", x), view(w), bias_view.get(),
                      view("linear", "out", y));
    });
}

fastffn_status fastffn_ffn(fastffn_context* context, const fastffn_tensor* x, const fastffn_ffn_weights* weights,
                           const fastffn_tensor* y, fastffn_error* error) {
    return call(error, [&] {
        const Ffn arguments("ffn", weights);
        return ffn(context_of("ffn", context), view("ffn", "x", x), arguments.layer, view("ffn", "out", y));
    });
}

fastffn_status fastffn_ffn_workspace(const fastffn_tensor* x, const fastffn_ffn_weights* weights, std::int32_t threads,
                                     std::int64_t* bytes, fastffn_error* error) {
    return call(error, [&] {
        const Ffn arguments("ffn_workspace", weights);
        if (!bytes) refuse("ffn_workspace", "bytes is NULL");
        return ffn_workspace(view("ffn_workspace", "x", x), arguments.layer, threads, bytes);
    });
}

fastffn_status fastffn_route_topk(fastffn_context* context, const fastffn_tensor* logits,
                                  const fastffn_topk_options* options, const fastffn_tensor* ids,
                                  const fastffn_tensor* weights, fastffn_error* error) {
    constexpr const char* operation = "route_topk";
    return call(error, [&] {
        const fastffn_topk_options& given = sized(operation, "options", options);
        const OptionalView bias(operation, "bias", given.bias);
        const OptionalView correction(operation, "correction_bias", given.correction_bias);
        TopkOptions topk;
        topk.k = given.k;
        if (given.score) topk.score = parse(operation, "score", given.score, parse_router_score);
        topk.renormalize = given.renormalize != 0;
        if (given.scale != 0) topk.scale = given.scale;
        topk.bias = bias.get();
        topk.correction_bias = correction.get();
        if (given.groups) topk.groups = given.groups;
        topk.topk_groups = given.topk_groups;
        if (given.group_score) topk.group_score = parse(operation, "group_score", given.group_score, parse_group_score);
        return route_topk(context_of(operation, context), view(operation, "logits", logits), topk,
                          view(operation, "ids", ids), view(operation, "weights", weights));
    });
}

fastffn_status fastffn_moe(fastffn_context* context, const fastffn_tensor* x, const fastffn_tensor* ids,
                           const fastffn_tensor* weights, const fastffn_moe_weights* layer, const fastffn_tensor* y,
                           std::int64_t* load, fastffn_error* error) {
    return call(error, [&] {
        const Moe arguments("moe", layer);
        const OptionalView weights_view("moe", "weights", weights);
        return moe(context_of("moe", context), view("moe", "x", x), view("moe", "ids", ids), weights_view.get(),
                   arguments.layer, view("moe", "out", y), load);
    });
}

fastffn_status fastffn_moe_workspace(const fastffn_tensor* x, std::int64_t picks, const fastffn_moe_weights* layer,
                                     std::int32_t threads, std::int64_t* bytes, fastffn_error* error) {
    return call(error, [&] {
        const Moe arguments("moe_workspace", layer);
        if (!bytes) refuse("moe_workspace", "bytes is NULL");
        return moe_workspace(view("moe_workspace", "x", x), picks, arguments.layer, threads, bytes);
    });
}

fastffn_status fastffn_tree_bytes(const fastffn_tree_parts* parts, std::int64_t* bytes, fastffn_error* error) {
    return call(error, [&] {
        const Tree tree("tree_bytes", parts);
        if (!bytes) refuse("tree_bytes", "bytes is NULL");
        return tree_bytes(tree.parts, tree.options, bytes);
    });
}

fastffn_status fastffn_pack_tree(const fastffn_tree_parts* parts, void* out, std::int64_t out_bytes,
                                 fastffn_error* error) {
    return call(error, [&] {
        const Tree tree("pack_tree", parts);
        if (!out) refuse("pack_tree", "out is NULL");
        return pack_tree(tree.parts, tree.options, out, out_bytes);
    });
}

fastffn_status fastffn_fff(fastffn_context* context, const fastffn_tensor* x, const fastffn_fff_weights* weights,
                           const fastffn_tensor* y, fastffn_error* error) {
    return call(error, [&] {
        const fastffn_fff_weights& given = sized("fff", "weights", weights);
        const OptionalView b_up("fff", "b_up", given.b_up), b_down("fff", "b_down", given.b_down);
        const OptionalView leaf("fff", "leaf", given.leaf);
        FffWeights layer;
        layer.tree = view(given.tree);
        layer.w_up = view(given.w_up);
        layer.w_down = view(given.w_down);
        layer.b_up = b_up.get();
        layer.b_down = b_down.get();
        layer.activation = parse("fff", "activation", given.activation, parse_activation);
        layer.leaf = leaf.get();
        return fff(context_of("fff", context), view("fff", "x", x), layer, view("fff", "out", y));
    });
}

fastffn_status fastffn_fff_route(fastffn_context* context, const fastffn_tensor* x, fastffn_packed tree,
                                 const fastffn_tensor* leaf, const fastffn_tensor* margin, fastffn_error* error) {
    constexpr const char* operation = "fff_route";
    return call(error, [&] {
        const OptionalView margin_view(operation, "margin", margin);
        return fff_route(context_of(operation, context), view(operation, "x", x), view(tree),
                         view(operation, "leaf", leaf), margin_view.get(), nullptr);
    });
}
