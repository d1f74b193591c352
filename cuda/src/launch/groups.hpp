// Which tokens meet which matrix of a stack: a route's product on a device (experts of a mixture, leaves of a tree).
//
// Positions are (token, slot) pairs in the order of groups: those of group g are offsets[g] … offsets[g + 1] - 1. Kernels compute
// one row of y per position; tables that a kernel made cut the positions into tiles of at most tile_tokens of one group.
#pragma once

#include <cstdint>

namespace fastffn::cuda {

struct TokenGroups {
    const std::int32_t* offsets;     // [groups + 1]
    const std::int32_t* rows;        // [positions]: the row of x; nullptr: the position itself
    const std::int32_t* tiles;       // [max_tiles, 2]: group and first position
    const std::int32_t* tile_count;  // [1]: tiles that there are; further blocks have nothing to do
    std::int64_t max_tiles;          // known to the host: see most_tiles()
    std::int64_t positions;          // at most this many
    int tile_tokens;                 // 8, 16 or 128
    std::int64_t groups;
};

// No group has more tiles than positions, and each ends with at most one that is not full.
constexpr std::int64_t most_tiles(std::int64_t positions, std::int64_t groups, int tile_tokens) {
    const std::int64_t ragged = positions / tile_tokens + groups;
    return positions < ragged ? positions : ragged;
}

}  // namespace fastffn::cuda
