#include "kernels/fff_walk.cuh"

#include "kernels/fff_tiles.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

// Shared memory for x that every device since sm_80 gives a block (99 KiB are the least), less what kernels hold themselves.
constexpr std::int64_t most_x_bytes = 96 << 10;
static_assert(most_x_bytes + 3 * 1024 <= shared_bytes_everywhere && TileWalk::shared_bytes <= shared_bytes_everywhere);

// Floats of x that a row meets: whole steps of a warp.
std::int64_t x_floats(const TreeArgs& tree) {
    const std::int64_t columns = tree.route_format == row_f32 ? 4 : tree.route_format == row_int8 ? 16 : 8;
    return (tree.node_bytes + 511) / 512 * 32 * columns;
}

bool wrong(const TreeArgs& tree) {
    return tree.levels > 31 || tree.node_bytes % 16 != 0 || tree.out_bytes % 16 != 0 || tree.route_format < row_f32 ||
           tree.route_format > row_int8;
}

template <class F>
cudaError_t with_route_format(int format, F f) {
    switch (format) {
        case row_f32: return f(std::integral_constant<int, row_f32>());
        case row_f16: return f(std::integral_constant<int, row_f16>());
        case row_bf16: return f(std::integral_constant<int, row_bf16>());
        default: return f(std::integral_constant<int, row_int8>());
    }
}

}  // namespace

cudaError_t launch_walk(const WalkArgs& args, cudaStream_t stream) {
    if (wrong(args.tree)) return cudaErrorInvalidValue;
    // 8 warps where each has room for x, as it is up to 3072 columns; then fewer; past 24576 columns one, and x in pieces.
    const std::int64_t bytes = x_floats(args.tree) * 4;
    const std::int64_t warps = bytes * walk_warps <= most_x_bytes ? walk_warps
                               : bytes <= most_x_bytes            ? most_x_bytes / bytes
                                                                  : 1;
    const std::int64_t each = bytes <= most_x_bytes ? bytes : most_x_bytes;
    const int run = walk_run(args.walkers.count);
    const std::int64_t blocks = (args.walkers.count + warps * run - 1) / (warps * run);
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(warps * 32)),
                       static_cast<int>(warps * each), stream, "fff_walk"};
    return with_route_format(args.tree.route_format, [&](auto format) {
        return launch(walk_kernel<decltype(format)::value>, grid, args, static_cast<int>(each / 4), run);
    });
}

bool fits_block_walk(const TreeArgs& tree) { return x_floats(tree) * 4 <= most_x_bytes; }

cudaError_t launch_block_walk(const BlockWalkArgs& args, cudaStream_t stream) {
    const WalkArgs& walk = args.walk;
    if (wrong(walk.tree) || !fits_block_walk(walk.tree) || walk.walkers.count > 0x7fffffff)
        return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(walk.walkers.count)), dim3(block_walk_warps * 32),
                       static_cast<int>(x_floats(walk.tree) * 4), stream, "fff_block_walk"};
    return with_route_format(walk.tree.route_format, [&](auto format) {
        return launch(block_walk_kernel<decltype(format)::value>, grid, args);
    });
}

cudaError_t launch_tile_walk(const TileWalkArgs& args, cudaStream_t stream) {
    const TreeArgs& tree = args.tree;
    const int levels = args.end_level - args.first_level;
    if (wrong(tree) || args.x_stride % 16 != 0 || levels < 1 || levels > tile_levels || args.max_tiles > 0x7fffffff ||
        tree.node_bytes > (std::int64_t{1} << 36))
        return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(args.max_tiles)), dim3(TileWalk::threads), TileWalk::shared_bytes,
                       stream, "fff_tile_walk"};
    if (tree.route_format == row_bf16) return launch(tile_walk_kernel<Bf16Product>, grid, args);
    if (tree.route_format == row_f16) return launch(tile_walk_kernel<F16Product>, grid, args);
    return cudaErrorInvalidValue;
}

}  // namespace fastffn::cuda
