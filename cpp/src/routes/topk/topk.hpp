// The inner loops of routers, per instruction set: rows of logits to ids and weights.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/kernel.hpp"

namespace fastffn {

enum class RouterScore : std::uint8_t;
enum class GroupScore : std::uint8_t;

constexpr std::int64_t route_block =
    128;  // keys whose maximum is kept: eight AVX-512 registers, one pick reads them once

// Rows of one call, all with the same options. Tables are padded with zeros to whole panels of 16.
struct TopkArgs {
    const std::byte* logits;
    DType dtype;
    std::int64_t stride;  // bytes from row to row
    std::int64_t rows, experts, k;
    RouterScore score;
    bool renormalize;
    bool choose_by_score;  // by p + correction instead of the logits, which are in the same order and finer
    float scale;
    const float* bias;        // or nullptr
    const float* correction;  // or nullptr
    std::int64_t groups, topk_groups;
    GroupScore group_score;
    double top_p;        // 1: off
    const float* gamma;  // or nullptr
    float norm_eps;
    std::int32_t* ids;   // [rows, k]
    float* weights;      // [rows, k]
    std::byte* scratch;  // topk_scratch_bytes(), 64-byte aligned
};

namespace {

constexpr float sigmoid_sum_guard = 1e-20f;  // DeepSeek-V3 divides by the sum plus this

// A row at work: scores, keys, the maximum key of each block, scores of groups, and what was picked.
struct TopkScratch {
    float* scores;         // [padded] p before it is divided by the row's sum
    std::int32_t* keys;    // [padded] what picking compares: integers in the order of floats
    std::int32_t* maxima;  // [blocks of keys]
    float* groups;         // [groups]
    float* picked;         // [k padded]
};

inline std::int64_t topk_scratch_bytes(std::int64_t experts, std::int64_t groups, std::int64_t k) {
    return 4 * (2 * round_up(experts, 16) + round_up(divide_up(experts, route_block), 16) + round_up(groups, 16) +
                round_up(k, 16));
}

inline TopkScratch topk_scratch(std::byte* memory, std::int64_t experts, std::int64_t groups) {
    TopkScratch s;
    const std::int64_t padded = round_up(experts, 16);
    s.scores = reinterpret_cast<float*>(memory);
    s.keys = reinterpret_cast<std::int32_t*>(s.scores + padded);
    s.maxima = s.keys + padded;
    s.groups = reinterpret_cast<float*>(s.maxima + round_up(divide_up(experts, route_block), 16));
    s.picked = s.groups + round_up(groups, 16);
    return s;
}

}  // namespace

struct TopkKernels {
    const char* name;
    void (*rows)(const TopkArgs& args) noexcept;
};

const TopkKernels& topk_kernels(Isa isa) noexcept;

namespace ref {
extern const TopkKernels topk;
}
namespace avx2 {
extern const TopkKernels topk;
}
namespace avx512 {
extern const TopkKernels topk;
}

}  // namespace fastffn
