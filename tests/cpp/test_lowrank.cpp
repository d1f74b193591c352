// Low-rank layers: the exact workspace, that memory does not grow with tokens, that every hidden element is computed once, any
// number of threads, stacks in moe, and what is said of wrong arguments.
#include "check.hpp"
#include "layers/lowrank.hpp"
#include "moe_support.hpp"
#include "support.hpp"

namespace {
using namespace support;

fastffn::FfnWeights weights_of(const Problem& problem) {
    fastffn::FfnWeights weights;
    weights.w_up = view(problem.w_up);
    weights.w_down = view(problem.w_down);
    if (problem.gated) weights.w_gate = view(problem.w_gate);
    weights.activation = problem.gated ? fastffn::Activation::silu : fastffn::Activation::gelu;
    return weights;
}

TEST(query_is_what_a_call_takes) {
    for (Format factors : factor_formats)
        for (std::int64_t tokens : {0, 1, 6, 16, 40, 256, 257, 700})
            for (int threads : {1, 2, 5})
                for (bool gated : {false, true}) {
                    Problem problem(Format::f32, DType::bf16, tokens, 100, 300, gated);
                    problem.low_rank(factors, 20);
                    const TensorView x(problem.x.data(), DType::bf16, {tokens, 100});
                    std::int64_t bytes = -1;
                    fastffn::ffn_workspace(x, weights_of(problem), threads, &bytes).value();
                    fastffn::Context context(threads);
                    auto y = problem.output();
                    problem.run(context, y).value();
                    CHECK(context.workspace_bytes() == bytes) << "tokens " << tokens << " threads " << threads << ": "
                                                              << context.workspace_bytes() << ", not " << bytes;
                }
}

// A pair of ones, from sources with strides of 0.
std::vector<std::byte> pack_constant_pair(Format factors, std::int64_t out, std::int64_t in, std::int64_t rank) {
    const float value = 0.01f;
    TensorView u(&value, DType::f32, {rank, in}), v(&value, DType::f32, {out, rank});
    u.strides[0] = u.strides[1] = v.strides[0] = v.strides[1] = 0;
    std::int64_t bytes = 0;
    fastffn::packed_factors_bytes(u, v, factors, &bytes).value();
    std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
    fastffn::pack_factors(u, v, factors, packed.data(), bytes).value();
    return packed;
}

// 4 MB at 32768 tokens for any rank up to 384, of a layer whose hidden activations are 201 MB; and nothing more at 16 times
// as many tokens.
TEST(memory_does_not_grow_with_tokens) {
    std::byte none{};
    for (Format factors : factor_formats)
        for (std::int64_t rank : {1, 384}) {
            const auto w_up = pack_constant_pair(factors, 3072, 768, rank);
            const auto w_gate = pack_constant_pair(factors, 3072, 768, rank == 1 ? 2 : rank - 1);
            const auto w_down = pack_constant_pair(factors, 768, 3072, rank);
            for (bool gated : {false, true})
                for (int threads : {1, 2, 4}) {
                    fastffn::FfnWeights weights;
                    weights.w_up = view(w_up);
                    weights.w_down = view(w_down);
                    if (gated) weights.w_gate = view(w_gate);
                    std::int64_t bytes = 0, more = 0;
                    const auto query = [&](std::int64_t tokens, std::int64_t* found) {
                        const TensorView x(&none, DType::bf16, {tokens, 768});
                        fastffn::ffn_workspace(x, weights, threads, found).value();
                    };
                    query(32768, &bytes);
                    query(32768 * 16, &more);
                    CHECK(bytes <= 4'000'000) << fastffn::format_name(factors) << " rank " << rank << ", " << threads
                                              << " threads: " << bytes;
                    CHECK(more == bytes);
                }
        }
}

TEST(every_hidden_element_is_computed_once) {
    fastffn::count_hidden(true);
    for (Format factors : factor_formats)
        for (std::int64_t tokens : {1, 6, 33, 256, 300, 1100})
            for (std::int64_t rank : {5, 400})
                for (bool gated : {false, true}) {
                    Problem problem(Format::f32, DType::f32, tokens, 40, 531, gated);
                    problem.low_rank(factors, rank);
                    auto y = problem.output();
                    fastffn::Context context(3);
                    (void)fastffn::counted_hidden();
                    problem.run(context, y).value();
                    const std::int64_t found = fastffn::counted_hidden();
                    CHECK(found == tokens * 531) << "tokens " << tokens << " rank " << rank << ": " << found;
                }
    fastffn::count_hidden(false);
}

TEST(any_number_of_threads) {
    for (Format factors : factor_formats)
        for (std::int64_t tokens : {1, 5, 33, 300})
            for (bool gated : {false, true}) {
                Problem problem(Format::f32, DType::bf16, tokens, 257, 900, gated);
                problem.low_rank(factors, 96);
                auto expected = problem.output(), y = problem.output();
                fastffn::Context one(1);
                problem.run(one, expected).value();
                for (int threads = 2; threads <= 8; ++threads) {
                    fastffn::Context context(threads);
                    problem.run(context, y).value();
                    CHECK(y == expected) << "tokens " << tokens << " threads " << threads;
                }
            }
}

bool says(const Status& status, const char* text) {
    return !status.ok() && status.message().find(text) != std::string::npos;
}

TEST(wrong_factors) {
    const auto data = random_array(DType::f32, 1000, 1);
    std::vector<std::byte> out(100000);
    const auto pack = [&](const TensorView& u, const TensorView& v, Format factors) {
        std::int64_t bytes = 0;
        if (Status status = fastffn::packed_factors_bytes(u, v, factors, &bytes); !status.ok()) return status;
        return fastffn::pack_factors(u, v, factors, out.data(), bytes);
    };
    const TensorView u(data.data(), DType::f32, {4, 20}), v(data.data(), DType::f32, {10, 4});
    CHECK(pack(u, v, Format::bf16).ok());
    CHECK(says(pack(u, u, Format::bf16), "of one rank"));
    CHECK(says(pack(v, u, Format::bf16), "of one rank"));
    CHECK(says(pack(TensorView(data.data(), DType::f32, {80}), v, Format::bf16), "u has shape (80,)"));
    CHECK(says(pack(u, TensorView(data.data(), DType::i32, {10, 4}), Format::bf16), "v has dtype"));
    CHECK(says(pack(u, TensorView(data.data(), DType::f32, {2, 10, 4}), Format::bf16), "of one rank"));
    CHECK(says(pack(u, v, Format::lowrank), "factors is 'lowrank'"));
    CHECK(says(pack(TensorView(data.data(), DType::f32, {0, 20}), v, Format::bf16), "from 1 to"));
    std::int64_t bytes = 0;
    CHECK(says(fastffn::packed_bytes(u, Format::lowrank, &bytes), "pair of factors"));
    std::vector<float> bad(80, 1.0f);
    bad[33] = INFINITY;
    CHECK(says(pack(TensorView(bad.data(), DType::f32, {4, 20}), v, Format::int8), "pack, u: row 1"));
    CHECK(pack(TensorView(bad.data(), DType::f32, {4, 20}), v, Format::bf16).ok());
    fastffn::LowRankInfo info{};
    const auto pair = pack_random_pair(Format::int8, 30, 40, 5, 1);
    CHECK(fastffn::inspect_factors(view(pair), &info).ok() && info.rank == 5 && info.factors == Format::int8);
    CHECK(says(fastffn::inspect_factors(view(pack_random(Format::f32, 3, 4, 1)), &info), "expected lowrank"));
}

// A header that lies about its rank or its factors must be found out, whatever its checksum says. (tests/cpp/test_packed.cpp
// flips every other byte of headers; these are the two fields that only this format reads.)
TEST(damaged_pairs) {
    const auto pair = pack_random_pair(Format::bf16, 30, 40, 5, 1);
    fastffn::PackedInfo info;
    for (std::size_t byte = 0; byte < pair.size(); byte += byte < 64 ? 1 : 37) {
        auto damaged = pair;
        damaged[byte] ^= std::byte{4};
        CHECK(!fastffn::verify_packed(view(damaged)).ok()) << "byte " << byte;
        if (byte < 64) CHECK(!fastffn::inspect(view(damaged), &info).ok()) << "byte " << byte;
    }
}

// Low-rank experts: a stack of pairs against the layers one by one.
TEST(experts_of_pairs) {
    constexpr std::int64_t experts = 3, d_model = 40, d_ff = 300, rank = 9, tokens = 37;
    for (Format factors : factor_formats) {
        const auto stack = [&](std::int64_t out, std::int64_t in, unsigned seed) {
            const auto inner =
                random_array(DType::f32, experts * rank * in, seed, 1 / std::sqrt(static_cast<float>(in)));
            const auto outer = random_array(DType::f32, experts * out * rank, seed + 1, 1.0f / 3);
            const TensorView u(inner.data(), DType::f32, {experts, rank, in}),
                v(outer.data(), DType::f32, {experts, out, rank});
            std::vector<std::vector<std::byte>> packed(experts + 1);  // the whole stack last
            for (std::int64_t i = 0; i <= experts; ++i) {
                const TensorView one_u(inner.data() + i * rank * in * 4, DType::f32, {rank, in});
                const TensorView one_v(outer.data() + i * out * rank * 4, DType::f32, {out, rank});
                const TensorView &a = i < experts ? one_u : u, &b = i < experts ? one_v : v;
                std::int64_t bytes = 0;
                fastffn::packed_factors_bytes(a, b, factors, &bytes).value();
                packed[i].resize(bytes);
                fastffn::pack_factors(a, b, factors, packed[i].data(), bytes).value();
            }
            return packed;
        };
        const auto up = stack(d_ff, d_model, 1), down = stack(d_model, d_ff, 3);
        const auto x = random_array(DType::f32, tokens * d_model, 5);
        std::vector<std::int32_t> ids(tokens);
        for (std::int64_t t = 0; t < tokens; ++t) ids[t] = static_cast<std::int32_t>(t * 7 % experts);
        fastffn::MoeExperts all;
        all.w_up = view(up[experts]);
        all.w_down = view(down[experts]);
        fastffn::MoeWeights layer;
        layer.experts = &all;
        layer.stacks = 1;
        layer.activation = fastffn::Activation::gelu;
        std::vector<float> y(tokens * d_model), expected(d_model), first;
        const TensorView x_view(x.data(), DType::f32, {tokens, d_model}),
            y_view(y.data(), DType::f32, {tokens, d_model});
        for (int threads : {1, 3}) {
            fastffn::Context context(threads);
            const Status status =
                fastffn::moe(context, x_view, TensorView(ids.data(), DType::i32, {tokens, 1}), nullptr, layer, y_view);
            CHECK(status.ok()) << status.message();
            if (threads == 1) first = y;
            CHECK(y == first) << "threads";
        }
        double worst = 0;
        for (std::int64_t t = 0; t < tokens; ++t) {
            fastffn::FfnWeights one;
            one.w_up = view(up[ids[t]]);
            one.w_down = view(down[ids[t]]);
            one.activation = fastffn::Activation::gelu;
            fastffn::Context context(1);
            fastffn::ffn(context, TensorView(x.data() + t * d_model * 4, DType::f32, {1, d_model}), one,
                         TensorView(expected.data(), DType::f32, {1, d_model}))
                .value();
            double difference = 0, norm = 0;
            for (std::int64_t c = 0; c < d_model; ++c) {
                difference += std::pow(y[t * d_model + c] - expected[c], 2);
                norm += std::pow(expected[c], 2);
            }
            worst = std::max(worst, std::sqrt(difference / norm));
        }
        // Sums in another order; int8 and bf16 may then round a value to its neighbour.
        const double limit = factors == Format::int8 ? 0.02 : factors == Format::bf16 ? 0.01 : 3e-6;
        CHECK(worst < limit) << fastffn::format_name(factors) << ": " << worst;
    }
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
