#include "routes/tree/walk.hpp"

namespace fastffn {

namespace {

// z of a token at a node, and where it goes.
class Decision {
  public:
    Decision(const WalkTile& tile, const std::byte* record, std::int64_t level)
        : tile_(tile),
          head_(PackedTree::head(record)),
          level_(level),
          shift_(tile.tree->header.depth - 1 - level),
          ties_right_(tile.tree->tie() == Tie::right) {}

    bool goes_right(std::int32_t token, float dot) const {
        const float z = dot * head_.scale + head_.bias;
        tile_.z[token * tile_.z_stride + level_] = z;
        if (shift_ < 0) return false;  // the last level of the all-node form
        if (tile_.forced) return (tile_.forced[token] >> shift_ & 1) != 0;
        return ties_right_ ? z >= head_.threshold : z > head_.threshold;
    }
    bool last() const { return shift_ < 0; }

  private:
    const WalkTile& tile_;
    NodeHead head_;
    std::int64_t level_, shift_;
    bool ties_right_;
};

int row_kind(const PackedTree& tree) { return static_cast<int>(tree.route_format()) - 1; }

}  // namespace

void walk_each(const WalkTile& tile, const std::int32_t* order, std::int64_t count, std::int64_t level,
               std::int64_t end_level) noexcept {
    const PackedTree& tree = *tile.tree;
    auto* const dots = tile.kernels->dot_each[row_kind(tree)];
    for (std::int64_t first = 0; first < count; first += dots_at_once) {
        const std::int64_t walkers = count - first < dots_at_once ? count - first : dots_at_once;
        const std::int32_t* tokens = order + first;
        const float* x[dots_at_once];
        const std::byte *rows[dots_at_once], *ahead[dots_at_once];
        float found[dots_at_once];
        std::int64_t which[dots_at_once];
        for (std::int64_t i = 0; i < walkers; ++i) {
            x[i] = tile.x[tokens[i]];
            which[i] = tile.interleaved > 1 ? (tile.which + tokens[i]) % tile.interleaved : tile.which;
        }
        for (std::int64_t t = level; t < end_level; ++t) {
            for (std::int64_t i = 0; i < walkers; ++i)
                rows[i] = tree.record(which[i], tile.node[tokens[i]] - 1) + node_head_bytes;
            for (std::int64_t i = 0; i < walkers; ++i)
                ahead[i] = tile.ahead ? tile.ahead[tokens[i]] + t * tile.ahead_bytes
                                      : rows[i] + (tree.out_offset - node_head_bytes);
            const std::int64_t bytes = tile.ahead ? tile.ahead_bytes : tile.prefetch_bytes;
            dots({x, rows, tree.header.d_model, walkers, found, bytes ? ahead : nullptr, bytes});
            for (std::int64_t i = 0; i < walkers; ++i) {
                const Decision decision(tile, rows[i] - node_head_bytes, t);
                const bool right = decision.goes_right(tokens[i], found[i]);
                std::int32_t& node = tile.node[tokens[i]];
                if (!decision.last()) node = 2 * node + (right ? 1 : 0);
            }
        }
    }
}

void walk_sorted(const WalkTile& tile, std::int32_t* order, std::int64_t count, std::int64_t level,
                 std::int64_t end_level) noexcept {
    if (level == end_level || count == 0) return;
    if (count <= dots_at_once) {
        walk_each(tile, order, count, level, end_level);
        for (std::int64_t i = 1; i < count; ++i) {
            const std::int32_t token = order[i];
            std::int64_t at = i;
            for (; at > 0 && tile.node[order[at - 1]] > tile.node[token]; --at) order[at] = order[at - 1];
            order[at] = token;
        }
        return;
    }
    const PackedTree& tree = *tile.tree;
    const std::int32_t node = tile.node[order[0]];
    const std::byte* record = tree.record(tile.which, node - 1);
    const std::byte* row = record + node_head_bytes;
    for (std::int64_t i = 0; i < count; ++i) tile.gathered[i] = tile.x[order[i]];
    if (tile.ahead)
        for (std::int64_t i = 0; i < count; ++i)
            tile.ahead_gathered[i] = tile.ahead[order[i]] + level * tile.ahead_bytes;
    tile.kernels->dot_shared[row_kind(tree)]({tile.gathered, &row, tree.header.d_model, count, tile.dots,
                                              tile.ahead ? tile.ahead_gathered : nullptr, tile.ahead_bytes});
    const Decision decision(tile, record, level);
    if (decision.last()) {
        for (std::int64_t i = 0; i < count; ++i) (void)decision.goes_right(order[i], tile.dots[i]);
        return;
    }
    std::int64_t lefts = 0, rights = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int32_t token = order[i];
        const bool right = decision.goes_right(token, tile.dots[i]);
        tile.node[token] = 2 * node + (right ? 1 : 0);
        // Both are written, one is kept: no branch to mispredict. order[lefts] is behind i.
        order[lefts] = token;
        tile.spare[rights] = token;
        lefts += right ? 0 : 1;
        rights += right ? 1 : 0;
    }
    for (std::int64_t i = 0; i < rights; ++i) order[lefts + i] = tile.spare[i];
    walk_sorted(tile, order, lefts, level + 1, end_level);
    walk_sorted(tile, order + lefts, rights, level + 1, end_level);
}

}  // namespace fastffn
