// Which tokens a block of a product has, and which matrix they meet. Kernels take one of these by value and loop over
// rows 0 … count - 1 of a tile:
//
//   AllTokens tokens{n};  or  GroupedTokens tokens{groups};
//   TokenTile tile;
//   if (!tokens.tile(blockIdx.y, tile_tokens, &tile)) return;      // uniform over the block
//   x + tokens.x_row(tile, i) * x_stride;   y + (tile.first + i) * y_stride;
//   of_matrix(w, tile, matrix_bytes);   bias[tile.matrix * out_features + row]
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch/groups.hpp"

namespace fastffn::cuda {
namespace {

struct TokenTile {
    std::int64_t first;   // row of y
    std::int64_t matrix;  // of the stack
    int count;
};

// What a stack has for the tile's matrix: its rows, its scales.
template <class T>
__device__ __forceinline__ const T* of_matrix(const T* stack, const TokenTile& tile, std::int64_t matrix_bytes) {
    return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(stack) + tile.matrix * matrix_bytes);
}
__device__ __forceinline__ const unsigned char* of_matrix(const void* stack, const TokenTile& tile,
                                                          std::int64_t matrix_bytes) {
    return static_cast<const unsigned char*>(stack) + tile.matrix * matrix_bytes;
}

struct AllTokens {
    static constexpr bool is_grouped = false;
    std::int64_t count;
    __device__ __forceinline__ std::int64_t tiles(int tile_tokens) const {
        return (count + tile_tokens - 1) / tile_tokens;
    }
    __device__ __forceinline__ bool tile(std::int64_t index, int tile_tokens, TokenTile* tile) const {
        tile->first = index * tile_tokens;
        tile->matrix = 0;
        const std::int64_t left = count - tile->first;
        tile->count = static_cast<int>(left < tile_tokens ? left : tile_tokens);
        return left > 0;
    }
    // Whether the tile has a row i: for loops that leave no register for tile.count.
    __device__ __forceinline__ bool has(const TokenTile& tile, int i) const { return tile.first + i < count; }
    __device__ __forceinline__ std::int64_t x_row(const TokenTile& tile, int i) const { return tile.first + i; }
};

struct GroupedTokens {
    static constexpr bool is_grouped = true;
    TokenGroups groups;
    // Cut for groups.tile_tokens, as tile() is.
    __device__ __forceinline__ std::int64_t tiles(int) const { return *groups.tile_count; }
    __device__ __forceinline__ bool tile(std::int64_t index, int tile_tokens, TokenTile* tile) const {
        if (index >= *groups.tile_count) return false;
        tile->matrix = groups.tiles[2 * index];
        tile->first = groups.tiles[2 * index + 1];
        const std::int64_t left = groups.offsets[tile->matrix + 1] - tile->first;
        tile->count = static_cast<int>(left < tile_tokens ? left : tile_tokens);
        return true;
    }
    __device__ __forceinline__ bool has(const TokenTile& tile, int i) const { return i < tile.count; }
    __device__ __forceinline__ std::int64_t x_row(const TokenTile& tile, int i) const {
        return groups.rows ? groups.rows[tile.first + i] : tile.first + i;
    }
};

}  // namespace
}  // namespace fastffn::cuda
