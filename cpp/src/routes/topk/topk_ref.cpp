// Top-k routing as plain loops: the specification the vector versions are tested against.
#include <cmath>

#include "core/convert.hpp"
#include "fastffn/cpu.hpp"
#include "fastffn/route.hpp"
#include "routes/topk/topk.hpp"

namespace fastffn {

namespace ref {

namespace {

constexpr float infinity = __builtin_inff();

// Scores in scratch.scores, before they are divided by `sum`. False where a logit is NaN or +infinity, or none is finite.
bool compute_scores(const TopkArgs& a, const std::byte* logits, float* scores, float* sum) {
    float max = -infinity;
    for (std::int64_t e = 0; e < a.experts; ++e) {
        scores[e] = load_f32(logits + e * element_bytes(a.dtype), a.dtype) + (a.bias ? a.bias[e] : 0.0f);
        if (!(scores[e] < infinity)) return false;
        max = scores[e] > max ? scores[e] : max;
    }
    *sum = 1;
    if (a.score != RouterScore::relu && max == -infinity) return false;
    if (a.score == RouterScore::softmax) {
        *sum = 0;
        for (std::int64_t e = 0; e < a.experts; ++e) *sum += scores[e] = std::exp(scores[e] - max);
    } else if (a.score == RouterScore::sigmoid) {
        for (std::int64_t e = 0; e < a.experts; ++e) scores[e] = 1 / (1 + std::exp(-scores[e]));
    } else if (a.score == RouterScore::relu) {
        double squares = 0;
        for (std::int64_t e = 0; e < a.experts; ++e) {
            scores[e] = scores[e] > 0 ? scores[e] : 0.0f;
            squares += static_cast<double>(scores[e]) * scores[e];
        }
        const double root = std::sqrt(squares / static_cast<double>(a.experts) + a.norm_eps);
        for (std::int64_t e = 0; e < a.experts; ++e) {
            scores[e] = (root > 0 ? static_cast<float>(scores[e] / root) : 0.0f) * (a.gamma ? a.gamma[e] : 1.0f);
            if (!(std::fabs(scores[e]) < infinity)) return false;
        }
    }
    return true;
}

// What experts are chosen by.
bool compute_choice(const TopkArgs& a, const std::byte* logits, const float* scores, float sum, float* choice) {
    for (std::int64_t e = 0; e < a.experts; ++e) {
        if (a.choose_by_score) choice[e] = std::fabs(scores[e]) / sum + (a.correction ? a.correction[e] : 0.0f);
        else choice[e] = load_f32(logits + e * element_bytes(a.dtype), a.dtype) + (a.bias ? a.bias[e] : 0.0f);
        if (!(choice[e] < infinity)) return false;
    }
    return true;
}

void mask_groups(const TopkArgs& a, float* choice, float* groups) {
    const std::int64_t size = a.experts / a.groups;
    for (std::int64_t g = 0; g < a.groups; ++g) {
        float first = -infinity, second = -infinity;
        for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
            if (choice[e] > first) {
                second = first;
                first = choice[e];
            } else if (choice[e] > second) {
                second = choice[e];
            }
        }
        groups[g] = a.group_score == GroupScore::top2 && size > 1 ? first + second : first;
    }
    for (std::int64_t g = 0; g < a.groups; ++g) {
        std::int64_t better = 0;
        for (std::int64_t h = 0; h < a.groups; ++h)
            better += groups[h] > groups[g] || (groups[h] == groups[g] && h < g);
        if (better >= a.topk_groups)
            for (std::int64_t e = g * size; e < (g + 1) * size; ++e) choice[e] = -infinity;
    }
}

void route_row(const TopkArgs& a, const std::byte* logits, const TopkScratch& s, std::int32_t* ids, float* weights) {
    float sum = 1;
    float* choice = reinterpret_cast<float*>(s.keys);
    if (!compute_scores(a, logits, s.scores, &sum) || !compute_choice(a, logits, s.scores, sum, choice)) {
        for (std::int64_t j = 0; j < a.k; ++j) {
            ids[j] = static_cast<std::int32_t>(j);
            weights[j] = 0;
        }
        return;
    }
    if (a.topk_groups < a.groups) mask_groups(a, choice, s.groups);
    const float picked = __builtin_nanf("");
    for (std::int64_t j = 0; j < a.k; ++j) {
        std::int64_t best = -1;
        for (std::int64_t e = 0; e < a.experts; ++e)
            if (choice[e] == choice[e] && (best < 0 || choice[e] > choice[best])) best = e;
        ids[j] = static_cast<std::int32_t>(best);
        const float none = a.score == RouterScore::topk_softmax ? -infinity : 0.0f;
        s.picked[j] = choice[best] == -infinity ? none : s.scores[best];
        choice[best] = picked;
    }
    if (a.score == RouterScore::topk_softmax) {
        sum = 0;
        const float max = s.picked[0];
        for (std::int64_t j = 0; j < a.k; ++j) sum += s.picked[j] = std::exp(s.picked[j] - max);
    }
    std::int64_t kept = a.k;
    if (a.score == RouterScore::relu) {
        kept = 0;
        while (kept < a.k && s.picked[kept] != 0) ++kept;
    } else if (a.top_p < 1) {
        double mass = s.picked[0];
        for (kept = 1; kept < a.k && mass < a.top_p * sum; ++kept) mass += s.picked[kept];
    }
    if (a.renormalize) {
        sum = a.score == RouterScore::sigmoid ? sigmoid_sum_guard : 0.0f;
        for (std::int64_t j = 0; j < kept; ++j) sum += s.picked[j];
    }
    for (std::int64_t j = 0; j < kept; ++j) weights[j] = s.picked[j] == 0 ? 0.0f : s.picked[j] / sum * a.scale;
    for (std::int64_t j = kept; j < a.k; ++j) {
        ids[j] = -1;
        weights[j] = 0;
    }
}

void rows(const TopkArgs& a) noexcept {
    const TopkScratch s = topk_scratch(a.scratch, a.experts, a.groups);
    for (std::int64_t r = 0; r < a.rows; ++r)
        route_row(a, a.logits + r * a.stride, s, a.ids + r * a.k, a.weights + r * a.k);
}

}  // namespace

const TopkKernels topk = {"topk/ref", rows};

}  // namespace ref

const TopkKernels& topk_kernels(Isa isa) noexcept {
#if FASTFFN_X86
    if (isa >= Isa::avx512) return avx512::topk;
    if (isa >= Isa::avx2) return avx2::topk;
#endif
    (void)isa;
    return ref::topk;
}

}  // namespace fastffn
