// A mixture of experts to run, and the same sum made of dense layers.
#pragma once

#include <algorithm>

#include "support.hpp"

namespace support {

struct MoeShape {
    std::int64_t tokens, picks, experts, d_model, d_ff, d_out;
    bool gated = true, biases = true, on_input = false;
    fastffn::Activation activation = fastffn::Activation::silu;
    DType dtype = DType::f32;
    unsigned seed = 1;
};

// Experts of one width, packed one by one and as a stack (a packed stack is the header and the payloads behind each other,
// but the header's checksums make it simplest to pack both).
struct ExpertStack {
    std::int64_t count, d_ff;
    std::vector<std::vector<std::byte>> up, gate, down;  // one per expert
    std::vector<std::byte> up_stack, gate_stack, down_stack;
    std::vector<std::byte> b_up, b_gate, b_down;  // f32
    TensorView up_bias, gate_bias, down_bias;

    static std::vector<std::byte> pack_one(const Kind& format, const float* w, std::int64_t count, std::int64_t out,
                                           std::int64_t in) {
        const TensorView view =
            count ? TensorView(w, DType::f32, {count, out, in}) : TensorView(w, DType::f32, {out, in});
        return pack_weights(view, format);
    }

    static void make(const Kind& format, std::int64_t count, std::int64_t out, std::int64_t in, unsigned seed,
                     std::vector<std::vector<std::byte>>* single, std::vector<std::byte>* stack) {
        const auto w = random_weights(format, DType::f32, count * out, in, seed, 1 / std::sqrt(static_cast<float>(in)));
        const auto* floats = reinterpret_cast<const float*>(w.data());
        *stack = pack_one(format, floats, count, out, in);
        for (std::int64_t e = 0; e < count; ++e) single->push_back(pack_one(format, floats + e * out * in, 0, out, in));
    }

    ExpertStack(const Kind& up_format, const Kind& down_format, const Kind& gate_format, std::int64_t count_,
                const MoeShape& shape, std::int64_t d_ff_, unsigned seed)
        : count(count_), d_ff(d_ff_) {
        make(up_format, count, d_ff, shape.d_model, seed, &up, &up_stack);
        make(down_format, count, shape.d_out, d_ff, seed + 1, &down, &down_stack);
        if (shape.gated) make(gate_format, count, d_ff, shape.d_model, seed + 2, &gate, &gate_stack);
        if (!shape.biases) return;
        b_up = random_array(DType::f32, count * d_ff, seed + 3);
        b_gate = random_array(DType::f32, count * d_ff, seed + 4);
        b_down = random_array(DType::f32, count * shape.d_out, seed + 5);
        up_bias = TensorView(b_up.data(), DType::f32, {count, d_ff});
        gate_bias = TensorView(b_gate.data(), DType::f32, {count, d_ff});
        down_bias = TensorView(b_down.data(), DType::f32, {count, shape.d_out});
    }

    // The same layer made of pairs of factors.
    void low_rank(Format factors, std::int64_t rank, const MoeShape& shape) {
        auto make_pairs = [&](std::int64_t out, std::int64_t in, std::int64_t r, unsigned seed,
                              std::vector<std::vector<std::byte>>* single, std::vector<std::byte>* stack) {
            const auto inner = random_array(DType::f32, count * r * in, seed, 1 / std::sqrt(static_cast<float>(in)));
            const auto outer =
                random_array(DType::f32, count * out * r, seed + 1, 1 / std::sqrt(static_cast<float>(r)));
            auto pack = [&](std::int64_t e, bool all) {
                const std::byte *u_data = inner.data() + e * r * in * 4, *v_data = outer.data() + e * out * r * 4;
                const TensorView u =
                    all ? TensorView(u_data, DType::f32, {count, r, in}) : TensorView(u_data, DType::f32, {r, in});
                const TensorView v =
                    all ? TensorView(v_data, DType::f32, {count, out, r}) : TensorView(v_data, DType::f32, {out, r});
                std::int64_t bytes = 0;
                fastffn::packed_factors_bytes(u, v, factors, &bytes).value();
                std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
                fastffn::pack_factors(u, v, factors, packed.data(), bytes).value();
                return packed;
            };
            *stack = pack(0, true);
            single->clear();
            for (std::int64_t e = 0; e < count; ++e) single->push_back(pack(e, false));
        };
        make_pairs(d_ff, shape.d_model, rank, 71, &up, &up_stack);
        make_pairs(shape.d_out, d_ff, rank + 3, 73, &down, &down_stack);
        if (shape.gated) make_pairs(d_ff, shape.d_model, rank + 1, 75, &gate, &gate_stack);
    }

    fastffn::MoeExperts experts() const {
        fastffn::MoeExperts e;
        e.w_up = view(up_stack);
        e.w_down = view(down_stack);
        if (!gate_stack.empty()) e.w_gate = view(gate_stack);
        if (!b_up.empty()) {
            e.b_up = &up_bias;
            e.b_down = &down_bias;
            if (!gate_stack.empty()) e.b_gate = &gate_bias;
        }
        return e;
    }

    // One expert as a dense layer over all of x [tokens, d_model] f32.
    std::vector<float> run(std::int64_t e, const MoeShape& shape, const std::vector<float>& x) const {
        fastffn::FfnWeights weights;
        weights.w_up = view(up[static_cast<std::size_t>(e)]);
        weights.w_down = view(down[static_cast<std::size_t>(e)]);
        if (shape.gated) weights.w_gate = view(gate[static_cast<std::size_t>(e)]);
        const TensorView bu(b_up.data() + e * d_ff * 4, DType::f32, {d_ff});
        const TensorView bg(b_gate.data() + e * d_ff * 4, DType::f32, {d_ff});
        const TensorView bd(b_down.data() + e * shape.d_out * 4, DType::f32, {shape.d_out});
        if (shape.biases) {
            weights.b_up = &bu;
            weights.b_down = &bd;
            if (shape.gated) weights.b_gate = &bg;
        }
        weights.activation = shape.activation;
        const auto tokens = static_cast<std::int64_t>(x.size()) / shape.d_model;
        std::vector<float> y(static_cast<std::size_t>(tokens * shape.d_out));
        fastffn::Context context(1);
        fastffn::ffn(context, TensorView(x.data(), DType::f32, {tokens, shape.d_model}), weights,
                     TensorView(y.data(), DType::f32, {tokens, shape.d_out}))
            .value();
        return y;
    }
};

inline std::vector<float> as_floats(const std::vector<std::byte>& bytes, DType dtype) {
    std::vector<float> values(bytes.size() / static_cast<std::size_t>(fastffn::dtype_bytes(dtype)));
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (dtype == DType::f32) {
            std::memcpy(&values[i], bytes.data() + 4 * i, 4);
            continue;
        }
        std::uint16_t half;
        std::memcpy(&half, bytes.data() + 2 * i, 2);
        if (dtype == DType::bf16) {
            const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
            std::memcpy(&values[i], &bits, 4);
        } else {
            const int exponent = (half >> 10) & 31, mantissa = half & 1023;
            const float magnitude = exponent ? std::ldexp(1.0f + static_cast<float>(mantissa) / 1024, exponent - 15)
                                             : std::ldexp(static_cast<float>(mantissa), -24);
            values[i] = half & 0x8000 ? -magnitude : magnitude;
        }
    }
    return values;
}

struct MoeProblem {
    MoeShape shape;
    std::vector<ExpertStack> stacks, shared;
    std::vector<std::byte> x;
    std::vector<std::int32_t> ids;
    std::vector<float> weights;

    MoeProblem(const Kind& format, const MoeShape& shape_) : shape(shape_) {
        stacks.emplace_back(format, format, format, shape.experts, shape, shape.d_ff, shape.seed * 100);
        fill();
    }
    MoeProblem(const MoeShape& shape_, std::vector<ExpertStack> stacks_) : shape(shape_), stacks(std::move(stacks_)) {
        shape.experts = 0;
        for (const auto& stack : stacks) shape.experts += stack.count;
        fill();
    }

    // Distinct random ids, some empty slots.
    void fill() {
        x = random_array(shape.dtype, shape.tokens * shape.d_model, shape.seed + 7);
        std::mt19937 generator(shape.seed);
        std::vector<std::int32_t> all(static_cast<std::size_t>(shape.experts));
        for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
        for (std::int64_t t = 0; t < shape.tokens; ++t) {
            std::shuffle(all.begin(), all.end(), generator);
            for (std::int64_t j = 0; j < shape.picks; ++j) {
                ids.push_back(generator() % 9 == 0 ? -1 : all[static_cast<std::size_t>(j % shape.experts)]);
                weights.push_back(static_cast<float>(generator() % 1000) / 1000);
            }
        }
    }

    TensorView x_view() const { return TensorView(x.data(), shape.dtype, {shape.tokens, shape.d_model}); }
    TensorView ids_view() const { return TensorView(ids.data(), DType::i32, {shape.tokens, shape.picks}); }
    TensorView weights_view() const { return TensorView(weights.data(), DType::f32, {shape.tokens, shape.picks}); }

    // The call's structs; they point into `experts`.
    fastffn::MoeWeights layer(std::vector<fastffn::MoeExperts>* experts) const {
        experts->clear();
        for (const auto& stack : stacks) experts->push_back(stack.experts());
        fastffn::MoeWeights layer;
        layer.experts = experts->data();
        layer.stacks = static_cast<std::int64_t>(experts->size());
        layer.activation = shape.activation;
        layer.weights_on_input = shape.on_input;
        return layer;
    }

    Status run(fastffn::Context& context, std::vector<float>* y, std::int64_t* load = nullptr) const {
        std::vector<fastffn::MoeExperts> experts;
        y->assign(static_cast<std::size_t>(shape.tokens * shape.d_out), 77.0f);
        const TensorView w = weights_view();
        return fastffn::moe(context, x_view(), ids_view(), &w, layer(&experts),
                            TensorView(y->data(), DType::f32, {shape.tokens, shape.d_out}), load);
    }

    std::vector<double> expected() const {
        const std::vector<float> plain = as_floats(x, shape.dtype);
        std::vector<double> y(static_cast<std::size_t>(shape.tokens * shape.d_out));
        std::int64_t first = 0;
        for (const auto& stack : stacks) {
            for (std::int64_t e = 0; e < stack.count; ++e) {
                for (std::int64_t j = 0; j < shape.picks; ++j) {
                    std::vector<float> in = plain;
                    bool used = false;
                    for (std::int64_t t = 0; t < shape.tokens; ++t) {
                        const auto slot = static_cast<std::size_t>(t * shape.picks + j);
                        used = used || ids[slot] == first + e;
                        if (shape.on_input)
                            for (std::int64_t c = 0; c < shape.d_model; ++c)
                                in[static_cast<std::size_t>(t * shape.d_model + c)] *= weights[slot];
                    }
                    if (!used) continue;
                    const std::vector<float> out = stack.run(e, shape, in);
                    for (std::int64_t t = 0; t < shape.tokens; ++t) {
                        const auto slot = static_cast<std::size_t>(t * shape.picks + j);
                        if (ids[slot] != first + e) continue;
                        for (std::int64_t c = 0; c < shape.d_out; ++c) {
                            const auto at = static_cast<std::size_t>(t * shape.d_out + c);
                            y[at] += (shape.on_input ? 1.0 : weights[slot]) * static_cast<double>(out[at]);
                        }
                    }
                }
            }
            first += stack.count;
        }
        return y;
    }
};

// Root of the mean square difference over that of the expected values.
inline double relative_error(const std::vector<float>& y, const std::vector<double>& expected) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < y.size(); ++i) {
        difference += (y[i] - expected[i]) * (y[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

}  // namespace support
