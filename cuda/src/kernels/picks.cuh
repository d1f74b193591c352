// Picking the largest of a row's numbers, by one warp: lane l has numbers l, l + 32, …
//
// Keys are integers: the bits of a float, the low 31 flipped where it is negative, are in the order of floats, with room below
// -infinity for what was picked already. A pick is two reductions over the warp: the largest key, and the lowest number that has it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastffn::cuda {
namespace {

constexpr int route_warps = 4;
constexpr std::int64_t route_shared_limit = 48 * 1024;  // what a block has without asking
constexpr unsigned route_workspace_blocks = 264;        // where that is too small: two on each of 132 multiprocessors
constexpr int key_picked = static_cast<int>(0x80000000u), key_masked = static_cast<int>(0xff800000u ^ 0x7fffffffu);
constexpr float route_infinity = __builtin_inff();

__device__ __forceinline__ int key_of(float x) {
    const int bits = __float_as_int(x);
    return bits ^ static_cast<int>(static_cast<unsigned>(bits >> 31) >> 1);
}
__device__ __forceinline__ float of_key(int key) { return __int_as_float(key < 0 ? key ^ 0x7fffffff : key); }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}
__device__ __forceinline__ float warp_largest(float value) {
    return of_key(__reduce_max_sync(0xffffffffu, key_of(value)));
}

// The expert with the largest key, the lowest of equals; the key itself. All lanes get both.
__device__ __forceinline__ int pick(const int* keys, int experts, int* key) {
    int best = key_picked, of_best = 0x7fffffff;
    for (int e = static_cast<int>(threadIdx.x) % 32; e < experts; e += 32)
        if (keys[e] > best) {
            best = keys[e];
            of_best = e;
        }
    *key = __reduce_max_sync(0xffffffffu, best);
    return __reduce_min_sync(0xffffffffu, best == *key ? of_best : 0x7fffffff);
}

}  // namespace
}  // namespace fastffn::cuda
