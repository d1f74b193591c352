// Gate first: the bits of the dense order, no more rows of w_up than have a gate, and no byte outside an array.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "check.hpp"
#include "guarded.hpp"
#include "layers/gate_first.hpp"
#include "support.hpp"

namespace {
using namespace support;
using fastffn::Activation;
using fastffn::GateFirst;

const Kind row_kinds[] = {{Format::ternary, {{"order", "rows"}, {"act", "int4"}}},
                          {Format::ternary, {{"order", "rows"}, {"group", 32}}},
                          {Format::int4, {{"order", "rows"}, {"group", 64}, {"zero_points", true}}}};

// A gated layer of which about `share` of the gates is positive.
struct Layer {
    std::int64_t tokens, d_model, d_ff;
    DType dtype;
    std::vector<std::byte> w_up, w_gate, w_down, b_up, b_gate, b_down, x, gamma;
    bool norm = false;

    Layer(const Kind& up, const Kind& gate, const Kind& down, DType dtype_, std::int64_t tokens_, std::int64_t d_model_,
          std::int64_t d_ff_, float share)
        : tokens(tokens_), d_model(d_model_), d_ff(d_ff_), dtype(dtype_) {
        w_up = pack_random(up, d_ff, d_model, 1);
        w_gate = pack_random(gate, d_ff, d_model, 2);
        w_down = pack_random(down, d_model, d_ff, 3);
        b_up = random_array(dtype, d_ff, 4);
        b_down = random_array(dtype, d_model, 5);
        x = random_array(dtype, tokens * d_model, 6);
        gamma = random_array(dtype, d_ff, 7);
        b_gate = random_array(DType::f32, d_ff, 8);
        std::mt19937 generator(9);
        for (std::int64_t c = 0; c < d_ff; ++c) {
            float bias = 0;
            std::memcpy(&bias, b_gate.data() + 4 * c, 4);
            const float draw = static_cast<float>(generator() >> 8) / static_cast<float>(1 << 24);
            bias = 0.3f * bias + (draw < share ? 3.0f : -3.0f) * (share > 0 && share < 1 ? 1.0f : 1e4f);
            std::memcpy(b_gate.data() + 4 * c, &bias, 4);
        }
    }
    std::int64_t out_bytes() const { return tokens * d_model * fastffn::dtype_bytes(dtype); }

    // The bytes of every argument, in the order of `run`.
    std::vector<const std::vector<std::byte>*> arrays() const {
        return {&x, &w_up, &w_gate, &w_down, &b_up, &b_gate, &b_down, &gamma};
    }
    Status run(fastffn::Context& context, GateFirst order, std::byte* y,
               const std::vector<const std::byte*>& at = {}) const {
        std::vector<const std::byte*> data = at;
        if (data.empty())
            for (const auto* array : arrays()) data.push_back(array->data());
        const TensorView up(data[4], dtype, {d_ff}), gate(data[5], DType::f32, {d_ff}), down(data[6], dtype, {d_model});
        const TensorView norm_view(data[7], dtype, {d_ff});
        fastffn::FfnWeights weights = packed(data);
        weights.b_up = &up;
        weights.b_gate = &gate;
        weights.b_down = &down;
        if (norm) weights.sub_norm = &norm_view;
        weights.gate_first = order;
        return fastffn::ffn(context, TensorView(data[0], dtype, {tokens, d_model}), weights,
                            TensorView(y, dtype, {tokens, d_model}));
    }
    fastffn::FfnWeights packed(const std::vector<const std::byte*>& data) const {
        fastffn::FfnWeights weights;
        weights.w_up = {data[1], static_cast<std::int64_t>(w_up.size())};
        weights.w_gate = {data[2], static_cast<std::int64_t>(w_gate.size())};
        weights.w_down = {data[3], static_cast<std::int64_t>(w_down.size())};
        weights.activation = tokens % 2 ? Activation::relu2 : Activation::relu;
        return weights;
    }
    std::vector<std::byte> output(fastffn::Context& context, GateFirst order) const {
        std::vector<std::byte> y(static_cast<std::size_t>(out_bytes()));
        run(context, order, y.data()).value();
        return y;
    }
    // Gates that are not positive.
    std::int64_t dead_gates() const {
        fastffn::Context context(1);
        std::vector<float> gates(static_cast<std::size_t>(tokens * d_ff));
        const TensorView bias(b_gate.data(), DType::f32, {d_ff});
        fastffn::linear(context, TensorView(x.data(), dtype, {tokens, d_model}), view(w_gate), &bias,
                        TensorView(gates.data(), DType::f32, {tokens, d_ff}))
            .value();
        return std::count_if(gates.begin(), gates.end(), [](float gate) { return gate <= 0; });
    }
};

void check_layer(const Layer& layer, const std::string& name, std::initializer_list<int> thread_counts) {
    fastffn::Context dense(1);
    const auto expected = layer.output(dense, GateFirst::never);
    // All rows are multiplied where most gates of several tokens live; 300 tokens here are tiles of one share.
    const std::int64_t gates = layer.dead_gates(), live = layer.tokens * layer.d_ff - gates;
    const std::int64_t dead = layer.tokens == 1 || live * 2 <= layer.tokens * layer.d_ff ? gates : 0;
    for (int threads : thread_counts) {
        fastffn::Context context(threads);
        (void)fastffn::counted_skipped();
        const auto y = layer.output(context, GateFirst::always);
        const std::int64_t skipped = fastffn::counted_skipped();
        CHECK(y == expected) << name << " tokens " << layer.tokens << " threads " << threads;
        CHECK(skipped == dead) << name << ": " << skipped << " rows skipped, " << dead << " expected";
        fastffn::FfnWeights weights =
            layer.packed({nullptr, layer.w_up.data(), layer.w_gate.data(), layer.w_down.data()});
        weights.gate_first = GateFirst::always;
        std::int64_t bytes = 0;
        fastffn::ffn_workspace(TensorView(layer.x.data(), layer.dtype, {layer.tokens, layer.d_model}), weights, threads,
                               &bytes)
            .value();
        CHECK(context.workspace_bytes() == bytes)
            << name << ": took " << context.workspace_bytes() << ", said " << bytes;
    }
}

TEST(the_bits_of_the_dense_order) {
    fastffn::count_skipped(true);
    const auto kinds = all_kinds();
    std::size_t which = 0;
    for (const Kind& up : row_kinds)
        for (const Kind& down : kinds)
            for (std::int64_t tokens : {1, 2, 5, 40}) {
                const Kind& gate = kinds[which++ % kinds.size()];
                Layer layer(up, gate, down, float_dtypes[which % 3], tokens, 70, 301, 0.325f);
                layer.norm = which % 2 == 0;
                check_layer(layer, up.name() + ", " + gate.name() + ", " + down.name(), {1, 3});
            }
    // No gate, one, almost all and all of them; wide enough for several threads.
    for (float share : {0.0f, 0.002f, 0.325f, 0.995f, 1.0f})
        for (std::int64_t tokens : {1, 3, 300}) {
            const Layer layer(row_kinds[0], {Format::ternary, {{"act", "int4"}}},
                              {Format::ternary, {{"order", "columns"}}}, DType::bf16, tokens, 259, 1031, share);
            check_layer(layer, "share " + std::to_string(share), {1, 2, 3, 8});
            if (share == 0.0f) CHECK(layer.dead_gates() == tokens * 1031);
            if (share == 1.0f) CHECK(layer.dead_gates() == 0);
        }
    fastffn::count_skipped(false);
}

// NaN and infinity reach the outputs that they reach in the dense order, through a gate of zero too.
TEST(values_that_are_not_finite) {
    for (const Kind& up : row_kinds)
        for (const Kind& gate : {Kind(Format::f32), Kind(Format::ternary)})
            for (float value : {std::nanf(""), INFINITY, -INFINITY})
                for (int where : {0, 4, 5, 7}) {
                    Layer layer(up, gate, Format::ternary, DType::f32, 3, 65, 130, 0.3f);
                    layer.norm = where == 7;
                    std::vector<std::byte>* arrays[] = {&layer.x,    nullptr,       nullptr, nullptr,
                                                        &layer.b_up, &layer.b_gate, nullptr, &layer.gamma};
                    const std::int64_t count = static_cast<std::int64_t>(arrays[where]->size()) / 4;
                    for (std::int64_t i : {std::int64_t{2}, count / 2, count - 1}) {
                        Layer poisoned = layer;
                        std::vector<std::byte>* array[] = {&poisoned.x,    nullptr,          nullptr, nullptr,
                                                           &poisoned.b_up, &poisoned.b_gate, nullptr, &poisoned.gamma};
                        std::memcpy(array[where]->data() + 4 * i, &value, 4);
                        fastffn::Context context(1);
                        const auto expected = poisoned.output(context, GateFirst::never);
                        const auto found = poisoned.output(context, GateFirst::always);
                        bool same = true;
                        for (std::size_t k = 0; k < expected.size(); k += 4) {
                            float a, b;
                            std::memcpy(&a, expected.data() + k, 4);
                            std::memcpy(&b, found.data() + k, 4);
                            same = same && (a == b || (a != a && b != b));
                        }
                        CHECK(same) << up.name() << ", " << gate.name() << ": " << value << " in array " << where
                                    << " at " << i;
                    }
                }
}

// All gates are minus infinity, so zero; their products with codes are NaN, and so is every output.
TEST(infinity_behind_gates_of_zero) {
    for (const Kind& up : row_kinds) {
        Layer layer(up, Format::f32, Format::ternary, DType::f32, 2, 20, 30, 0.0f);
        std::vector<float> negative(30 * 20, -1.0f);
        layer.w_gate = pack_weights(TensorView(negative.data(), DType::f32, {30, 20}), Format::f32);
        const float infinity = INFINITY;
        std::memcpy(layer.x.data() + 4 * 23, &infinity, 4);
        fastffn::Context context(1);
        for (GateFirst order : {GateFirst::never, GateFirst::always}) {
            const auto y = layer.output(context, order);
            for (std::size_t i = 0; i < 40; ++i) {
                float value;
                std::memcpy(&value, y.data() + 4 * i, 4);
                CHECK((value != value) == (i >= 20)) << up.name() << " output " << i << ": " << value;
            }
        }
    }
}

TEST(against_guard_pages) {
    for (const Kind& up : row_kinds)
        for (const auto& [tokens, d_model, d_ff] : {std::array<std::int64_t, 3>{1, 1, 1},
                                                    {2, 33, 17},
                                                    {3, 65, 63},
                                                    {1, 257, 1031},
                                                    {7, 300, 256},
                                                    {40, 31, 130}})
            for (Side side : {Side::end, Side::begin}) {
                Layer layer(up, Format::int8, {Format::ternary, {{"order", "columns"}}}, float_dtypes[d_ff % 3], tokens,
                            d_model, d_ff, 0.325f);
                layer.norm = tokens == 1;
                fastffn::Context context(2);
                const auto expected = layer.output(context, GateFirst::never);
                std::vector<std::unique_ptr<Guarded>> guarded;
                std::vector<const std::byte*> data;
                for (const auto* array : layer.arrays()) {
                    guarded.push_back(std::make_unique<Guarded>(*array, side));
                    data.push_back(guarded.back()->data());
                }
                const Guarded y(expected.size(), side);
                layer.run(context, GateFirst::always, y.data(), data).value();
                CHECK(std::memcmp(y.data(), expected.data(), expected.size()) == 0) << up.name() << " d_ff " << d_ff;
            }
}

TEST(what_stands_in_the_way) {
    const Kind rows = row_kinds[0];
    Layer layer(rows, Format::ternary, Format::ternary, DType::f32, 1, 20, 30, 0.5f);
    fastffn::FfnWeights weights = layer.packed({nullptr, layer.w_up.data(), layer.w_gate.data(), layer.w_down.data()});
    std::vector<std::byte> y(static_cast<std::size_t>(layer.out_bytes()));
    const auto refuses = [&](fastffn::FfnWeights refused, const char* text) {
        fastffn::Context context(1);
        const TensorView x(layer.x.data(), DType::f32, {1, 20}), out(y.data(), DType::f32, {1, 20});
        refused.gate_first = GateFirst::always;
        const Status status = fastffn::ffn(context, x, refused, out);
        CHECK(status.code() == StatusCode::invalid_argument && status.message().find(text) != std::string::npos)
            << status.message();
        std::int64_t bytes = 0;
        CHECK(fastffn::ffn_workspace(x, refused, 1, &bytes).code() == StatusCode::invalid_argument);
        refused.gate_first = GateFirst::automatic;
        CHECK(fastffn::ffn(context, x, refused, out).ok());
    };
    auto changed = weights;
    changed.activation = Activation::silu;
    refuses(changed, "activation 'relu' or 'relu2', whose zeros are exact (activation is 'silu'");
    changed = weights;
    changed.w_gate = {};
    refuses(changed, "w_gate, which is not given");
    changed = weights;
    changed.w_up = weights.w_gate;
    refuses(changed, "w_up packed as 'ternary' or 'int4' with order='rows'");
    const fastffn::Segment half{0, 15};
    changed = weights;
    changed.segments = &half;
    changed.segment_count = 1;
    refuses(changed, "segments are given");
    const auto pair = pack_random_pair(Format::f32, 30, 20, 4, 1);
    changed = weights;
    changed.w_gate = view(pair);
    refuses(changed, "weights that are no pairs of factors");
}

TEST(automatic_order) {
    fastffn::count_skipped(true);
    for (std::int64_t tokens : {0, 1, 2, 40}) {
        const Layer layer(row_kinds[0], Format::ternary, Format::ternary, DType::f32, tokens, 64, 256, 0.325f);
        fastffn::Context context(1);
        (void)fastffn::counted_skipped();
        layer.output(context, GateFirst::automatic);
        const std::int64_t skipped = fastffn::counted_skipped();
        CHECK((skipped > 0) == (tokens > 0)) << tokens << " tokens: " << skipped;
        layer.output(context, GateFirst::never);
        CHECK(fastffn::counted_skipped() == 0);
    }
    fastffn::count_skipped(false);
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
