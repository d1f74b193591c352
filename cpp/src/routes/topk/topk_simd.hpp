// Top-k routing of rows, written once; each instruction set's file includes it after its F32 and its I32.
//
// Picking compares integers: the bits of a float, with the low 31 flipped where it is negative, are in the order of floats.
// That order has room below -infinity, for what was picked already. A pick takes the block with the largest maximum, finds
// the key in it, and takes the block's maximum anew: 8 loads, compares and one reduction for up to 128 experts.
#pragma once

#include "core/activations.hpp"
#include "core/convert.hpp"
#include "fastffn/router_score.hpp"
#include "routes/topk/topk.hpp"

namespace fastffn {
namespace {

constexpr std::int32_t key_picked = INT32_MIN;                                             // below every float
constexpr std::int32_t key_masked = static_cast<std::int32_t>(0xff800000u ^ 0x7fffffffu);  // -infinity
constexpr float infinity = __builtin_inff();

// Scores of all experts, the maximum of the logits, and whether the row has only finite ones and -infinity.
struct RowScores {
    float max, sum;
    bool valid;
};

template <class V, class I>
RowScores load_logits(const TopkArgs& a, const std::byte* logits, const TopkScratch& s) {
    const std::int64_t element = element_bytes(a.dtype);
    V max(-infinity);
    bool valid = true;
    const std::int64_t padded = round_up(a.experts, 16);
    for (std::int64_t c = 0; c < padded; c += V::width) {
        const std::int64_t count = a.experts - c < V::width ? a.experts - c : V::width;
        // + 0 turns -0 into +0, whose keys differ.
        V l = count > 0 ? V::load_as(logits + c * element, a.dtype, count) + V(0.0f) : V(-infinity);
        if (a.bias && count > 0) l = l + V::load(a.bias + c);
        if (count > 0 && count < V::width) l = fill_after(l, count, -infinity);
        valid &= all_below_infinity(l);
        max = maximum(max, l);
        store(s.scores + c, l);
        if (!a.choose_by_score) store(s.keys + c, count > 0 ? I::key_of(l, count) : I(key_picked));
    }
    return {largest(max), 0, valid};
}

template <class V, class I>
RowScores compute_scores(const TopkArgs& a, const std::byte* logits, const TopkScratch& s) {
    RowScores row = load_logits<V, I>(a, logits, s);
    const std::int64_t padded = round_up(a.experts, 16);
    row.sum = 1;
    if (a.score == RouterScore::softmax) {
        row.valid &= row.max > -infinity;
        if (!row.valid) return row;
        V sum(0.0f);
        for (std::int64_t c = 0; c < padded; c += V::width) {
            const V e = exponential(V::load(s.scores + c) - V(row.max));
            sum = sum + e;
            store(s.scores + c, e);
        }
        row.sum = total(sum);
    } else if (a.score == RouterScore::sigmoid) {
        row.valid &= row.max > -infinity;
        for (std::int64_t c = 0; c < padded; c += V::width)
            store(s.scores + c, V(1.0f) / (V(1.0f) + exponential(V(0.0f) - V::load(s.scores + c))));
    } else if (a.score == RouterScore::topk_softmax) {
        row.valid &= row.max > -infinity;
    } else {
        // Squares of huge and tiny values leave the range of f32: scale them by a power of two first.
        const float scale = row.max > 0x1p60f ? 0x1p-64f : row.max > 0 && row.max < 0x1p-40f ? 0x1p64f : 1.0f;
        V sum(0.0f);
        for (std::int64_t c = 0; c < padded; c += V::width) {
            const V r = maximum(V(0.0f), V::load(s.scores + c)) * V(scale);
            sum = multiply_add(r, r, sum);
            store(s.scores + c, r);
        }
        const double mean = static_cast<double>(total(sum)) / static_cast<double>(a.experts);
        const double root = __builtin_sqrt(mean + static_cast<double>(a.norm_eps) * scale * scale);
        const V inverse(root > 0 ? static_cast<float>(1 / root) : 0.0f);
        for (std::int64_t c = 0; c < padded; c += V::width) {
            V r = V::load(s.scores + c) * inverse;
            if (a.gamma) r = r * V::load(a.gamma + c);
            row.valid &= all_below_infinity(absolute(r));
            store(s.scores + c, r);
        }
    }
    return row;
}

// Keys from p, for the routers that do not choose by logits.
template <class V, class I>
bool choose_by_scores(const TopkArgs& a, const RowScores& row, const TopkScratch& s) {
    bool valid = true;
    const V inverse(1.0f / row.sum);
    const std::int64_t padded = round_up(a.experts, 16);
    for (std::int64_t c = 0; c < padded; c += V::width) {
        const std::int64_t count = a.experts - c;
        if (count <= 0) {
            store(s.keys + c, I(key_picked));
            continue;
        }
        V p = V::load(s.scores + c);
        if (a.score == RouterScore::relu) p = absolute(p);
        if (a.score == RouterScore::softmax) p = p * inverse;
        if (a.correction) p = p + V::load(a.correction + c);
        if (count < V::width) p = fill_after(p, count, -infinity);
        valid &= all_below_infinity(p);
        store(s.keys + c, I::key_of(p + V(0.0f), count));
    }
    return valid;
}

inline float float_of_key(std::int32_t key) {
    const auto bits = static_cast<std::uint32_t>(key < 0 ? key ^ 0x7fffffff : key);
    return float_of(bits);
}

// Keeps the best topk_groups groups; the others' keys become those of -infinity.
inline void mask_groups(const TopkArgs& a, const TopkScratch& s) {
    const std::int64_t size = a.experts / a.groups;
    for (std::int64_t g = 0; g < a.groups; ++g) {
        std::int32_t first = key_picked, second = key_picked;
        for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
            const std::int32_t key = s.keys[e];
            second = key > first ? first : key > second ? key : second;
            first = key > first ? key : first;
        }
        s.groups[g] =
            float_of_key(first) + (a.group_score == GroupScore::top2 && size > 1 ? float_of_key(second) : 0.0f);
    }
    // Ranks by counting: there are few groups.
    for (std::int64_t g = 0; g < a.groups; ++g) {
        std::int64_t better = 0;
        for (std::int64_t h = 0; h < a.groups; ++h)
            better += s.groups[h] > s.groups[g] || (s.groups[h] == s.groups[g] && h < g);
        if (better < a.topk_groups) continue;
        for (std::int64_t e = g * size; e < (g + 1) * size; ++e) s.keys[e] = key_masked;
    }
}

template <class I>
std::int32_t block_maximum(const std::int32_t* keys, std::int64_t count) {
    I max = I::load(keys);
    for (std::int64_t c = I::width; c < count; c += I::width) max = maximum(max, I::load(keys + c));
    return largest(max);
}

// The expert with the largest key, the lowest id among equals; its key becomes key_picked.
template <class I>
std::int32_t pick(const TopkScratch& s, std::int64_t padded, std::int32_t* key) {
    const std::int64_t blocks = divide_up(padded, route_block);
    std::int64_t best = 0;
    for (std::int64_t b = 1; b < blocks; ++b)
        if (s.maxima[b] > s.maxima[best]) best = b;
    const std::int32_t value = s.maxima[best];
    std::int32_t* keys = s.keys + best * route_block;
    const std::int64_t count = padded - best * route_block < route_block ? padded - best * route_block : route_block;
    std::int64_t c = 0;
    unsigned lanes = 0;
    while (!(lanes = equal_lanes(I::load(keys + c), value))) c += I::width;
    const int lane = __builtin_ctz(lanes);
    store(keys + c, replace_lane(I::load(keys + c), lane, key_picked));
    s.maxima[best] = block_maximum<I>(keys, count);
    *key = value;
    return static_cast<std::int32_t>(best * route_block + c + lane);
}

inline void invalid_row(std::int64_t k, std::int32_t* ids, float* weights) {
    for (std::int64_t j = 0; j < k; ++j) {
        ids[j] = static_cast<std::int32_t>(j);
        weights[j] = 0;
    }
}

// Scores of the picked experts to weights: divided by the sum of all, or of those kept, and scaled.
template <class V>
void finish_row(const TopkArgs& a, const RowScores& row, const TopkScratch& s, std::int32_t* ids, float* weights) {
    float all = row.sum;
    std::int64_t kept = a.k;
    if (a.score == RouterScore::topk_softmax) {
        const float max = s.picked[0];
        for (std::int64_t j = a.k; j < round_up(a.k, 16); ++j) s.picked[j] = -infinity;
        V sum(0.0f);
        for (std::int64_t j = 0; j < a.k; j += V::width) {
            const V e = exponential(V::load(s.picked + j) - V(max));
            sum = sum + e;
            store(s.picked + j, e);
        }
        all = total(sum);
    }
    if (a.score == RouterScore::relu) {
        kept = 0;
        while (kept < a.k && s.picked[kept] != 0) ++kept;
    } else if (a.top_p < 1) {
        const double mass = a.top_p * all;
        double sum = s.picked[0];
        for (kept = 1; kept < a.k && sum < mass; ++kept) sum += s.picked[kept];
    }
    if (a.renormalize) {
        all = 0;
        for (std::int64_t j = 0; j < kept; ++j) all += s.picked[j];
    }
    if (a.renormalize && a.score == RouterScore::sigmoid) all += sigmoid_sum_guard;
    // Divided first: the sum may be so small that its inverse is infinity.
    for (std::int64_t j = 0; j < kept; ++j) weights[j] = s.picked[j] == 0 ? 0.0f : s.picked[j] / all * a.scale;
    for (std::int64_t j = kept; j < a.k; ++j) {
        ids[j] = -1;
        weights[j] = 0;
    }
}

template <class V, class I>
void route_row(const TopkArgs& a, const std::byte* logits, const TopkScratch& s, std::int32_t* ids, float* weights) {
    const RowScores row = compute_scores<V, I>(a, logits, s);
    if (!row.valid || (a.choose_by_score && !choose_by_scores<V, I>(a, row, s))) return invalid_row(a.k, ids, weights);
    if (a.topk_groups < a.groups) mask_groups(a, s);
    const std::int64_t padded = round_up(a.experts, 16);
    for (std::int64_t b = 0; b * route_block < padded; ++b) {
        const std::int64_t rest = padded - b * route_block;
        s.maxima[b] = block_maximum<I>(s.keys + b * route_block, rest < route_block ? rest : route_block);
    }
    for (std::int64_t j = 0; j < a.k; ++j) {
        std::int32_t key;
        ids[j] = pick<I>(s, padded, &key);
        const float none = a.score == RouterScore::topk_softmax ? -infinity : 0.0f;
        s.picked[j] = key == key_masked ? none : s.scores[ids[j]];
    }
    finish_row<V>(a, row, s, ids, weights);
}

template <class V, class I>
void route_rows(const TopkArgs& a) {
    const TopkScratch s = topk_scratch(a.scratch, a.experts, a.groups);
    for (std::int64_t r = 0; r < a.rows; ++r)
        route_row<V, I>(a, a.logits + r * a.stride, s, a.ids + r * a.k, a.weights + r * a.k);
}

}  // namespace
}  // namespace fastffn
