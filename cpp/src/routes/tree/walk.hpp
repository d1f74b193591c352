// Walking down one tree of a packed stack: tokens to leaves.
//
// Nodes are counted as heaps are, from 1: the children of h are 2h and 2h + 1, and h on level t stands for the leaves
// [h << (depth - t), (h + 1) << (depth - t)) less 2^depth. All orders of walking give the same bits.
#pragma once

#include "routes/tree/kernels.hpp"
#include "routes/tree/tree.hpp"

namespace fastffn {

// Tokens in hand, by local number [0, count).
struct WalkTile {
    const PackedTree* tree = nullptr;
    std::int64_t which = 0;  // tree of the stack
    std::int64_t interleaved =
        1;  // walk_each() only: token i walks tree (which + i) % interleaved where that is above 1
    const TreeKernels* kernels = nullptr;
    const float* const* x = nullptr;       // [count] rows, as DotArgs wants them
    const std::int32_t* forced = nullptr;  // [count] leaf to go to, whatever z says; nullptr: by z
    std::int32_t* node = nullptr;          // [count] where the token stands
    float* z = nullptr;                    // z[i · z_stride + level]
    std::int64_t z_stride = 0;
    std::int64_t prefetch_bytes = 0;  // of the output rows that walk_each() passes
    // Scratch of walk_sorted().
    std::int32_t* spare = nullptr;     // [count]
    const float** gathered = nullptr;  // [count]
    float* dots = nullptr;             // [count]
    // x of the tile that comes next: each of count tokens fetches a part of its row per level. nullptr: none.
    const std::byte* const* ahead = nullptr;     // [count]
    const std::byte** ahead_gathered = nullptr;  // [count], scratch
    std::int64_t ahead_bytes = 0;                // per level
};

// Takes the tokens order[0..count), which stand on node[] of one level, down to `end_level`. In the all-node form the last
// level's z are computed too, and the tokens stay there.
void walk_each(const WalkTile& tile, const std::int32_t* order, std::int64_t count, std::int64_t level,
               std::int64_t end_level) noexcept;

// The same for tokens that all stand on one node, sharing each row: order comes out sorted by node, and by its former order
// within one.
void walk_sorted(const WalkTile& tile, std::int32_t* order, std::int64_t count, std::int64_t level,
                 std::int64_t end_level) noexcept;

}  // namespace fastffn
