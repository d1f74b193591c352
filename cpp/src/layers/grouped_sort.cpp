#include "layers/grouped_sort.hpp"

namespace fastffn {

namespace {

// Inserting n picks moves at most n²/2 of them, counting costs a nanosecond or so per group: 48 picks take 0.5 µs to insert.
constexpr std::int64_t insert_limit = 48;

void insert_picks(const GroupedRouting& routing, std::int64_t first, std::int64_t tokens, SortedPicks* sorted) {
    std::int32_t groups[insert_limit];
    std::int64_t slots[insert_limit], count = 0;
    for (std::int64_t slot = first * routing.picks; slot < (first + tokens) * routing.picks; ++slot) {
        const std::int32_t group = routing.ids[slot];
        if (group < 0) continue;
        std::int64_t at = count++;
        for (; at > 0 && groups[at - 1] > group; --at) {
            groups[at] = groups[at - 1];
            slots[at] = slots[at - 1];
        }
        groups[at] = group;
        slots[at] = slot;
    }
    sorted->active_count = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        sorted->tokens[i] = static_cast<std::int32_t>(slots[i] / routing.picks - first);
        if (sorted->weights) sorted->weights[i] = routing.weights[slots[i]];
        if (sorted->input_weights) sorted->input_weights[i] = routing.input_weights[slots[i]];
        if (i == 0 || groups[i] != groups[i - 1]) sorted->active[sorted->active_count++] = {groups[i], i, 0};
        ++sorted->active[sorted->active_count - 1].count;
    }
}

}  // namespace

void sort_picks(const GroupedRouting& routing, std::int64_t groups, std::int64_t first, std::int64_t tokens,
                std::int64_t* counts, SortedPicks* sorted) noexcept {
    if (tokens * routing.picks <= insert_limit) return insert_picks(routing, first, tokens, sorted);
    for (std::int64_t group = 0; group < groups; ++group) counts[group] = 0;
    const std::int64_t begin = first * routing.picks, end = (first + tokens) * routing.picks;
    for (std::int64_t slot = begin; slot < end; ++slot)
        if (routing.ids[slot] >= 0) ++counts[routing.ids[slot]];
    std::int64_t next = 0;
    sorted->active_count = 0;
    for (std::int64_t group = 0; group < groups; ++group) {
        const std::int64_t count = counts[group];
        if (count) sorted->active[sorted->active_count++] = {group, next, count};
        counts[group] = next;  // from here on: where the group's next pick goes
        next += count;
    }
    std::int64_t slot = begin;
    for (std::int64_t token = 0; token < tokens; ++token)
        for (std::int64_t pick = 0; pick < routing.picks; ++pick, ++slot) {
            if (routing.ids[slot] < 0) continue;
            const std::int64_t at = counts[routing.ids[slot]]++;
            sorted->tokens[at] = static_cast<std::int32_t>(token);
            if (sorted->weights) sorted->weights[at] = routing.weights[slot];
            if (sorted->input_weights) sorted->input_weights[at] = routing.input_weights[slot];
        }
}

}  // namespace fastffn
