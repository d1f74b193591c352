// route_expert_choice: experts pick tokens. Plain loops: the selection reads tokens · experts scores once per expert.
#include <algorithm>
#include <cmath>

#include "core/convert.hpp"
#include "core/cpu.hpp"
#include "core/parallel.hpp"
#include "fastffn/cpu.hpp"
#include "routes/topk/checks.hpp"

namespace fastffn {

namespace {

constexpr const char* operation = "route_expert_choice";
constexpr float infinity = __builtin_inff();

Status fail(const std::string& text) { return {StatusCode::invalid_argument, std::string(operation) + ": " + text}; }

struct Plan {
    RowsView rows;
    std::int64_t scores_bytes = 0, orders_bytes = 0, workspace_bytes = 0;
    int threads = 1;
};

Status open(const TensorView& logits, const ExpertChoiceOptions& o, int threads, Plan* plan) {
    if (Status status = check_threading(); !status.ok()) return status;
    if (Status status = check_expert_choice(logits, o, &plan->rows); !status.ok()) return status;
    const std::int64_t experts = plan->rows.cols, tokens = plan->rows.rows;
    plan->threads = usable_threads(threads > 0 ? threads : default_threads());
    // [experts, tokens] scores, and a permutation of the tokens (or of the experts) per thread.
    plan->scores_bytes = round_up(4 * experts * tokens, 64);
    plan->orders_bytes = round_up(8 * (tokens > experts ? tokens : experts), 64);
    plan->workspace_bytes = plan->scores_bytes + plan->threads * plan->orders_bytes;
    return {};
}

// One token's scores to column `token`; -infinity where nobody may take it.
void score_token(const std::byte* logits, DType dtype, std::int64_t experts, RouterScore score, float* column,
                 std::int64_t tokens) {
    const std::int64_t element = element_bytes(dtype);
    float max = -infinity;
    bool valid = true;
    for (std::int64_t e = 0; e < experts; ++e) {
        const float l = load_f32(logits + e * element, dtype);
        valid &= l < infinity;
        max = l > max ? l : max;
    }
    if (!valid || max == -infinity) {
        for (std::int64_t e = 0; e < experts; ++e) column[e * tokens] = -infinity;
        return;
    }
    float sum = 0;
    for (std::int64_t e = 0; e < experts; ++e) {
        const float l = load_f32(logits + e * element, dtype);
        const float p = score == RouterScore::softmax ? std::exp(l - max) : 1 / (1 + std::exp(-l));
        sum += p;
        column[e * tokens] = l == -infinity ? -infinity : p;
    }
    if (score == RouterScore::softmax)
        for (std::int64_t e = 0; e < experts; ++e) column[e * tokens] /= sum;
}

// Marks all but the expert's best `capacity` tokens with -infinity.
void choose_tokens(float* scores, std::int64_t tokens, std::int64_t capacity, std::int64_t* order) {
    std::int64_t open = 0;
    for (std::int64_t t = 0; t < tokens; ++t)
        if (scores[t] > -infinity) order[open++] = t;
    if (open <= capacity) return;
    std::nth_element(order, order + capacity, order + open, [&](std::int64_t a, std::int64_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
    for (std::int64_t i = capacity; i < open; ++i) scores[order[i]] = -infinity;
}

// The experts that took a token, from the best weight down.
void collect(const float* column, std::int64_t tokens, std::int64_t experts, std::int64_t k, std::int64_t* order,
             std::int32_t* ids, float* weights) {
    std::int64_t count = 0;
    for (std::int64_t e = 0; e < experts; ++e)
        if (column[e * tokens] > -infinity) order[count++] = e;
    const std::int64_t kept = count < k ? count : k;
    std::partial_sort(order, order + kept, order + count, [&](std::int64_t a, std::int64_t b) {
        const float first = column[a * tokens], second = column[b * tokens];
        return first > second || (first == second && a < b);
    });
    for (std::int64_t j = 0; j < k; ++j) {
        ids[j] = j < kept ? static_cast<std::int32_t>(order[j]) : -1;
        weights[j] = j < kept ? column[order[j] * tokens] : 0.0f;
    }
}

}  // namespace

Status check_expert_choice(const TensorView& logits, const ExpertChoiceOptions& o, RowsView* rows) {
    if (Status status = view_rows(operation, "logits", logits, rows); !status.ok()) return status;
    const std::int64_t experts = rows->cols;
    if (Status status = check_experts(operation, experts); !status.ok()) return status;
    if (o.k < 1 || o.k > experts)
        return fail("k is " + std::to_string(o.k) + ", expected 1 to " + std::to_string(experts) +
                    " (the experts of logits)");
    if (o.capacity < 0) return fail("capacity is " + std::to_string(o.capacity) + ", expected 0 or more");
    if (o.score != RouterScore::softmax && o.score != RouterScore::sigmoid)
        return fail(std::string("score is '") + router_score_name(o.score) + "', expected 'softmax' or 'sigmoid'");
    return {};
}

Status check_expert_choice_results(const TensorView& logits, const ExpertChoiceOptions& options, const TensorView& ids,
                                   const TensorView& weights) {
    if (Status status = check_route(operation, logits, "logits", logits.ndim - 1, options.k, ids, weights);
        !status.ok())
        return status;
    return check_apart(operation, logits, "logits", ids, weights);
}

Status route_expert_choice_workspace(const TensorView& logits, const ExpertChoiceOptions& options, int threads,
                                     std::int64_t* bytes) {
    Plan plan;
    if (Status status = open(logits, options, threads, &plan); !status.ok()) return status;
    *bytes = plan.rows.rows ? plan.workspace_bytes : 0;
    return {};
}

Status route_expert_choice(Context& context, const TensorView& logits, const ExpertChoiceOptions& options,
                           const TensorView& ids, const TensorView& weights) {
    Plan plan;
    if (Status status = open(logits, options, context.threads(), &plan); !status.ok()) return status;
    if (Status status = check_expert_choice_results(logits, options, ids, weights); !status.ok()) return status;
    const std::int64_t tokens = plan.rows.rows, experts = plan.rows.cols;
    if (tokens == 0) return {};
    std::byte* workspace = context.workspace(plan.workspace_bytes);
    if (!workspace)
        return {StatusCode::out_of_memory, std::string(operation) + ": no memory for a workspace of " +
                                               std::to_string(plan.workspace_bytes) + " bytes"};
    auto* scores = reinterpret_cast<float*>(workspace);
    auto order_of = [&](int worker) {
        return reinterpret_cast<std::int64_t*>(workspace + plan.scores_bytes + worker * plan.orders_bytes);
    };
    constexpr std::int64_t block = 64;  // tokens per task
    auto* id_data = static_cast<std::int32_t*>(ids.data);
    auto* weight_data = static_cast<float*>(weights.data);
    parallel_phases(
        plan.threads, 3, [&](std::int64_t phase) { return phase == 1 ? experts : divide_up(tokens, block); },
        [&](std::int64_t phase, std::int64_t task, int worker) {
            if (phase == 1) return choose_tokens(scores + task * tokens, tokens, options.capacity, order_of(worker));
            const std::int64_t end = std::min((task + 1) * block, tokens);
            for (std::int64_t t = task * block; t < end; ++t) {
                std::int64_t run = 0;
                if (phase == 0)
                    score_token(plan.rows.row(t, 1, &run), plan.rows.dtype, experts, options.score, scores + t, tokens);
                else
                    collect(scores + t, tokens, experts, options.k, order_of(worker), id_data + t * options.k,
                            weight_data + t * options.k);
            }
        });
    return {};
}

}  // namespace fastffn
