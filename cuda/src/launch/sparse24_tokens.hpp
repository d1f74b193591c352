// What the sparse24 launchers check and count alike.
#pragma once

#include "kernels/sparse24.cuh"

namespace fastffn::cuda {
namespace {

inline bool sparse24_out_of_range(const Sparse24Args& args) {
    return args.row_bytes % 16 != 0 || args.x_stride % 16 != 0 || args.tile_bytes % 64 != 0 ||
           args.matrix_bytes % 64 != 0 || args.pieces < 0 || args.pieces > 0x7ffffff0;
}

inline Sparse24Tokens sparse24_tokens(const Sparse24Args& args, const TokenGroups* groups) {
    return groups ? Sparse24Tokens{true, 0, *groups} : Sparse24Tokens{false, args.tokens, {}};
}

// Blocks along the tokens; of groups as many as there could be.
inline std::int64_t sparse24_token_blocks(const Sparse24Tokens& tokens, int tile_tokens) {
    return tokens.is_grouped ? tokens.groups.max_tiles : (tokens.count + tile_tokens - 1) / tile_tokens;
}

inline bool sparse24_is_empty(const Sparse24Args& args, const Sparse24Tokens& tokens) {
    return args.out_features == 0 || (tokens.is_grouped ? tokens.groups.max_tiles : tokens.count) == 0;
}

}  // namespace
}  // namespace fastffn::cuda
