// The k best experts of a token, by one warp: lane l has experts l, l + 32, …
//
//   scores   p of each expert before it is divided by the row's sum
//   keys     what picking compares: see picks.cuh
//   picked   the scores of the chosen
#pragma once

#include "abi/route.hpp"
#include "fastffn/router_score.hpp"
#include "kernels/elements.cuh"
#include "kernels/picks.cuh"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

// Numbers of 4 bytes that a warp needs.
__host__ __device__ constexpr std::int64_t route_scratch(std::int64_t experts, std::int64_t groups, std::int64_t k) {
    return 2 * experts + groups + k;
}

__device__ __forceinline__ float load_vector(const DeviceVector& v, std::int64_t i, float otherwise) {
    return v.data ? load_element(v.data, static_cast<DType>(v.dtype), i * v.stride) : otherwise;
}

struct RouteScratch {
    float* scores;
    int* keys;
    float* groups;
    float* picked;
};

// Logits with their bias into scores; false where one is NaN or +infinity.
__device__ __forceinline__ bool load_logits(const RouteCall& a, std::int64_t token, float* scores, float* largest) {
    float most = -route_infinity;
    bool valid = true;
    for (std::int64_t e = threadIdx.x % 32; e < a.logits.cols; e += 32) {
        // + 0 turns -0 into +0, whose keys differ.
        const float l = load_element(a.logits.data, static_cast<DType>(a.logits.dtype), token * a.logits.stride + e) +
                        0.0f + load_vector(a.bias, e, 0.0f);
        valid = valid && l < route_infinity;
        most = l > most ? l : most;
        scores[e] = l;
    }
    *largest = warp_largest(most);
    return __all_sync(0xffffffffu, valid) != 0;
}

// Scores of all experts, and what they are divided by. Rows without a route: false.
__device__ __forceinline__ bool compute_scores(const RouteCall& a, std::int64_t token, float* scores, float* sum) {
    const auto score = static_cast<RouterScore>(a.score);
    const std::int64_t first = threadIdx.x % 32, experts = a.logits.cols;
    float largest;
    *sum = 1;
    if (!load_logits(a, token, scores, &largest)) return false;
    if (score != RouterScore::relu && largest == -route_infinity) return false;
    float own = 0;
    if (score == RouterScore::softmax) {
        for (std::int64_t e = first; e < experts; e += 32) own += scores[e] = expf(scores[e] - largest);
        *sum = warp_sum(own);
    } else if (score == RouterScore::sigmoid) {
        for (std::int64_t e = first; e < experts; e += 32) scores[e] = 1.0f / (1.0f + expf(-scores[e]));
    } else if (score == RouterScore::relu) {
        // Squares of huge and tiny values leave the range of f32: scaled by a power of two first.
        const float scale = largest > 0x1p60f ? 0x1p-64f : largest > 0 && largest < 0x1p-40f ? 0x1p64f : 1.0f;
        for (std::int64_t e = first; e < experts; e += 32) {
            scores[e] = (scores[e] > 0 ? scores[e] : 0.0f) * scale;
            own = fmaf(scores[e], scores[e], own);
        }
        const double mean = static_cast<double>(warp_sum(own)) / static_cast<double>(experts);
        const double root = sqrt(mean + static_cast<double>(a.norm_eps) * scale * scale);
        const float inverse = root > 0 ? static_cast<float>(1 / root) : 0.0f;
        bool valid = true;
        for (std::int64_t e = first; e < experts; e += 32) {
            scores[e] = scores[e] * inverse * load_vector(a.gamma, e, 1.0f);
            valid = valid && fabsf(scores[e]) < route_infinity;
        }
        return __all_sync(0xffffffffu, valid) != 0;
    }
    return true;
}

// Keys by p plus the correction, or by logits, which are in the same order as p and finer.
__device__ __forceinline__ bool compute_keys(const RouteCall& a, bool by_score, std::int64_t token, float sum,
                                             const RouteScratch& s) {
    bool valid = true;
    for (std::int64_t e = threadIdx.x % 32; e < a.logits.cols; e += 32) {
        float choice;
        if (by_score) {
            choice = fabsf(s.scores[e]) / sum + load_vector(a.correction, e, 0.0f) + 0.0f;
        } else {
            choice = load_element(a.logits.data, static_cast<DType>(a.logits.dtype), token * a.logits.stride + e) +
                     0.0f + load_vector(a.bias, e, 0.0f);
        }
        valid = valid && choice < route_infinity;
        s.keys[e] = key_of(choice);
    }
    return __all_sync(0xffffffffu, valid) != 0;
}

// Keeps the best topk_groups groups; a lane has some groups, and the ranks are counted: there are few.
__device__ __forceinline__ void mask_groups(const RouteCall& a, const RouteScratch& s) {
    const std::int64_t first = threadIdx.x % 32, size = a.logits.cols / a.groups;
    const bool two = static_cast<GroupScore>(a.group_score) == GroupScore::top2 && size > 1;
    __syncwarp();  // keys of other lanes
    for (std::int64_t g = first; g < a.groups; g += 32) {
        int best = key_picked, second = key_picked;
        for (std::int64_t e = g * size; e < (g + 1) * size; e++) {
            const int key = s.keys[e];
            second = key > best ? best : key > second ? key : second;
            best = key > best ? key : best;
        }
        s.groups[g] = of_key(best) + (two ? of_key(second) : 0.0f);
    }
    __syncwarp();
    for (std::int64_t g = first; g < a.groups; g += 32) {
        std::int64_t better = 0;
        for (std::int64_t h = 0; h < a.groups; h++)
            better += s.groups[h] > s.groups[g] || (s.groups[h] == s.groups[g] && h < g);
        if (better < a.topk_groups) continue;
        for (std::int64_t e = g * size; e < (g + 1) * size; e++) s.keys[e] = key_masked;
    }
}

// Scores of the picked to weights; what is not kept is emptied.
__device__ __forceinline__ void finish_route(const RouteCall& a, float all, const RouteScratch& s, std::int32_t* ids,
                                             float* weights) {
    const auto score = static_cast<RouterScore>(a.score);
    const std::int64_t first = threadIdx.x % 32;
    if (score == RouterScore::topk_softmax) {
        const float most = s.picked[0];
        __syncwarp();
        float own = 0;
        for (std::int64_t j = first; j < a.k; j += 32)
            own += s.picked[j] = s.picked[j] == -route_infinity ? 0.0f : expf(s.picked[j] - most);
        all = warp_sum(own);
    }
    int kept = static_cast<int>(a.k);
    if (score == RouterScore::relu) {
        int own = 0;
        for (std::int64_t j = first; j < a.k; j += 32) own += s.picked[j] != 0;
        kept = __reduce_add_sync(0xffffffffu, own);  // the picks that are zero are the last
    } else if (a.top_p < 1) {
        const double mass = a.top_p * static_cast<double>(all);
        double sum = static_cast<double>(s.picked[0]);
        for (kept = 1; kept < a.k && sum < mass; kept++) sum += static_cast<double>(s.picked[kept]);
    }
    if (a.renormalize) {
        float own = 0;
        for (std::int64_t j = first; j < kept; j += 32) own += s.picked[j];
        all = warp_sum(own) + (score == RouterScore::sigmoid ? 1e-20f : 0.0f);  // DeepSeek-V3's guard
    }
    for (std::int64_t j = first; j < a.k; j += 32) {
        // Divided first: the sum may be so small that its inverse is infinity.
        weights[j] = j < kept && s.picked[j] != 0 ? s.picked[j] / all * a.scale : 0.0f;
        if (j >= kept) ids[j] = -1;
    }
}

// workspace == nullptr: scratch in dynamic shared memory, route_scratch() numbers a warp.
__global__ void __launch_bounds__(route_warps * 32, 4)
    route_topk_kernel(const __grid_constant__ RouteCall a, bool by_score, float* workspace) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const std::int64_t scratch = route_scratch(a.logits.cols, a.groups, a.k),
                       warps = static_cast<std::int64_t>(gridDim.x) * (blockDim.x / 32),
                       self = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
    RouteScratch s;
    s.scores =
        workspace ? workspace + self * scratch : reinterpret_cast<float*>(ptx::dynamic_shared()) + warp * scratch;
    s.keys = reinterpret_cast<int*>(s.scores + a.logits.cols);
    s.groups = s.scores + 2 * a.logits.cols;
    s.picked = s.groups + a.groups;
    const auto experts = static_cast<int>(a.logits.cols);
    const float none = static_cast<RouterScore>(a.score) == RouterScore::topk_softmax ? -route_infinity : 0.0f;
    for (std::int64_t token = self; token < a.logits.rows; token += warps) {
        std::int32_t* const ids = a.ids + token * a.k;
        float* const weights = a.weights + token * a.k;
        float sum;
        if (!compute_scores(a, token, s.scores, &sum) || !compute_keys(a, by_score, token, sum, s)) {
            for (std::int64_t j = lane; j < a.k; j += 32) {
                ids[j] = static_cast<std::int32_t>(j);
                weights[j] = 0;
            }
            continue;
        }
        if (a.topk_groups < a.groups) mask_groups(a, s);
        __syncwarp();
        for (std::int64_t j = 0; j < a.k; j++) {
            int key;
            const int e = pick(s.keys, experts, &key);
            if (lane == e % 32) {  // whose keys these are
                ids[j] = e;
                s.picked[j] = key == key_masked ? none : s.scores[e];
                s.keys[e] = key_picked;
            }
        }
        __syncwarp();
        finish_route(a, sum, s, ids, weights);
        __syncwarp();  // the next token's scores
    }
}

// ids = table[tokens]; tokens and entries that name nothing are empty slots.
__global__ void __launch_bounds__(256) route_hash_kernel(const __grid_constant__ RouteCall a) {
    const auto number = [](const DeviceVector& v, std::int64_t i) -> std::int64_t {
        return static_cast<DType>(v.dtype) == DType::i64 ? static_cast<const std::int64_t*>(v.data)[i]
                                                         : static_cast<const std::int32_t*>(v.data)[i];
    };
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x; i < a.logits.rows * a.k;
         i += static_cast<std::int64_t>(gridDim.x) * 256) {
        const std::int64_t token = number(a.tokens, i / a.k);
        const std::int64_t id = token >= 0 && token < a.vocabulary ? number(a.table, token * a.k + i % a.k) : -1;
        const bool exists = id >= 0 && id <= 0x7fffffff;
        a.ids[i] = exists ? static_cast<std::int32_t>(id) : -1;
        a.weights[i] = exists ? 1.0f : 0.0f;
    }
}

// Slots beyond their expert's capacity. places and offsets: of the slots in the order of (slot, token).
__global__ void __launch_bounds__(256) route_capacity_kernel(const __grid_constant__ RouteCall a,
                                                             const std::int32_t* places, const std::int32_t* offsets) {
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x; i < a.logits.rows * a.k;
         i += static_cast<std::int64_t>(gridDim.x) * 256) {
        const std::int64_t token = i % a.logits.rows, at = token * a.k + i / a.logits.rows;
        if (places[i] >= 0 && places[i] - offsets[a.ids[at]] < a.capacity) continue;
        a.ids[at] = -1;
        a.weights[at] = 0;
    }
}

__global__ void __launch_bounds__(256) route_zero_kernel(std::int64_t* counts, std::int64_t experts) {
    const std::int64_t e = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (e < experts) counts[e] = 0;
}

__global__ void __launch_bounds__(256) route_load_kernel(const __grid_constant__ RouteCall a) {
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x; i < a.logits.rows * a.k;
         i += static_cast<std::int64_t>(gridDim.x) * 256)
        if (a.ids[i] >= 0 && a.ids[i] < a.logits.cols)
            atomicAdd(reinterpret_cast<unsigned long long*>(a.counts) + a.ids[i], 1ull);
}

}  // namespace
}  // namespace fastffn::cuda
