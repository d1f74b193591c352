#include "launch/group_tables.hpp"

#include "kernels/group_tables.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

// Slots that a chunk has at least: one warp places them in order, some microseconds (an estimate).
constexpr std::int64_t smallest_chunk = 1024, most_chunks = 256;
// Numbers in counts at most, unless one chunk has more: 16 MiB.
constexpr std::int64_t most_counts = std::int64_t{1} << 22;

bool is_small(const GroupTables& tables) {
    return tables.tokens * tables.slots <= small_slots && tables.groups <= shared_groups;
}

std::int64_t chunks_of(const GroupTables& tables) {
    std::int64_t chunks = (tables.tokens * tables.slots + smallest_chunk - 1) / smallest_chunk;
    chunks = chunks < most_chunks ? chunks : most_chunks;
    if (chunks * tables.groups > most_counts) chunks = most_counts / tables.groups;
    return chunks > 1 ? chunks : 1;
}

}  // namespace

GroupTables take_group_tables(Pieces& pieces, std::int64_t tokens, std::int64_t slots, std::int64_t groups) {
    GroupTables tables = {nullptr, nullptr, nullptr, nullptr, tokens, slots, groups};
    tables.offsets = pieces.take<std::int32_t>((groups + 1) * 4);
    tables.rows = pieces.take<std::int32_t>(tokens * slots * 4);
    tables.places = pieces.take<std::int32_t>(tokens * slots * 4);
    if (!is_small(tables)) tables.counts = pieces.take<std::int32_t>(chunks_of(tables) * groups * 4);
    return tables;
}

int usual_tile_tokens(std::int64_t tokens, std::int64_t slots, std::int64_t groups) {
    if (tokens <= 8) return 8;
    // A tile of 128 tokens computes 128 multiply-adds per weight, about what tensor cores manage in the time that memory takes for
    // it (an estimate): below 8 tokens per group kernels that only read are better, above it those that share what they read.
    return tokens <= 16 || tokens * slots <= 8 * groups ? 16 : 128;
}

TokenGroups take_token_groups(Pieces& pieces, const GroupTables& tables, std::int64_t first, std::int64_t count,
                              int tile_tokens) {
    TokenGroups stack = {};
    stack.offsets = tables.offsets ? tables.offsets + first : nullptr;
    stack.rows = tables.rows;
    stack.positions = tables.tokens * tables.slots;
    stack.max_tiles = most_tiles(stack.positions, count, tile_tokens);
    stack.tiles = pieces.take<std::int32_t>(stack.max_tiles * 8);
    stack.tile_count = pieces.take<std::int32_t>(4);
    stack.tile_tokens = tile_tokens;
    stack.groups = count;
    return stack;
}

cudaError_t launch_group_tables(const SlotIds& ids, const GroupTables& tables, const TokenGroups* stacks,
                                int stack_count, cudaStream_t stream) {
    const std::int64_t all = tables.tokens * tables.slots;
    if (all > most_positions || tables.groups > most_positions || tables.groups < 1) return cudaErrorInvalidValue;
    const TokenGroups first = stack_count ? stacks[0] : TokenGroups{};
    const auto groups = static_cast<unsigned>(tables.groups);
    const unsigned shared_bytes = tables.groups <= shared_groups ? groups * 4 : 0;
    const auto grid = [&](std::int64_t blocks, int threads, unsigned shared, const char* name) {
        return Grid{dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), static_cast<int>(shared),
                    stream, name};
    };
    cudaError_t status = cudaSuccess;
    if (is_small(tables)) {
        status = launch(small_tables_kernel, grid(1, group_threads, shared_bytes, "small_tables"), ids, tables, first,
                        stack_count > 0);
    } else {
        const std::int64_t chunks = chunks_of(tables), chunk = all ? (all + chunks - 1) / chunks : 1;
        const std::int64_t blocks = (all + chunk - 1) / chunk;
        status = launch(count_slots_kernel, grid(blocks, group_threads, 0, "count_slots"), ids, tables, chunk);
        if (status == cudaSuccess)
            status =
                launch(prefix_chunks_kernel,
                       grid((tables.groups + group_threads - 1) / group_threads, group_threads, 0, "prefix_chunks"),
                       tables, blocks);
        if (status == cudaSuccess)
            status =
                launch(scan_groups_kernel, grid(1, scan_threads, 0, "scan_groups"), tables, first, stack_count > 0);
        if (status == cudaSuccess)
            status = launch(place_slots_kernel, grid(blocks, group_threads, shared_bytes, "place_slots"), ids, tables,
                            chunk, shared_bytes > 0);
    }
    for (int i = 1; i < stack_count && status == cudaSuccess; i++)
        status = launch(cut_tiles_kernel, grid(1, group_threads, 0, "cut_tiles"), stacks[i]);
    return status;
}

}  // namespace fastffn::cuda
