// moe against the sum of dense layers, for any number of threads, and what it says of wrong arguments.
//
// The dense layers run the same kernels, so what is left are sums in another order: where the hidden values are rounded
// (bf16) or quantised (int8) again, one of them may now and then land on the neighbouring value.
#include "check.hpp"
#include "moe_support.hpp"

using namespace support;

namespace {

double tolerance(const Kind& kind) {
    const std::string name = kind.name();
    const bool exact =
        name.find("f32") != std::string::npos || name == "f16" || name.find("'f16'") != std::string::npos;
    return exact ? 2e-6 : 2e-3;
}

void compare(const MoeProblem& problem, double limit, const std::string& what,
             const std::vector<int>& thread_counts = {1, 2, 3, 8}) {
    const std::vector<double> expected = problem.expected();
    std::vector<float> first, y;
    for (int threads : thread_counts) {
        fastffn::Context context(threads);
        const Status status = problem.run(context, &y);
        CHECK(status.ok()) << what << ": " << status.message();
        if (threads == 1) {
            first = y;
            const double error = relative_error(y, expected);
            CHECK(error <= limit) << what << ": error " << error;
        }
        CHECK(std::memcmp(y.data(), first.data(), y.size() * 4) == 0)
            << what << ": bits with " << threads << " threads";
    }
}

std::string describe(const Kind& format, const MoeShape& s) {
    std::ostringstream out;
    out << format.name() << " tokens " << s.tokens << " picks " << s.picks << " experts " << s.experts << " "
        << s.d_model << "x" << s.d_ff << "x" << s.d_out << (s.gated ? " gated" : "") << (s.on_input ? " on input" : "");
    return out.str();
}

}  // namespace

TEST(equals_the_sum_of_dense_layers) {
    for (const Kind& format : all_kinds())
        for (const MoeShape& shape : {
                 MoeShape{1, 2, 5, 40, 24, 40},
                 MoeShape{2, 1, 1, 16, 16, 32, false},
                 MoeShape{7, 3, 7, 33, 50, 21},
                 MoeShape{33, 4, 6, 64, 96, 48, true, false},
                 MoeShape{100, 2, 3, 48, 1, 48, false, true},
                 MoeShape{300, 1, 2, 72, 130, 40, true, true, true},
                 MoeShape{64, 8, 8, 100, 70, 100, true, true, false, fastffn::Activation::swiglu_clamped},
             })
            for (DType dtype : float_dtypes) {
                MoeShape s = shape;
                s.dtype = dtype;
                compare(MoeProblem(format, s), tolerance(format), describe(format, s));
            }
}

// Every combination of two formats in up, gate and down, and stacks of other formats and widths beside each other.
TEST(formats_and_widths_mix) {
    const std::vector<Kind> formats = all_kinds();
    for (std::int64_t tokens : {1, 5, 60}) {
        MoeShape shape{tokens, 3, 0, 56, 0, 40};
        std::vector<ExpertStack> stacks;
        unsigned seed = 1;
        for (std::size_t i = 0; i < formats.size(); ++i) {
            const Kind &next = formats[(i + 1) % formats.size()], &other = formats[(i + 2) % formats.size()];
            stacks.emplace_back(formats[i], next, other, 2, shape, 16 + 30 * static_cast<std::int64_t>(i), seed += 10);
        }
        compare(MoeProblem(shape, std::move(stacks)), 2e-3, "mixed, tokens " + std::to_string(tokens));
    }
}

// Prepared rows that depend on the expert: up and gate never share them.
TEST(experts_of_factors) {
    for (Format factors : factor_formats)
        for (std::int64_t tokens : {1, 4, 70}) {
            MoeShape shape{tokens, 2, 3, 300, 130, 40};
            MoeProblem problem(Format::f32, shape);
            problem.stacks[0].low_rank(factors, 13, shape);
            // The dense layer streams pairs: x · u is rounded or quantised at other places there.
            const double limit = factors == Format::f32 || factors == Format::f16 ? 2e-6 : 2e-2;
            compare(problem, limit, std::string("lowrank ") + fastffn::format_name(factors));
        }
}

// All tokens to one expert: more rows than a wave or a task holds; the same id in several slots.
TEST(everything_to_one_expert) {
    for (const Kind& format : all_kinds()) {
        MoeShape shape{700, 2, 4, 40, 33, 24};
        MoeProblem problem(format, shape);
        for (auto& id : problem.ids) id = 2;
        compare(problem, tolerance(format), std::string("one expert twice, ") + format.name());
    }
}

// d_out is wide, so a tile of sums holds few tokens; then d_ff, so a wave holds few rows. Formats differ here only by
// whether hidden rows are kept in f32.
TEST(many_tiles_and_waves) {
    for (Format format : {Format::f32, Format::int8})
        for (const MoeShape& wide :
             {MoeShape{230, 1, 2, 24, 8, 40000, false, false}, MoeShape{300, 2, 3, 16, 4000, 24, false, false}}) {
            MoeShape shape = wide;
            shape.activation = fastffn::Activation::relu;
            compare(MoeProblem(format, shape), tolerance(format), describe(format, shape), {1, 3});
        }
}

// One group that takes more than a wave has room for: its rows come in parts.
TEST(a_group_in_parts) {
    MoeShape shape{1200, 1, 2, 16, 2600, 16, false, false};
    shape.activation = fastffn::Activation::relu;
    MoeProblem problem(Format::f32, shape);
    for (auto& id : problem.ids) id = 1;
    compare(problem, 2e-6, "parts");
}

TEST(every_expert_with_weight_one_is_the_dense_sum) {
    MoeShape shape{20, 6, 6, 40, 24, 40};
    MoeProblem problem(Format::f32, shape);
    for (std::int64_t t = 0; t < shape.tokens; ++t)
        for (std::int64_t j = 0; j < shape.picks; ++j) {
            const auto slot = static_cast<std::size_t>(t * shape.picks + j);
            problem.ids[slot] = static_cast<std::int32_t>((j + t) % shape.picks);
            problem.weights[slot] = 1;
        }
    compare(problem, 2e-6, "all experts");
    std::vector<fastffn::MoeExperts> experts;
    std::vector<float> with, without(static_cast<std::size_t>(shape.tokens * shape.d_out));
    fastffn::Context context(2);
    problem.run(context, &with).value();
    fastffn::moe(context, problem.x_view(), problem.ids_view(), nullptr, problem.layer(&experts),
                 TensorView(without.data(), DType::f32, {shape.tokens, shape.d_out}))
        .value();
    CHECK(with == without) << "no weights are weights of 1";
}

// GPT-OSS's activation against its formula, in a dense layer whose hidden value is that of x = (up, gate).
TEST(clamped_swiglu) {
    const float w_up[] = {1, 0}, w_gate[] = {0, 1}, w_down[] = {1};
    const auto up = pack_weights(TensorView(w_up, DType::f32, {1, 2}), Format::f32);
    const auto gate = pack_weights(TensorView(w_gate, DType::f32, {1, 2}), Format::f32);
    const auto down = pack_weights(TensorView(w_down, DType::f32, {1, 1}), Format::f32);
    fastffn::FfnWeights weights;
    weights.w_up = view(up);
    weights.w_down = view(down);
    weights.activation = fastffn::Activation::swiglu_clamped;
    std::vector<float> x;
    const float values[] = {-1e30f, -90, -7.5f, -7, -1, -0.3f, 0, 0.5f, 3, 6.99f, 7, 8, 1e30f, std::nanf("")};
    for (float u : values)
        for (float g : values) x.insert(x.end(), {u, g});
    const auto tokens = static_cast<std::int64_t>(x.size() / 2);
    std::vector<float> y(static_cast<std::size_t>(tokens));
    const TensorView x_view(x.data(), DType::f32, {tokens, 2}), y_view(y.data(), DType::f32, {tokens, 1});
    fastffn::Context context(1);
    const Status refused = fastffn::ffn(context, x_view, weights, y_view);
    CHECK(refused.code() == StatusCode::invalid_argument);
    CHECK(refused.message().find("'swiglu_clamped' needs a gate") != std::string::npos) << refused.message();
    weights.w_gate = view(gate);
    fastffn::ffn(context, x_view, weights, y_view).value();
    for (std::size_t t = 0; t < y.size(); ++t) {
        const double u = x[2 * t], g = std::isnan(x[2 * t + 1]) ? x[2 * t + 1] : std::min<double>(x[2 * t + 1], 7);
        const double clamped = std::isnan(u) ? u : std::max(-7.0, std::min(u, 7.0));
        const double expected = (clamped + 1) * g / (1 + std::exp(-1.702 * g));
        // x = 0 · NaN in the other product is NaN, too.
        if (std::isnan(u) || std::isnan(x[2 * t + 1])) CHECK(std::isnan(y[t])) << u << " " << g;
        else
            CHECK(std::fabs(y[t] - expected) <= 1e-6 * std::fabs(expected) + 1e-37)
                << u << " " << g << ": " << y[t] << " " << expected;
    }
}

TEST(empty_slots_tokens_and_picks) {
    MoeShape shape{9, 2, 3, 20, 12, 28};
    MoeProblem problem(Format::f32, shape);
    for (auto& id : problem.ids) id = -1;
    compare(problem, 0, "no picks");
    fastffn::Context context(2);
    std::vector<fastffn::MoeExperts> experts;
    const fastffn::MoeWeights layer = problem.layer(&experts);
    std::vector<float> y(static_cast<std::size_t>(shape.tokens * shape.d_out), 5.0f);
    const TensorView none(static_cast<const void*>(nullptr), DType::i64, {shape.tokens, 0});
    CHECK(fastffn::moe(context, problem.x_view(), none, nullptr, layer,
                       TensorView(y.data(), DType::f32, {shape.tokens, shape.d_out}))
              .ok());
    for (float value : y) CHECK(value == 0);
    std::int64_t load[3] = {7, 7, 7};
    CHECK(fastffn::moe(context, TensorView(y.data(), DType::f32, {0, shape.d_model}),
                       TensorView(y.data(), DType::i32, {0, 2}), nullptr, layer,
                       TensorView(y.data(), DType::f32, {0, shape.d_out}), load)
              .ok());
    CHECK(load[0] == 0 && load[2] == 0);
}

TEST(ids_of_64_bits_any_strides_and_the_load) {
    MoeShape shape{50, 3, 5, 32, 20, 32};
    const MoeProblem problem(Format::f32, shape);
    std::vector<float> expected, y(static_cast<std::size_t>(shape.tokens * shape.d_out));
    fastffn::Context context(2);
    std::int64_t load[5], wanted[5] = {};
    problem.run(context, &expected, load).value();
    for (std::int32_t id : problem.ids)
        if (id >= 0) ++wanted[id];
    CHECK(std::memcmp(load, wanted, sizeof load) == 0);
    // [picks, tokens] in memory, and x as [5, 10, d_model].
    std::vector<std::int64_t> ids(problem.ids.size());
    std::vector<std::uint16_t> weights(problem.ids.size());
    std::vector<float> rounded = problem.weights;
    for (std::int64_t t = 0; t < shape.tokens; ++t)
        for (std::int64_t j = 0; j < shape.picks; ++j) {
            const auto from = static_cast<std::size_t>(t * shape.picks + j);
            const auto to = static_cast<std::size_t>(j * shape.tokens + t);
            ids[to] = problem.ids[from];
            weights[to] = to_bf16(problem.weights[from]);
            const std::uint32_t bits = static_cast<std::uint32_t>(weights[to]) << 16;
            std::memcpy(&rounded[from], &bits, 4);
        }
    TensorView ids_view(ids.data(), DType::i64, {5, 10, shape.picks});
    TensorView weights_view(weights.data(), DType::bf16, {5, 10, shape.picks});
    ids_view.strides[0] = weights_view.strides[0] = 10;
    ids_view.strides[1] = weights_view.strides[1] = 1;
    ids_view.strides[2] = weights_view.strides[2] = shape.tokens;
    std::vector<fastffn::MoeExperts> experts;
    fastffn::moe(context, TensorView(problem.x.data(), DType::f32, {5, 10, shape.d_model}), ids_view, &weights_view,
                 problem.layer(&experts), TensorView(y.data(), DType::f32, {5, 10, shape.d_out}))
        .value();
    MoeProblem same = problem;
    same.weights = rounded;
    same.run(context, &expected).value();
    CHECK(y == expected);
}

// Shared experts with and without a gate, and zero, copy and constant experts, against the formula.
TEST(shared_and_special_experts) {
    for (bool on_input : {false, true})
        for (std::int64_t tokens : {1, 3, 90}) {
            MoeShape shape{tokens, 4, 3, 36, 20, 36, true, true, on_input};
            MoeProblem problem(Format::f32, shape);
            MoeShape plain = shape;
            const ExpertStack one(Format::f32, Format::f32, Format::f32, 1, plain, 28, 900),
                two(Format::f32, Format::f32, Format::f32, 2, plain, 12, 950);
            const auto v = random_array(DType::f32, 2 * shape.d_model, 31, 0.3f);
            const auto vectors = random_array(DType::f32, 2 * shape.d_model, 32);
            const auto mix = random_array(DType::f32, 4 * shape.d_model, 33, 0.3f);
            using fastffn::SpecialExpert;
            const SpecialExpert kinds[] = {SpecialExpert::constant, SpecialExpert::zero, SpecialExpert::copy,
                                           SpecialExpert::constant};
            std::mt19937 generator(5);
            for (auto& id : problem.ids) id = static_cast<std::int32_t>(generator() % 8) - 1;

            std::vector<fastffn::MoeExperts> experts;
            fastffn::MoeWeights layer = problem.layer(&experts);
            const TensorView gate(v.data(), DType::f32, {2, shape.d_model});
            const TensorView vectors_view(vectors.data(), DType::f32, {2, shape.d_model});
            const TensorView mix_view(mix.data(), DType::f32, {2, 2, shape.d_model});
            const fastffn::MoeShared shared[] = {{one.experts(), nullptr}, {two.experts(), &gate}};
            layer.shared = shared;
            layer.shared_stacks = 2;
            layer.special = {kinds, 4, &vectors_view, &mix_view};

            const auto x = as_floats(problem.x, DType::f32), gates = as_floats(v, DType::f32);
            const auto constants = as_floats(vectors, DType::f32), mixes = as_floats(mix, DType::f32);
            MoeProblem routed = problem;
            for (auto& id : routed.ids)
                if (id >= 3) id = -1;
            std::vector<double> expected = routed.expected();
            const auto y_one = one.run(0, plain, x), y_two = two.run(0, plain, x), y_three = two.run(1, plain, x);
            for (std::int64_t t = 0; t < tokens; ++t) {
                auto dot = [&](const float* w) {
                    double sum = 0;
                    for (std::int64_t c = 0; c < shape.d_model; ++c)
                        sum += static_cast<double>(w[c]) * x[static_cast<std::size_t>(t * shape.d_model + c)];
                    return sum;
                };
                for (std::int64_t c = 0; c < shape.d_out; ++c) {
                    const auto at = static_cast<std::size_t>(t * shape.d_out + c);
                    expected[at] += y_one[at] + y_two[at] / (1 + std::exp(-dot(gates.data()))) +
                                    y_three[at] / (1 + std::exp(-dot(gates.data() + shape.d_model)));
                }
                for (std::int64_t j = 0; j < shape.picks; ++j) {
                    const auto slot = static_cast<std::size_t>(t * shape.picks + j);
                    const std::int32_t id = problem.ids[slot] - 3;
                    const double weight = problem.weights[slot];
                    if (id < 0 || id == 1) continue;
                    double of_x = 1, of_vector = 0;
                    const std::int64_t constant = id == 0 ? 0 : 1;
                    if (id != 2) {
                        const float* w = mixes.data() + constant * 2 * shape.d_model;
                        const double scale = on_input ? weight : 1;
                        const double a = std::exp(scale * dot(w)), b = std::exp(scale * dot(w + shape.d_model));
                        of_x = a / (a + b);
                        of_vector = b / (a + b);
                    }
                    for (std::int64_t c = 0; c < shape.d_out; ++c) {
                        const auto at = static_cast<std::size_t>(t * shape.d_out + c);
                        expected[at] += weight * of_x * x[at] +
                                        (on_input ? 1 : weight) * of_vector *
                                            constants[static_cast<std::size_t>(constant * shape.d_model + c)];
                    }
                }
            }
            std::vector<float> first, y(expected.size());
            const TensorView weights = problem.weights_view();
            for (int threads : {1, 2, 5}) {
                fastffn::Context context(threads);
                std::int64_t load[7];
                const Status status = fastffn::moe(context, problem.x_view(), problem.ids_view(), &weights, layer,
                                                   TensorView(y.data(), DType::f32, {tokens, shape.d_out}), load);
                CHECK(status.ok()) << status.message();
                if (threads == 1) first = y;
                CHECK(y == first) << "bits with " << threads << " threads";
                std::int64_t bytes = 0;
                fastffn::moe_workspace(problem.x_view(), shape.picks, layer, threads, &bytes).value();
                CHECK(context.workspace_bytes() == bytes) << context.workspace_bytes() << " " << bytes;
            }
            const double error = relative_error(y, expected);
            CHECK(error <= 2e-6) << "tokens " << tokens << (on_input ? " on input" : "") << ": error " << error;
        }
}

// A token's result does not depend on the order of tokens, and on the others only by the order of its sums.
TEST(permuted_and_split_batches) {
    for (const Kind& format : all_kinds()) {
        MoeShape shape{40, 3, 6, 48, 40, 48};
        const MoeProblem problem(format, shape);
        std::vector<float> y, z;
        fastffn::Context context(2);
        problem.run(context, &y).value();
        MoeProblem other = problem;
        for (std::int64_t t = 0; t < shape.tokens; ++t) {
            const std::int64_t from = (t * 7) % shape.tokens == 0 && t ? 0 : (t * 7) % shape.tokens;
            std::memcpy(other.x.data() + t * shape.d_model * 4, problem.x.data() + from * shape.d_model * 4,
                        static_cast<std::size_t>(shape.d_model * 4));
            for (std::int64_t j = 0; j < shape.picks; ++j) {
                const auto to = static_cast<std::size_t>(t * shape.picks + j);
                const auto at = static_cast<std::size_t>(from * shape.picks + j);
                other.ids[to] = problem.ids[at];
                other.weights[to] = problem.weights[at];
            }
        }
        other.run(context, &z).value();
        for (std::int64_t t = 0; t < shape.tokens; ++t)
            CHECK(std::memcmp(z.data() + t * shape.d_out, y.data() + (t * 7) % shape.tokens * shape.d_out,
                              static_cast<std::size_t>(shape.d_out * 4)) == 0)
                << format.name() << ": permuted, token " << t;
        std::vector<fastffn::MoeExperts> experts;
        const fastffn::MoeWeights layer = problem.layer(&experts);
        for (std::int64_t first = 0; first < shape.tokens; first += 13) {
            const std::int64_t count = std::min<std::int64_t>(13, shape.tokens - first);
            const TensorView w(problem.weights.data() + first * 3, DType::f32, {count, 3});
            fastffn::moe(context, TensorView(problem.x.data() + first * 48 * 4, DType::f32, {count, 48}),
                         TensorView(problem.ids.data() + first * 3, DType::i32, {count, 3}), &w, layer,
                         TensorView(z.data() + first * 48, DType::f32, {count, 48}))
                .value();
        }
        const double error = relative_error(z, std::vector<double>(y.begin(), y.end()));
        CHECK(error <= tolerance(format)) << format.name() << ": split, error " << error;
    }
}

TEST(not_a_number_stays_in_its_token) {
    for (const Kind& format : all_kinds()) {
        MoeShape shape{30, 2, 3, 32, 40, 32};
        MoeProblem problem(format, shape);
        for (auto& id : problem.ids) id = id < 0 ? 0 : id;
        const float nan = std::nanf("");
        std::memcpy(problem.x.data() + (11 * shape.d_model + 5) * 4, &nan, 4);
        std::vector<float> y;
        fastffn::Context context(2);
        problem.run(context, &y).value();
        for (std::int64_t t = 0; t < shape.tokens; ++t)
            for (std::int64_t c = 0; c < shape.d_out; ++c)
                CHECK(std::isnan(y[static_cast<std::size_t>(t * shape.d_out + c)]) == (t == 11))
                    << format.name() << " token " << t;
    }
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
