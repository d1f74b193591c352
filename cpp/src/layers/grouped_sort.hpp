// Picks sorted by group: what a token tile's ids look like from the groups' side.
#pragma once

#include <cstdint>

#include "layers/grouped.hpp"

namespace fastffn {

// Consecutive picks of one group, in the order of their tokens and slots.
struct ActiveGroup {
    std::int64_t group, first, count;
};

struct SortedPicks {
    std::int32_t* tokens = nullptr;  // relative to the tile
    float* weights = nullptr;        // nullptr where the routing has none
    float* input_weights = nullptr;
    ActiveGroup* active = nullptr;  // in ascending order of group
    std::int64_t active_count = 0;
};

// A stable counting sort of the picks of tokens [first, first + tokens); few picks are inserted one by one instead, as
// clearing and scanning a count for every group would cost more. counts: [groups]. The arrays of `picks` have room for
// tokens · routing.picks, `active` for no more than that or the number of groups.
void sort_picks(const GroupedRouting& routing, std::int64_t groups, std::int64_t first, std::int64_t tokens,
                std::int64_t* counts, SortedPicks* picks) noexcept;

}  // namespace fastffn
