// Makes the tables of launch/groups.hpp on the device, from the ids that a route gave each token.
//
//   ids [tokens, slots] → positions in ascending order of the id, of one id in the order of (token, slot)
//
// The order depends on nothing but the ids: a counting sort with fixed chunks. Ids outside [0, groups) are none, they get no
// position. The host knows only bounds, so nothing is read back and a graph can hold all of it. One launch for up to
// small_slots slots (a step of decoding), four above.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch/groups.hpp"
#include "launch/pieces.hpp"

namespace fastffn::cuda {

struct SlotIds {
    const void* data;
    bool is_64;                              // i64, else i32
    std::int64_t token_stride, slot_stride;  // elements
};

struct GroupTables {
    std::int32_t* offsets;  // [groups + 1]
    std::int32_t* rows;     // [tokens · slots]: the token of each position
    std::int32_t* places;   // [tokens, slots]: the position; -1: none
    std::int32_t* counts;   // [chunks, groups], for the sort
    std::int64_t tokens, slots, groups;
};

constexpr std::int64_t small_slots = 2048;
// Counters of so many groups lie in shared memory.
constexpr std::int64_t shared_groups = 8192;

// tokens · slots and groups are at most most_positions: positions are 32-bit, and loops step a little beyond.
constexpr std::int64_t most_positions = 0x7fff0000;
GroupTables take_group_tables(Pieces& pieces, std::int64_t tokens, std::int64_t slots, std::int64_t groups);

// Tokens per tile that suit the groups' products: 8 or 16 where weights are read for few tokens, else 128. `groups`: those that
// may share the slots.
int usual_tile_tokens(std::int64_t tokens, std::int64_t slots, std::int64_t groups);

// Room for the tiles of groups [first, first + count), a stack of matrices.
TokenGroups take_token_groups(Pieces& pieces, const GroupTables& tables, std::int64_t first, std::int64_t count,
                              int tile_tokens);

// The tables, and the tiles of some stacks.
cudaError_t launch_group_tables(const SlotIds& ids, const GroupTables& tables, const TokenGroups* stacks,
                                int stack_count, cudaStream_t stream);

}  // namespace fastffn::cuda
