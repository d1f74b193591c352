// Routers: memory, threads and errors. What they choose is compared with the float64 oracle from Python.
#include <algorithm>
#include <limits>
#include <memory>

#include "check.hpp"
#include "guarded.hpp"
#include "support.hpp"

namespace {
using namespace support;
using namespace fastffn;

struct Case {
    const char* name;
    std::int64_t experts, k;
    RouterScore score;
    bool bias, correction, gamma, renormalize;
    std::int64_t groups, topk_groups;
    GroupScore group_score;
    double top_p;
};
const Case cases[] = {
    {"softmax", 64, 8, RouterScore::softmax, false, false, false, true, 1, 0, GroupScore::max, 1},
    {"one expert", 1, 1, RouterScore::softmax, true, true, false, false, 1, 0, GroupScore::max, 1},
    {"odd", 61, 61, RouterScore::softmax, true, false, false, false, 1, 0, GroupScore::max, 1},
    {"gpt-oss", 33, 4, RouterScore::topk_softmax, true, false, false, false, 1, 0, GroupScore::max, 1},
    {"deepseek-v3", 256, 8, RouterScore::sigmoid, false, true, false, true, 8, 4, GroupScore::top2, 1},
    {"deepseek-v2", 160, 6, RouterScore::softmax, false, false, false, false, 8, 3, GroupScore::max, 1},
    {"blockffn", 131, 131, RouterScore::relu, false, false, true, false, 1, 0, GroupScore::max, 1},
    {"top-p", 48, 20, RouterScore::softmax, false, false, false, true, 1, 0, GroupScore::max, 0.7},
};

// Tables of one case, in memory of the given kind.
template <class Memory>
struct Tables {
    Memory bias, correction, gamma;
    TensorView bias_view, correction_view, gamma_view;
    TopkOptions options;

    template <class Make>
    Tables(const Case& c, DType dtype, const Make& make)
        : bias(make(random_array(dtype, c.experts, 2, 0.3f))),
          correction(make(random_array(dtype, c.experts, 3, 0.3f))),
          gamma(make(random_array(dtype, c.experts, 4))),
          bias_view(bias.data(), dtype, {c.experts}),
          correction_view(correction.data(), dtype, {c.experts}),
          gamma_view(gamma.data(), dtype, {c.experts}) {
        options.k = c.k;
        options.score = c.score;
        options.renormalize = c.renormalize;
        options.bias = c.bias ? &bias_view : nullptr;
        options.correction_bias = c.correction ? &correction_view : nullptr;
        options.gamma = c.gamma ? &gamma_view : nullptr;
        options.groups = c.groups;
        options.topk_groups = c.topk_groups;
        options.group_score = c.group_score;
        options.top_p = c.top_p;
    }
};

struct Route {
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
};

Route run(const Case& c, DType dtype, const std::vector<std::byte>& logits, std::int64_t tokens, int threads) {
    const Tables<std::vector<std::byte>> tables(c, dtype, [](std::vector<std::byte> bytes) { return bytes; });
    Route route;
    route.ids.assign(static_cast<std::size_t>(tokens * c.k), 77);
    route.weights.assign(route.ids.size(), 77.0f);
    Context context(threads);
    route_topk(context, TensorView(logits.data(), dtype, {tokens, c.experts}), tables.options,
               TensorView(route.ids.data(), DType::i32, {tokens, c.k}),
               TensorView(route.weights.data(), DType::f32, {tokens, c.k}))
        .value();
    return route;
}

TEST(topk_against_guard_pages) {
    for (const Case& c : cases)
        for (DType dtype : float_dtypes)
            for (std::int64_t tokens : {1, 3, 40})
                for (Side side : {Side::end, Side::begin}) {
                    const auto plain = random_array(dtype, tokens * c.experts, 1);
                    const Route expected = run(c, dtype, plain, tokens, 1);
                    const Guarded logits(plain, side);
                    struct Holder {
                        std::shared_ptr<Guarded> memory;
                        const std::byte* data() const { return memory->data(); }
                    };
                    const Tables<Holder> tables(c, dtype, [&](const std::vector<std::byte>& bytes) {
                        return Holder{std::make_shared<Guarded>(bytes, side)};
                    });
                    const std::size_t slots = static_cast<std::size_t>(tokens * c.k);
                    const Guarded ids(4 * slots, side), weights(4 * slots, side);
                    Context context(1);
                    const Status status = route_topk(context, TensorView(logits.data(), dtype, {tokens, c.experts}),
                                                     tables.options, TensorView(ids.data(), DType::i32, {tokens, c.k}),
                                                     TensorView(weights.data(), DType::f32, {tokens, c.k}));
                    CHECK(status.ok()) << status.message();
                    CHECK(std::memcmp(ids.data(), expected.ids.data(), 4 * slots) == 0) << c.name;
                    CHECK(std::memcmp(weights.data(), expected.weights.data(), 4 * slots) == 0) << c.name;
                }
}

TEST(topk_has_the_same_bits_with_any_threads) {
    for (const Case& c : cases) {
        const std::int64_t tokens = 700;
        const auto logits = random_array(DType::bf16, tokens * c.experts, 5);
        const Route expected = run(c, DType::bf16, logits, tokens, 1);
        for (int threads : {2, 3, 8}) {
            const Route found = run(c, DType::bf16, logits, tokens, threads);
            CHECK(found.ids == expected.ids) << c.name << " threads " << threads;
            CHECK(std::memcmp(found.weights.data(), expected.weights.data(), 4 * found.weights.size()) == 0) << c.name;
        }
    }
}

// Whatever the logits' bits are, ids stay distinct and in range, and weights finite.
TEST(any_bits_give_a_valid_route) {
    std::mt19937 generator(6);
    for (const Case& c : cases)
        for (DType dtype : float_dtypes) {
            const std::int64_t tokens = 200;
            std::vector<std::byte> logits(static_cast<std::size_t>(tokens * c.experts * dtype_bytes(dtype)));
            for (std::byte& b : logits) b = static_cast<std::byte>(generator());
            const Route route = run(c, dtype, logits, tokens, 2);
            for (std::int64_t t = 0; t < tokens; ++t) {
                std::vector<std::int32_t> row(route.ids.begin() + t * c.k, route.ids.begin() + (t + 1) * c.k);
                bool fine = true;
                for (std::int64_t j = 0; j < c.k; ++j) {
                    fine =
                        fine && row[static_cast<std::size_t>(j)] >= -1 && row[static_cast<std::size_t>(j)] < c.experts;
                    fine = fine && std::isfinite(route.weights[static_cast<std::size_t>(t * c.k + j)]);
                }
                row.erase(std::remove(row.begin(), row.end(), -1), row.end());
                std::sort(row.begin(), row.end());
                fine = fine && std::adjacent_find(row.begin(), row.end()) == row.end();
                CHECK(fine) << c.name << " " << dtype_name(dtype) << " row " << t;
            }
        }
}

TEST(workspace_is_what_the_query_says) {
    for (const Case& c : cases)
        for (std::int64_t tokens : {0, 1, 300}) {
            const auto logits = random_array(DType::f32, tokens * c.experts, 7);
            const Tables<std::vector<std::byte>> tables(c, DType::f32,
                                                        [](std::vector<std::byte> bytes) { return bytes; });
            const TensorView view(logits.data(), DType::f32, {tokens, c.experts});
            std::int64_t bytes = -1;
            route_topk_workspace(view, tables.options, 3, &bytes).value();
            Context context(3);
            std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens * c.k) + 1);
            std::vector<float> weights(ids.size());
            route_topk(context, view, tables.options, TensorView(ids.data(), DType::i32, {tokens, c.k}),
                       TensorView(weights.data(), DType::f32, {tokens, c.k}))
                .value();
            CHECK(context.workspace_bytes() == (bytes + 63) / 64 * 64) << c.name << " tokens " << tokens;
        }
}

TEST(expert_choice_against_guard_pages_and_with_any_threads) {
    for (std::int64_t tokens : {1, 63, 130})
        for (std::int64_t experts : {1, 7, 20})
            for (Side side : {Side::end, Side::begin}) {
                const Guarded logits(random_array(DType::f16, tokens * experts, 8), side);
                ExpertChoiceOptions options;
                options.k = experts;
                options.capacity = 5;
                std::vector<std::byte> first;
                for (int threads : {1, 2, 5}) {
                    const std::size_t bytes = static_cast<std::size_t>(4 * tokens * experts);
                    const Guarded ids(bytes, side), weights(bytes, side);
                    Context context(threads);
                    const Status status =
                        route_expert_choice(context, TensorView(logits.data(), DType::f16, {tokens, experts}), options,
                                            TensorView(ids.data(), DType::i32, {tokens, experts}),
                                            TensorView(weights.data(), DType::f32, {tokens, experts}));
                    CHECK(status.ok()) << status.message();
                    std::vector<std::byte> both(ids.data(), ids.data() + bytes);
                    both.insert(both.end(), weights.data(), weights.data() + bytes);
                    if (first.empty()) first = both;
                    CHECK(both == first) << "threads " << threads;
                }
            }
}

void expect(const Status& status, const char* part) {
    CHECK(!status.ok() && status.message().find(part) != std::string::npos) << part << ": " << status.message();
}

TEST(errors) {
    float logits[12] = {};
    std::int32_t ids[8] = {};
    float weights[8] = {};
    Context context(1);
    auto call = [&](TopkOptions options) {
        options.k = options.k == 1 ? 2 : options.k;
        return route_topk(context, TensorView(logits, DType::f32, {3, 4}), options, TensorView(ids, DType::i32, {3, 2}),
                          TensorView(weights, DType::f32, {3, 2}));
    };
    TopkOptions options;
    options.score = static_cast<RouterScore>(9);
    expect(call(options), "score number 9");
    options = {};
    options.group_score = static_cast<GroupScore>(9);
    expect(call(options), "group_score number 9");
    options = {};
    options.k = 5;
    expect(call(options), "k is 5");
    options = {};
    options.norm_eps = std::numeric_limits<float>::quiet_NaN();
    expect(call(options), "norm_eps");
    options = {};
    TensorView null_bias(static_cast<const void*>(nullptr), DType::f32, {4});
    options.bias = &null_bias;
    expect(call(options), "bias has no data");
    std::byte odd[64] = {};
    expect(route_topk(context, TensorView(logits, DType::f32, {1, 4}), {}, TensorView(odd + 1, DType::i32, {1, 1}),
                      TensorView(weights, DType::f32, {1, 1})),
           "ids is not aligned");
    std::int64_t counts[3] = {};
    expect(expert_load(TensorView(ids, DType::i32, {8}), TensorView(counts, DType::i32, {3})), "counts has dtype i32");
    ids[5] = 3;
    expect(expert_load(TensorView(ids, DType::i32, {8}), TensorView(counts, DType::i64, {3})),
           "ids has 3 at position 5");
    expect(limit_capacity(context, TensorView(ids, DType::i32, {4, 2}), TensorView(weights, DType::f32, {4, 2}), 3, 1),
           "ids has 3 at position 5");
    expect(limit_capacity(context, TensorView(ids, DType::i32, {4, 2}), TensorView(weights, DType::f32, {4, 2}), 4, -1),
           "capacity is -1");
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
