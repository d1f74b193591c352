// Experts choose tokens: scores by expert, each expert's best ones, then each token's experts.
//
//   score     one warp per token → scores [experts, tokens], -infinity where nobody may take it
//   choose    one block per expert: the key of its last token by four counts of 8 bits each, ties in the order of tokens
//   collect   one warp per token: the experts that took it, from the best down
#pragma once

#include "abi/route.hpp"
#include "fastffn/router_score.hpp"
#include "kernels/elements.cuh"
#include "kernels/picks.cuh"
#include "kernels/scan.cuh"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

constexpr int choice_threads = 256;  // one for each value of 8 bits

__global__ void __launch_bounds__(256) choice_score_kernel(const __grid_constant__ RouteCall a, float* scores) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const auto dtype = static_cast<DType>(a.logits.dtype);
    for (std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * 8 + threadIdx.x / 32; token < a.logits.rows;
         token += static_cast<std::int64_t>(gridDim.x) * 8) {
        const std::int64_t row = token * a.logits.stride;
        float most = -route_infinity;
        bool valid = true;
        for (std::int64_t e = lane; e < a.logits.cols; e += 32) {
            const float l = load_element(a.logits.data, dtype, row + e);
            valid = valid && l < route_infinity;
            most = l > most ? l : most;
        }
        most = warp_largest(most);
        valid = __all_sync(0xffffffffu, valid) != 0 && most > -route_infinity;
        const bool is_softmax = static_cast<RouterScore>(a.score) == RouterScore::softmax;
        float sum = 0;
        if (valid && is_softmax) {
            for (std::int64_t e = lane; e < a.logits.cols; e += 32)
                sum += expf(load_element(a.logits.data, dtype, row + e) - most);
            sum = warp_sum(sum);
        }
        for (std::int64_t e = lane; e < a.logits.cols; e += 32) {
            const float l = load_element(a.logits.data, dtype, row + e);
            const float p = is_softmax ? expf(l - most) / sum : 1.0f / (1.0f + expf(-l));
            scores[e * a.logits.rows + token] = valid && l > -route_infinity ? p : -route_infinity;
        }
    }
}

// Scores above -infinity are 0 or more: their bits are in their order.
__device__ __forceinline__ bool is_open(float score) { return score > -route_infinity; }

__global__ void __launch_bounds__(choice_threads)
    choice_choose_kernel(float* scores, std::int64_t experts, std::int64_t tokens, std::int64_t capacity) {
    __shared__ int counts[256];
    __shared__ int chosen;
    const int thread = static_cast<int>(threadIdx.x);
    if (tokens <= capacity) return;  // all stay
    for (std::int64_t expert = blockIdx.x; expert < experts; expert += gridDim.x) {
        float* const own = scores + expert * tokens;
        unsigned prefix = 0;           // of the last key that is kept
        std::int64_t left = capacity;  // to keep among the keys that begin with it
        bool all = false;
        for (int shift = 24; shift >= 0; shift -= 8) {
            counts[thread] = 0;
            __syncthreads();
            for (std::int64_t t = thread; t < tokens; t += choice_threads) {
                const unsigned key = __float_as_uint(own[t]);
                if (is_open(own[t]) && (shift == 24 || key >> (shift + 8) == prefix >> (shift + 8)))
                    atomicAdd(counts + (key >> shift & 255), 1);
            }
            __syncthreads();
            if (thread == 0) {
                int digit = 255;
                std::int64_t above = 0;
                while (digit >= 0 && above + counts[digit] <= left) above += counts[digit--];
                counts[0] = static_cast<int>(left - above);
                chosen = digit;  // -1: no more than may stay
            }
            __syncthreads();
            all = chosen < 0;
            left = counts[0];
            if (!all) prefix |= static_cast<unsigned>(chosen) << shift;
            __syncthreads();
            if (all) break;
        }
        if (all) continue;
        // Keys above the prefix stay, and of its equals the first `left`.
        std::int64_t seen = 0;
        for (std::int64_t first = 0; first < tokens; first += choice_threads) {
            const std::int64_t t = first + thread;
            const float score = t < tokens ? own[t] : -route_infinity;
            const unsigned key = __float_as_uint(score);
            const bool is_tie = is_open(score) && key == prefix;
            int ties = 0;
            const int earlier = before<choice_threads>(is_tie, &ties);
            if (is_open(score) && (key < prefix || (is_tie && seen + earlier >= left))) own[t] = -route_infinity;
            seen += ties;
        }
        __syncthreads();
    }
}

// Scratch as of route_topk_kernel.
__global__ void __launch_bounds__(route_warps * 32)
    choice_collect_kernel(const __grid_constant__ RouteCall a, const float* scores, int* workspace) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32),
                       self = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
    int* const keys = workspace ? workspace + self * a.logits.cols
                                : reinterpret_cast<int*>(ptx::dynamic_shared()) + warp * a.logits.cols;
    for (std::int64_t token = self; token < a.logits.rows; token += warps) {
        for (std::int64_t e = lane; e < a.logits.cols; e += 32) {
            const float score = scores[e * a.logits.rows + token];
            keys[e] = is_open(score) ? key_of(score) : key_picked;
        }
        for (std::int64_t j = 0; j < a.k; j++) {
            int key;
            const int e = pick(keys, static_cast<int>(a.logits.cols), &key);
            const bool exists = key != key_picked;
            if (lane == (exists ? e % 32 : 0)) {
                a.ids[token * a.k + j] = exists ? e : -1;
                a.weights[token * a.k + j] = exists ? of_key(key) : 0.0f;
                if (exists) keys[e] = key_picked;
            }
        }
    }
}

}  // namespace
}  // namespace fastffn::cuda
