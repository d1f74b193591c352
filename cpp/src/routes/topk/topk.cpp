// route_topk: every check, then rows in parallel.
#include <cmath>
#include <cstring>

#include "core/convert.hpp"
#include "core/cpu.hpp"
#include "core/names.hpp"
#include "core/overlap.hpp"
#include "core/parallel.hpp"
#include "fastffn/route.hpp"
#include "routes/topk/checks.hpp"
#include "routes/topk/topk.hpp"

namespace fastffn {

namespace {

constexpr const char* score_names[router_score_count] = {"softmax", "topk_softmax", "sigmoid", "relu"};
constexpr const char* group_names[group_score_count] = {"max", "top2"};

// A row of 128 logits takes about 0.25 µs (Zen 4); tasks must outlast the waking of the team, 1.4 µs.
constexpr std::int64_t task_elements = 8192;

constexpr const char* operation = "route_topk";

Status fail(const std::string& text) { return {StatusCode::invalid_argument, std::string(operation) + ": " + text}; }

struct Plan {
    RowsView rows;
    TopkArgs args{};
    int threads = 1;
    std::int64_t tasks = 0, task_rows = 0, scratch_bytes = 0, table_bytes = 0, workspace_bytes = 0;
};

Status check_options(const TopkOptions& o, std::int64_t experts) {
    if (static_cast<int>(o.score) >= router_score_count)
        return fail("score number " + std::to_string(static_cast<int>(o.score)) + " is not known");
    if (static_cast<int>(o.group_score) >= group_score_count)
        return fail("group_score number " + std::to_string(static_cast<int>(o.group_score)) + " is not known");
    if (o.k < 1 || o.k > experts)
        return fail("k is " + std::to_string(o.k) + ", expected 1 to " + std::to_string(experts) +
                    " (the experts of logits)");
    if (o.groups < 1 || experts % o.groups != 0)
        return fail("groups is " + std::to_string(o.groups) + ", expected a divisor of " + std::to_string(experts) +
                    " experts");
    if (o.topk_groups < 0 || o.topk_groups > o.groups)
        return fail("topk_groups is " + std::to_string(o.topk_groups) + ", expected 0 (all) to " +
                    std::to_string(o.groups) + " (groups)");
    const std::int64_t open = (o.topk_groups ? o.topk_groups : o.groups) * (experts / o.groups);
    if (o.k > open)
        return fail("k is " + std::to_string(o.k) + ", more than the " + std::to_string(open) + " experts of " +
                    std::to_string(o.topk_groups) + " groups");
    if (!std::isfinite(o.scale)) return fail("scale is " + std::to_string(o.scale) + ", expected a finite number");
    if (!(o.top_p > 0) || o.top_p > 1)
        return fail("top_p is " + std::to_string(o.top_p) + ", expected more than 0 and at most 1");
    if (o.top_p < 1 && o.score != RouterScore::softmax)
        return fail(std::string("top_p needs score 'softmax', got '") + router_score_name(o.score) + "'");
    const bool relu = o.score == RouterScore::relu;
    if (o.gamma && !relu)
        return fail(std::string("gamma needs score 'relu', got '") + router_score_name(o.score) + "'");
    if (relu && o.renormalize) return fail("renormalize does not go with score 'relu', which normalises itself");
    // Both compare something else than a score of all experts: an unbounded logit, or |p| of survivors.
    if (o.correction_bias && (relu || o.score == RouterScore::topk_softmax))
        return fail(std::string("correction_bias needs score 'softmax' or 'sigmoid', got '") +
                    router_score_name(o.score) + "'");
    if (!(o.norm_eps >= 0) || !std::isfinite(o.norm_eps))
        return fail("norm_eps is " + std::to_string(o.norm_eps) + ", expected 0 or more");
    const TensorView* tables[] = {o.bias, o.correction_bias, o.gamma};
    const char* names[] = {"bias", "correction_bias", "gamma"};
    for (int i = 0; i < 3; ++i)
        if (tables[i])
            if (Status status = check_table(operation, names[i], *tables[i], experts); !status.ok()) return status;
    return {};
}

Status open(const TensorView& logits, const TopkOptions& o, int threads, Plan* plan) {
    if (Status status = check_isa(); !status.ok()) return status;
    if (Status status = check_threading(); !status.ok()) return status;
    if (Status status = check_topk(logits, o, &plan->rows); !status.ok()) return status;
    const std::int64_t experts = plan->rows.cols;
    TopkArgs& a = plan->args;
    a.dtype = plan->rows.dtype;
    a.experts = experts;
    a.k = o.k;
    a.score = o.score;
    a.renormalize = o.renormalize;
    a.scale = o.scale;
    a.groups = o.groups;
    a.topk_groups = o.topk_groups ? o.topk_groups : o.groups;
    a.group_score = o.group_score;
    const bool sums_groups = a.topk_groups < a.groups && o.group_score == GroupScore::top2;
    a.choose_by_score =
        o.correction_bias || o.score == RouterScore::relu || (sums_groups && o.score != RouterScore::topk_softmax);
    a.top_p = o.top_p;
    a.norm_eps = o.norm_eps;

    const std::int64_t rows = plan->rows.rows;
    plan->task_rows = divide_up(task_elements, round_up(experts, 16));
    plan->tasks = divide_up(rows, plan->task_rows);
    const int wanted = usable_threads(threads > 0 ? threads : default_threads());
    plan->threads = plan->tasks < wanted ? (plan->tasks > 1 ? static_cast<int>(plan->tasks) : 1) : wanted;
    plan->scratch_bytes = round_up(topk_scratch_bytes(experts, o.groups, o.k), 64);
    plan->table_bytes = 4 * round_up(experts, 16);
    plan->workspace_bytes = plan->threads * plan->scratch_bytes + 3 * plan->table_bytes;
    return {};
}

const float* fill_table(const TensorView* table, float* dst, std::int64_t padded) {
    if (!table) return nullptr;
    const std::int64_t element = element_bytes(table->dtype), count = table->shape[0];
    const auto* src = static_cast<const std::byte*>(table->data);
    if (table->dtype == DType::f32 && (count == 1 || table->strides[0] == 1)) {
        std::memcpy(dst, src, static_cast<std::size_t>(4 * count));
        std::memset(dst + count, 0, static_cast<std::size_t>(4 * (padded - count)));
        return dst;
    }
    for (std::int64_t i = 0; i < padded; ++i)
        dst[i] = i < count ? load_f32(src + i * table->strides[0] * element, table->dtype) : 0.0f;
    return dst;
}

}  // namespace

Status check_topk(const TensorView& logits, const TopkOptions& options, RowsView* rows) {
    if (Status status = view_rows(operation, "logits", logits, rows); !status.ok()) return status;
    if (Status status = check_experts(operation, rows->cols); !status.ok()) return status;
    return check_options(options, rows->cols);
}

Status check_topk_results(const TensorView& logits, const TopkOptions& options, const TensorView& ids,
                          const TensorView& weights) {
    if (Status status = check_route(operation, logits, "logits", logits.ndim - 1, options.k, ids, weights);
        !status.ok())
        return status;
    const TensorView* inputs[] = {&logits, options.bias, options.correction_bias, options.gamma};
    const char* names[] = {"logits", "bias", "correction_bias", "gamma"};
    for (int i = 0; i < 4; ++i)
        if (inputs[i])
            if (Status status = check_apart(operation, *inputs[i], names[i], ids, weights); !status.ok()) return status;
    return {};
}

const char* router_score_name(RouterScore score) noexcept {
    const int index = static_cast<int>(score);
    return index < router_score_count ? score_names[index] : "unknown";
}

Status parse_router_score(const char* name, RouterScore* score) {
    for (int i = 0; i < router_score_count; ++i)
        if (std::strcmp(name, score_names[i]) == 0) {
            *score = static_cast<RouterScore>(i);
            return {};
        }
    return {StatusCode::invalid_argument, "score '" + std::string(name) + "' is not known; expected " +
                                              quoted_list({score_names, score_names + router_score_count})};
}

const char* group_score_name(GroupScore score) noexcept {
    const int index = static_cast<int>(score);
    return index < group_score_count ? group_names[index] : "unknown";
}

Status parse_group_score(const char* name, GroupScore* score) {
    for (int i = 0; i < group_score_count; ++i)
        if (std::strcmp(name, group_names[i]) == 0) {
            *score = static_cast<GroupScore>(i);
            return {};
        }
    return {StatusCode::invalid_argument, "group_score '" + std::string(name) + "' is not known; expected " +
                                              quoted_list({group_names, group_names + group_score_count})};
}

Status route_topk_workspace(const TensorView& logits, const TopkOptions& options, int threads, std::int64_t* bytes) {
    Plan plan;
    if (Status status = open(logits, options, threads, &plan); !status.ok()) return status;
    *bytes = plan.rows.rows ? plan.workspace_bytes : 0;
    return {};
}

Status route_topk(Context& context, const TensorView& logits, const TopkOptions& options, const TensorView& ids,
                  const TensorView& weights) {
    Plan plan;
    if (Status status = open(logits, options, context.threads(), &plan); !status.ok()) return status;
    if (Status status = check_topk_results(logits, options, ids, weights); !status.ok()) return status;
    if (plan.rows.rows == 0) return {};

    std::byte* workspace = context.workspace(plan.workspace_bytes);
    if (!workspace)
        return {StatusCode::out_of_memory, std::string(operation) + ": no memory for a workspace of " +
                                               std::to_string(plan.workspace_bytes) + " bytes"};
    const std::int64_t padded = round_up(plan.args.experts, 16);
    auto* tables = reinterpret_cast<float*>(workspace + plan.threads * plan.scratch_bytes);
    plan.args.bias = fill_table(options.bias, tables, padded);
    plan.args.correction = fill_table(options.correction_bias, tables + padded, padded);
    plan.args.gamma = fill_table(options.gamma, tables + 2 * padded, padded);

    const TopkKernels& kernels = topk_kernels(chosen_isa());
    context.set_last_kernel(kernels.name);
    auto* id_data = static_cast<std::int32_t*>(ids.data);
    auto* weight_data = static_cast<float*>(weights.data);
    parallel_for(plan.threads, plan.tasks, [&](std::int64_t task, int worker) {
        const std::int64_t first = task * plan.task_rows;
        const std::int64_t rest = plan.rows.rows - first, count = rest < plan.task_rows ? rest : plan.task_rows;
        TopkArgs args = plan.args;
        args.scratch = workspace + worker * plan.scratch_bytes;
        args.stride = plan.rows.row_stride();
        for (std::int64_t done = 0; done < count; done += args.rows) {
            args.logits = plan.rows.row(first + done, count - done, &args.rows);
            args.ids = id_data + (first + done) * args.k;
            args.weights = weight_data + (first + done) * args.k;
            kernels.rows(args);
        }
    });
    return {};
}

}  // namespace fastffn
