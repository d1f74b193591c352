// What both plans of a tree call share: tokens as f32 rows, the scratch of a worker, and what becomes of a walked token.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/convert.hpp"
#include "layers/fff_engine.hpp"

namespace fastffn {

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

inline std::byte* row_of(const RowsView& rows, std::int64_t index) {
    if (rows.dims == 1) return rows.data + index * rows.row_stride();
    std::int64_t run = 0;
    return rows.row(index, 1, &run);
}

// What a worker needs for a tile of the grouped plan, or for a task of the other.
struct Scratch {
    const float** x = nullptr;
    const float** gathered = nullptr;
    const std::byte **ahead = nullptr, **ahead_gathered = nullptr;
    std::byte** y = nullptr;
    Term* terms = nullptr;
    std::int32_t *order = nullptr, *spare = nullptr, *node = nullptr, *forced = nullptr, *begin = nullptr;
    float *dots = nullptr, *z = nullptr, *coefficients = nullptr, *copies = nullptr;

    // Lays the arrays out from `base`; returns the bytes they take.
    std::int64_t place(std::byte* base, std::int64_t tokens, std::int64_t rows_per_token, std::int64_t z_floats,
                       std::int64_t copied_cols) {
        std::int64_t offset = 0;
        auto take = [&](auto** pointer, std::int64_t count) {
            using Element = std::remove_reference_t<decltype(**pointer)>;
            *pointer = reinterpret_cast<Element*>(base + offset);
            offset += round_up(count * static_cast<std::int64_t>(sizeof(Element)), 64);
        };
        take(&x, tokens);
        take(&gathered, tokens);
        take(&ahead, tokens);
        take(&ahead_gathered, tokens);
        take(&y, tokens);
        take(&terms, tokens * rows_per_token);
        take(&order, tokens);
        take(&spare, tokens);
        take(&node, tokens);
        take(&forced, tokens);
        take(&begin, tokens + 1);
        take(&dots, tokens);
        take(&z, tokens * z_floats);
        take(&coefficients, tokens * z_floats);
        take(&copies, tokens * copied_cols);
        return offset;
    }
};

// One call, cut into spans of tokens that bound its workspace.
class TreeTiles {
  public:
    TreeTiles(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y, std::byte* workspace)
        : call_(call), tree_(call.tree), plan_(plan), x_(x), y_(y), workspace_(workspace) {}

    std::int64_t spans() const { return divide_up(plan_.tokens, plan_.span); }

  protected:
    std::int64_t trees() const { return tree_.header.trees; }
    std::int64_t first(std::int64_t span) const { return span * plan_.span; }
    std::int64_t tokens(std::int64_t span) const { return least(plan_.span, plan_.tokens - first(span)); }
    std::int64_t padded_cols() const { return round_up(x_.cols, 16); }

    void copy_row(std::int64_t index, float* dst) const {
        call_.kernels->widen(row_of(x_, index), x_.dtype, x_.cols, dst);
    }

    template <class T>
    T* at(std::int64_t offset) const {
        return reinterpret_cast<T*>(workspace_ + offset);
    }

    // What fff_route() and the grouped engine of leaves ask of one token in one tree.
    void route_result(std::int64_t slot, std::int64_t which, std::int32_t node, const float* z) const {
        const std::int64_t depth = tree_.header.depth;
        const std::int32_t leaf = node - static_cast<std::int32_t>(tree_.leaves());
        if (call_.leaf)
            call_.leaf[slot] = leaf + (call_.leaf_of_stack ? static_cast<std::int32_t>(which * tree_.leaves()) : 0);
        if (call_.z) std::memcpy(call_.z + slot * tree_.levels, z, static_cast<std::size_t>(tree_.levels) * 4);
        if (!call_.margin) return;
        float margin = std::numeric_limits<float>::infinity();
        for (std::int64_t t = 0; t < depth; ++t) {
            const NodeHead head = PackedTree::head(tree_.record(which, (node >> (depth - t)) - 1));
            const float distance = std::fabs(z[t] - head.threshold);
            if (!(distance >= margin)) margin = distance;  // takes NaN
            if (margin != margin) break;
        }
        call_.margin[slot] = margin;
    }

    // Terms of one token's path in one tree, from its activated z.
    Term* add_terms(std::int64_t which, std::int32_t node, const float* coefficients, Term* terms) const {
        const std::int64_t depth = tree_.header.depth;
        const bool scaled = tree_.format() == Format::int8;
        const bool skips = (tree_.header.flags & tree_outputs_finite) != 0;
        for (std::int64_t t = 0; t < tree_.levels; ++t) {
            const std::byte* record = tree_.record(which, (node >> (depth - t)) - 1);
            const float weight = coefficients[t];
            terms->row = record + tree_.out_offset;
            terms->weight = scaled ? weight * PackedTree::head(record).out_scale : weight;
            // Kept by position, not by a branch: half of relu's are 0, at random.
            terms += skips && weight == 0.0f ? 0 : 1;
        }
        return terms;
    }

    auto* sum_rows() const { return call_.kernels->sum[static_cast<int>(tree_.format()) - 1]; }

    void activate(float* z, float* coefficients, std::int64_t rows) const {
        call_.elementwise->activate({call_.activation, z, nullptr, nullptr, nullptr, rows, plan_.z_stride,
                                     plan_.z_stride, coefficients, plan_.z_stride});
    }

    const TreeCall& call_;
    const PackedTree& tree_;
    const TreePlan& plan_;
    const RowsView& x_;
    const RowsView& y_;
    std::byte* workspace_;
};

// The two plans: sizes, appended to a workspace of `offset` bytes, and the run.
void plan_per_token(const TreeCall& call, const RowsView& x, TreePlan* plan);
void run_per_token(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y,
                   std::byte* workspace) noexcept;
void plan_grouped_walk(const TreeCall& call, const RowsView& x, DType y_dtype, TreePlan* plan);
void run_grouped_walk(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y,
                      std::byte* workspace) noexcept;

}  // namespace fastffn
