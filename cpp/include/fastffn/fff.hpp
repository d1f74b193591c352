// Fast feedforward layers: a binary tree chooses, per token, the few neurons that run, so time grows with the logarithm of
// the width.
//
//   leaf form      d decisions, then the small FFN of the leaf; trees are summed      (Belcak and Wattenhofer 2023, arXiv:2308.14711)
//                  y = Σ_trees activation(x · w_up[leaf]ᵀ + b_up[leaf]) · w_down[leaf]ᵀ + b_down[leaf]
//   all-node form  every node on the path is a neuron; trees are summed            (Belcak and Wattenhofer 2023, arXiv:2311.10770)
//                  y = Σ_trees Σ_path activation(z[n]) · w_out[n]
//   master         y = σ(mix) · fff(x) + (1 - σ(mix)) · ffn(x), a small dense FFN that always runs   (arXiv:2405.16836)
//
//   z[n] = x · w_node[n] + b_node[n];  go right, n → 2n + 2, when z[n] >= threshold[n] (Tie::right) or > (Tie::left); else
//   left, n → 2n + 1. NaN compares false: left. Leaves are numbered from the left, 0 to 2^depth - 1; in the all-node form a
//   "leaf" is a node of the last level.
//
// Shapes: x [..., d_model]; y [..., d_out]; w_node [trees, nodes, d_model] with nodes = 2^depth - 1 in the leaf form and
// 2^(depth+1) - 1 in the all-node form; w_out [trees, nodes, d_out], a row per node (linear_out.weight of UltraFastBERT,
// transposed: any strides are read); leaf weights are packed stacks w_up [trees · 2^depth, d_ff, d_model] and w_down
// [trees · 2^depth, d_out, d_ff], tree after tree, in any format.
//
// x is used in f32, and sums are f32, whatever the format of the tree's rows (leaves: as in ffn()): decisions do not depend
// on a rounding of x. Same bits for any number of threads. In the all-node form and for routes also the same bits for any
// plan and any number of tokens in a call. x and y must not overlap.
#pragma once

#include <cstdint>

#include "fastffn/ffn.hpp"

namespace fastffn {

enum class TreeForm : std::uint8_t { leaf = 1, nodes = 2 };

// Where a token goes whose z equals the threshold.
enum class Tie : std::uint8_t {
    right = 1,  // "ge": the leaf form's reference, in inference
    left = 2,   // "gt": the all-node form's
};

// What a tree is made of, as plain arrays (f32, f16, bf16 or f64, any strides).
struct TreeParts {
    const TensorView* w_node = nullptr;     // [nodes, d_model] or [trees, nodes, d_model]
    const TensorView* b_node = nullptr;     // [trees, nodes], or [nodes] of one tree; nullptr: 0
    const TensorView* threshold = nullptr;  // same shape; nullptr: 0
    const TensorView* w_out = nullptr;      // [nodes, d_out] or [trees, nodes, d_out]; nullptr: the leaf form
};

struct TreeOptions {
    Format format =
        Format::f32;  // of w_out, and of w_node in the all-node form: f32, f16, bf16, int8 (a scale per row)
    Format route_format = Format::f32;  // of w_node
    Tie tie = Tie::right;
};

struct TreeInfo {
    TreeForm form;
    Tie tie;
    Format format, route_format;
    std::int64_t trees, depth, nodes;  // nodes per tree
    std::int64_t d_model, d_out;       // d_out: 0 in the leaf form
    bool has_bias, has_threshold;
    std::int64_t bytes;
};

// A packed tree is plain bytes with a header, like a packed weight; it needs no alignment.
Status tree_bytes(const TreeParts& parts, const TreeOptions& options, std::int64_t* bytes);
Status pack_tree(const TreeParts& parts, const TreeOptions& options, void* out, std::int64_t out_bytes);

// Writes the parts back as f32: arrays of the shapes [trees, nodes, …], contiguous; those that are nullptr are left out.
Status unpack_tree(const PackedView& tree, const TreeParts& parts);

// Checks the header and the size in constant time.
Status inspect_tree(const PackedView& tree, TreeInfo* info);
// inspect_tree(), and compares the payload's checksum.
Status verify_tree(const PackedView& tree);

// How a call runs. They give the same bits in the all-node form and for routes; leaves run on the grouped engine, whose
// bits may depend on how many tokens share a leaf.
enum class FffPlan : std::uint8_t {
    automatic = 0,  // by a measured estimate of the cost
    per_token = 1,  // each token walks on its own
    grouped = 2,    // tokens are sorted by subtree and share its rows
};

struct FffWeights {
    PackedView tree;
    PackedView w_up, w_down;             // leaf form only
    const TensorView* b_up = nullptr;    // [trees · 2^depth, d_ff]; nullptr: none
    const TensorView* b_down = nullptr;  // [trees · 2^depth, d_out]; nullptr: none
    Activation activation = Activation::gelu;
    const FfnWeights* master = nullptr;  // a dense FFN [d_model → d_out] added to the tree's result; nullptr: none
    const float* mix = nullptr;          // k of σ(k) · fff + (1 - σ(k)) · master; nullptr: fff + master
    const TensorView* leaf = nullptr;    // forced leaves [..., trees], or [...] of one tree, i32 or i64; nullptr: route
    FffPlan plan = FffPlan::automatic;
};

Status fff(Context& context, const TensorView& x, const FffWeights& weights, const TensorView& y);

// leaf: [..., trees], i32. margin (or nullptr): [..., trees], f32: the smallest |z - threshold| of a token's decisions, how
// far it is from another leaf; infinity at depth 0, NaN where a z is. z (or nullptr): [..., trees, levels], f32, of every
// node visited: levels = depth in the leaf form, depth + 1 in the all-node form. All contiguous.
Status fff_route(Context& context, const TensorView& x, const PackedView& tree, const TensorView& leaf,
                 const TensorView* margin, const TensorView* z, FffPlan plan = FffPlan::automatic);

// Exact bytes of workspace that such a call takes from its context, for a contiguous y of dtype x.
Status fff_workspace(const TensorView& x, const FffWeights& weights, int threads, std::int64_t* bytes);

}  // namespace fastffn
