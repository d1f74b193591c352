// Routers on the emulated device beside the CPU library: every score and option, ties, NaN, infinity, strides.
#include "fastffn/route.hpp"
#include "launch/route.hpp"
#include "weights.hpp"

using namespace fastffn;
using namespace fastffn::cuda;
using namespace support;

namespace {

struct Problem {
    std::int64_t tokens, experts;
    TopkOptions options;
    DType dtype = DType::f32;
    std::int64_t gap = 0;
    bool has_bias = false, has_correction = false, has_gamma = false;
    bool coarse = false;  // few different logits: ties
    float special = 0;    // in some rows
};

std::int32_t number(DType dtype) { return static_cast<std::int32_t>(dtype); }

// What differs, or nothing.
std::string wrong(const Problem& p, unsigned seed, std::vector<float>* weights_found = nullptr) {
    std::mt19937 generator(seed);
    const std::int64_t stride = p.experts + p.gap, k = p.options.k;
    auto values = random(p.tokens * stride, generator, 2);
    if (p.coarse)
        for (float& v : values) v = std::round(v);
    if (p.special != 0)
        for (std::int64_t t = 0; t < p.tokens; t += 2)
            for (std::int64_t e = t % 4; e < p.experts; e += t % 4 ? 3 : 1)
                values[static_cast<std::size_t>(t * stride + e)] = p.special;
    const auto logits = bytes_as(values, p.dtype);
    // Every second number of a longer array.
    const auto bias = bytes_as(random(2 * p.experts, generator), DType::bf16),
               correction = bytes_as(random(p.experts, generator), DType::f32),
               gamma = bytes_as(random(p.experts, generator), DType::f16);
    TensorView logits_view(logits.data(), p.dtype, {p.tokens, p.experts}),
        bias_view(bias.data(), DType::bf16, {p.experts}), correction_view(correction.data(), DType::f32, {p.experts}),
        gamma_view(gamma.data(), DType::f16, {p.experts});
    logits_view.strides[0] = stride;
    bias_view.strides[0] = 2;
    TopkOptions options = p.options;
    if (p.has_bias) options.bias = &bias_view;
    if (p.has_correction) options.correction_bias = &correction_view;
    if (p.has_gamma) options.gamma = &gamma_view;
    const auto slots = static_cast<std::size_t>(p.tokens * k);
    std::vector<std::int32_t> ids(slots, -9);
    std::vector<float> weights(slots, -9);
    Context context;
    route_topk(context, logits_view, options, TensorView(ids.data(), DType::i32, {p.tokens, k}),
               TensorView(weights.data(), DType::f32, {p.tokens, k}))
        .value();

    const Device<std::byte> device_logits(logits), device_bias(bias), device_correction(correction),
        device_gamma(gamma);
    Device<std::int32_t> device_ids(std::vector<std::int32_t>(slots, -9));
    Device<float> device_weights(std::vector<float>(slots, -9));
    RouteCall call = {};
    call.kind = RouteKind::topk;
    call.logits = {const_cast<std::byte*>(device_logits.data()), number(p.dtype), p.tokens, p.experts, stride};
    call.ids = device_ids.data();
    call.weights = device_weights.data();
    call.k = k;
    call.score = static_cast<std::int32_t>(options.score);
    call.renormalize = options.renormalize;
    call.scale = options.scale;
    if (p.has_bias) call.bias = {device_bias.data(), number(DType::bf16), 2};
    if (p.has_correction) call.correction = {device_correction.data(), number(DType::f32), 1};
    if (p.has_gamma) call.gamma = {device_gamma.data(), number(DType::f16), 1};
    call.groups = options.groups;
    call.topk_groups = options.topk_groups ? options.topk_groups : options.groups;
    call.group_score = static_cast<std::int32_t>(options.group_score);
    call.top_p = options.top_p;
    call.norm_eps = options.norm_eps;
    if (const char* reason = refusal(call)) return reason;
    Device<unsigned char> workspace(static_cast<std::size_t>(workspace_bytes(call)));
    if (run(call, workspace.data(), nullptr) != cudaSuccess) return emulator::last_failure();
    const auto found_ids = device_ids.host();
    const auto found = device_weights.host();
    if (weights_found) *weights_found = found;
    for (std::size_t i = 0; i < slots; i++) {
        const std::string where = "token " + std::to_string(i / static_cast<std::size_t>(k)) + ", slot " +
                                  std::to_string(i % static_cast<std::size_t>(k)) + ": ";
        if (found_ids[i] != ids[i])
            return where + "id " + std::to_string(found_ids[i]) + ", expected " + std::to_string(ids[i]);
        // Exponentials and sums of some hundred numbers, each within some units in the last place.
        if (!(std::fabs(found[i] - weights[i]) <= 4e-6f * std::fabs(weights[i])) && found[i] != weights[i])
            return where + "weight " + std::to_string(found[i]) + ", expected " + std::to_string(weights[i]);
    }
    return "";
}

TopkOptions with(std::int64_t k, RouterScore score) {
    TopkOptions options;
    options.k = k;
    options.score = score;
    return options;
}

constexpr RouterScore scores[] = {RouterScore::softmax, RouterScore::topk_softmax, RouterScore::sigmoid,
                                  RouterScore::relu};

}  // namespace

TEST(every_score_and_size) {
    unsigned seed = 0;
    for (RouterScore score : scores)
        for (auto [tokens, experts, k] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1},
                                          {5, 8, 2},
                                          {9, 60, 4},
                                          {3, 130, 130},
                                          {2, 256, 8}})
            for (DType dtype : {DType::f32, DType::bf16}) {
                Problem p = {tokens, experts, with(k, score), dtype, 3};
                p.has_bias = seed % 2;
                p.has_gamma = score == RouterScore::relu && seed % 3;
                const std::string text = wrong(p, ++seed);
                CHECK(text.empty()) << "score " << static_cast<int>(score) << ", " << experts << " experts: " << text;
            }
}

TEST(every_option) {
    for (RouterScore score : scores)
        for (bool renormalize : {false, true}) {
            if (renormalize && score == RouterScore::relu) continue;
            Problem p = {6, 64, with(6, score)};
            p.options.renormalize = renormalize;
            p.options.scale = 2.5f;
            CHECK(wrong(p, 1).empty()) << static_cast<int>(score) << wrong(p, 1);
            for (GroupScore group_score : {GroupScore::max, GroupScore::top2}) {
                p.options.groups = 8;
                p.options.topk_groups = 3;
                p.options.group_score = group_score;
                CHECK(wrong(p, 2).empty()) << static_cast<int>(score) << " groups " << wrong(p, 2);
                if (score == RouterScore::softmax || score == RouterScore::sigmoid) {
                    p.has_correction = true;
                    CHECK(wrong(p, 3).empty()) << static_cast<int>(score) << " correction " << wrong(p, 3);
                    p.has_correction = false;
                }
            }
        }
    for (double top_p : {0.01, 0.5, 0.9}) {
        Problem p = {12, 40, with(10, RouterScore::softmax)};
        p.options.top_p = top_p;
        p.options.renormalize = top_p > 0.4;
        CHECK(wrong(p, 4).empty()) << top_p << wrong(p, 4);
    }
}

TEST(ties_go_to_the_lowest_expert) {
    for (RouterScore score : scores) {
        Problem p = {20, 70, with(12, score)};
        p.coarse = true;
        CHECK(wrong(p, 5).empty()) << static_cast<int>(score) << wrong(p, 5);
        p.options.groups = 7;
        p.options.topk_groups = 2;
        CHECK(wrong(p, 6).empty()) << static_cast<int>(score) << " groups " << wrong(p, 6);
    }
}

TEST(nan_and_infinity) {
    for (RouterScore score : scores)
        for (float special : {NAN, INFINITY, -INFINITY, -0.0f, 1e38f, -1e38f, 1e-30f}) {
            const Problem p = {8, 33, with(5, score), DType::f32, 0, false, false, false, false, special};
            CHECK(wrong(p, 7).empty()) << static_cast<int>(score) << ", " << special << ": " << wrong(p, 7);
        }
}

TEST(more_experts_than_shared_memory_holds) {
    Problem p = {3, 7000, with(3, RouterScore::sigmoid)};
    p.has_correction = true;
    CHECK(wrong(p, 8).empty()) << wrong(p, 8);
}

TEST(same_bits_under_every_schedule_and_beside_other_tokens) {
    const Problem many = {11, 50, with(4, RouterScore::softmax)}, one = {1, 50, with(4, RouterScore::softmax)};
    std::vector<float> first, alone;
    for (unsigned seed = 0; seed < 6; seed++) {
        emulator::set_seed(seed);
        std::vector<float> weights;
        CHECK(wrong(many, 9, &weights).empty());
        if (seed == 0) first = weights;
        CHECK(weights == first) << seed;
    }
    emulator::set_seed(1);
    CHECK(wrong(one, 9, &alone).empty());
    CHECK(std::equal(alone.begin(), alone.end(), first.begin()));
}

TEST(experts_choose_tokens) {
    for (RouterScore score : {RouterScore::softmax, RouterScore::sigmoid})
        for (auto [tokens, experts] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {40, 7}, {300, 3}, {2, 13000}})
            for (std::int64_t capacity : {0, 1, 13, 39, 700})
                for (bool coarse : {false, true}) {
                    if (experts > 1000 && (capacity != 700 || coarse)) continue;  // keys in the workspace
                    std::mt19937 generator(static_cast<unsigned>(tokens + capacity));
                    auto logits = random(tokens * experts, generator, 2);
                    if (coarse)  // ties, and experts that a token masks
                        for (float& l : logits) l = l > 3 ? -INFINITY : std::round(l);
                    if (tokens > 20) logits[static_cast<std::size_t>(11 * experts)] = NAN;
                    const std::int64_t k = experts < 4 ? experts : 4;
                    const auto slots = static_cast<std::size_t>(tokens * k);
                    std::vector<std::int32_t> ids(slots);
                    std::vector<float> weights(slots);
                    ExpertChoiceOptions options;
                    options.k = k;
                    options.capacity = capacity;
                    options.score = score;
                    Context context;
                    route_expert_choice(context, TensorView(logits.data(), DType::f32, {tokens, experts}), options,
                                        TensorView(ids.data(), DType::i32, {tokens, k}),
                                        TensorView(weights.data(), DType::f32, {tokens, k}))
                        .value();
                    Device<float> device_logits(logits), device_weights(slots);
                    Device<std::int32_t> device_ids(slots);
                    RouteCall call = {};
                    call.kind = RouteKind::expert_choice;
                    call.logits = {device_logits.data(), number(DType::f32), tokens, experts, experts};
                    call.ids = device_ids.data();
                    call.weights = device_weights.data();
                    call.k = k;
                    call.score = static_cast<std::int32_t>(score);
                    call.capacity = capacity;
                    Device<unsigned char> workspace(static_cast<std::size_t>(workspace_bytes(call)));
                    CHECK(run(call, workspace.data(), nullptr) == cudaSuccess) << emulator::last_failure();
                    // Softmax of the two may round apart, and so choose apart, where coarse logits tie in other rows.
                    const auto found = device_weights.host();
                    const bool is_exact = score == RouterScore::sigmoid || !coarse;
                    CHECK(!is_exact || device_ids.host() == ids) << tokens << " x " << experts << ", " << capacity;
                    for (std::size_t i = 0; i < slots && is_exact; i++)
                        CHECK(std::fabs(found[i] - weights[i]) <= 4e-6f * weights[i]) << i;
                }
}

TEST(hash_capacity_and_load) {
    std::mt19937 generator(10);
    const std::int64_t rows = 300, k = 3, experts = 7, vocabulary = 40;
    std::vector<std::int64_t> tokens;
    std::vector<std::int32_t> table;
    for (std::int64_t i = 0; i < rows; i++) tokens.push_back(static_cast<std::int64_t>(generator() % vocabulary));
    for (std::int64_t i = 0; i < vocabulary * k; i++) table.push_back(static_cast<std::int32_t>(generator() % 8) - 1);
    const std::size_t slots = static_cast<std::size_t>(rows * k);
    std::vector<std::int32_t> ids(slots);
    std::vector<float> weights(slots);
    const TensorView id_view(ids.data(), DType::i32, {rows, k}), weight_view(weights.data(), DType::f32, {rows, k});
    Context context;
    route_hash(TensorView(tokens.data(), DType::i64, {rows}), TensorView(table.data(), DType::i32, {vocabulary, k}),
               id_view, weight_view)
        .value();
    const Device<std::int64_t> device_tokens(tokens);
    const Device<std::int32_t> device_table(table);
    Device<std::int32_t> device_ids(slots);
    Device<float> device_weights(slots);
    Device<std::int64_t> device_counts(static_cast<std::size_t>(experts));
    RouteCall call = {};
    call.logits.rows = rows;
    call.logits.cols = experts;
    call.ids = device_ids.data();
    call.weights = device_weights.data();
    call.k = k;
    call.tokens = {device_tokens.data(), number(DType::i64), 1};
    call.table = {device_table.data(), number(DType::i32), 1};
    call.vocabulary = vocabulary;
    call.counts = device_counts.data();
    const auto runs = [&](RouteKind kind) {
        call.kind = kind;
        Device<unsigned char> workspace(static_cast<std::size_t>(workspace_bytes(call)));
        return refusal(call) == nullptr && run(call, workspace.data(), nullptr) == cudaSuccess;
    };
    CHECK(runs(RouteKind::hash)) << emulator::last_failure();
    CHECK(device_ids.host() == ids && device_weights.host() == weights);
    for (std::int64_t capacity : {90, 50, 0}) {
        limit_capacity(context, id_view, weight_view, experts, capacity).value();
        call.capacity = capacity;
        CHECK(runs(RouteKind::capacity)) << emulator::last_failure();
        CHECK(device_ids.host() == ids && device_weights.host() == weights) << capacity;
        std::vector<std::int64_t> counts(static_cast<std::size_t>(experts));
        expert_load(id_view, TensorView(counts.data(), DType::i64, {experts})).value();
        CHECK(runs(RouteKind::load)) << emulator::last_failure();
        CHECK(device_counts.host() == counts) << capacity;
    }
    call.vocabulary = 5;  // tokens beyond it have no experts
    CHECK(runs(RouteKind::hash)) << emulator::last_failure();
    const auto found = device_ids.host();
    for (std::size_t i = 0; i < slots; i++)
        if (tokens[i / 3] >= 5) CHECK(found[i] == -1) << i;
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
