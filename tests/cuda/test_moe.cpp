// Mixtures of experts on the emulated device beside the CPU library: the same experts, rows and ids.
#include <optional>

#include "launch/matrix.hpp"
#include "launch/moe.hpp"
#include "weights.hpp"

using namespace fastffn;
using namespace fastffn::cuda;
using namespace support;

namespace {

constexpr auto f32_number = static_cast<std::int32_t>(DType::f32);

// A float array on both sides.
struct Floats {
    std::vector<std::byte> bytes;
    Device<std::byte> device;
    TensorView view;

    Floats(DType dtype, std::initializer_list<std::int64_t> shape, std::mt19937& generator, float scale = 1)
        : bytes(bytes_as(random(size_of(shape), generator, scale), dtype)),
          device(bytes),
          view(bytes.data(), dtype, shape) {}
    static std::int64_t size_of(std::initializer_list<std::int64_t> shape) {
        std::int64_t size = 1;
        for (std::int64_t n : shape) size *= n;
        return size;
    }
    DeviceBias bias() const { return {device.data(), static_cast<std::int32_t>(view.dtype)}; }
    DeviceTable table() const {
        return {device.data(), static_cast<std::int32_t>(view.dtype), view.shape[view.ndim - 1]};
    }
};

// One stack of experts on both sides.
struct Stack {
    Weights up, gate, down;
    Floats b_up, b_gate, b_down, vectors, gamma;
    bool is_gated, has_vectors, has_norm = false;

    Stack(const Kind& up_kind, const Kind& gate_kind, const Kind& down_kind, std::int64_t count, std::int64_t d_model,
          std::int64_t d_ff, bool is_gated_, bool has_vectors_, std::mt19937& generator)
        : up(up_kind, count, d_ff, d_model, generator),
          gate(gate_kind, count, d_ff, d_model, generator),
          down(down_kind, count, d_model, d_ff, generator),
          b_up(DType::f32, {count, d_ff}, generator),
          b_gate(DType::bf16, {count, d_ff}, generator),
          b_down(DType::f16, {count, d_model}, generator),
          vectors(DType::bf16, {count, d_model}, generator, 0.2f),
          gamma(DType::f16, {count, d_ff}, generator),
          is_gated(is_gated_),
          has_vectors(has_vectors_) {}
    MoeExperts host() const {
        MoeExperts experts;
        experts.w_up = up.view();
        experts.w_down = down.view();
        experts.b_up = &b_up.view;
        experts.b_down = &b_down.view;
        if (has_norm) experts.sub_norm = &gamma.view;
        if (is_gated) {
            experts.w_gate = gate.view();
            experts.b_gate = &b_gate.view;
        }
        return experts;
    }
    MoeStack on_device() const {
        MoeStack stack = {};
        stack.up = up.matrix();
        stack.down = down.matrix();
        stack.b_up = b_up.bias();
        stack.b_down = b_down.bias();
        if (is_gated) {
            stack.gate = gate.matrix();
            stack.b_gate = b_gate.bias();
        }
        if (has_vectors) stack.gate_vectors = vectors.table();
        if (has_norm) stack.sub_norm = gamma.bias();
        stack.sub_norm_eps = 1e-5f;
        return stack;
    }
};

struct Problem {
    std::int64_t tokens, picks, d_model = 50;
    DType x_dtype = DType::f32, y_dtype = DType::f32, weights_dtype = DType::f32;
    bool has_weights = true, weights_on_input = false, is_64 = false;
    std::int64_t id_gap = 0, x_gap = 0, y_gap = 0;
    std::vector<SpecialExpert> special = {};
    Activation activation = Activation::silu;
    std::int64_t chunk = 1 << 20;
    bool poisoned = false;
};

struct Layer {
    std::vector<Stack*> routed, shared;
    std::int64_t experts() const {
        std::int64_t count = 0;
        for (const Stack* s : routed) count += s->up.header.count;
        return count;
    }
};

// The largest difference over the largest number, or what went wrong as a huge number.
double apart(const Layer& layer, const Problem& p, unsigned seed, std::vector<std::byte>* bits = nullptr) {
    std::mt19937 generator(seed);
    const auto special = static_cast<std::int64_t>(p.special.size());
    const std::int64_t all = layer.experts() + special, x_stride = p.d_model + p.x_gap, y_stride = p.d_model + p.y_gap;
    auto x_values = random(p.tokens * x_stride, generator);
    if (p.poisoned) x_values[1] = NAN;
    const auto x = bytes_as(x_values, p.x_dtype);
    std::vector<std::int64_t> wide;
    std::vector<std::int32_t> narrow;
    const std::int64_t id_stride = p.picks + p.id_gap;
    for (std::int64_t i = 0; i < p.tokens * id_stride; i++) {
        wide.push_back(static_cast<std::int64_t>(generator() % static_cast<unsigned>(all + 1)) - 1);
        if (i % 3 == 1) wide.back() = wide[static_cast<std::size_t>(i - 1)];  // some twice
        narrow.push_back(static_cast<std::int32_t>(wide.back()));
    }
    const Floats weights(p.weights_dtype, {p.tokens, id_stride}, generator);
    std::int64_t constants = 0;
    for (SpecialExpert kind : p.special) constants += kind == SpecialExpert::constant;
    const Floats vectors(DType::f32, {constants, p.d_model}, generator),
        mix(DType::bf16, {constants, 2, p.d_model}, generator, 0.2f);

    std::vector<MoeExperts> experts;
    std::vector<MoeShared> shared;
    std::vector<MoeStack> stacks;
    for (const Stack* s : layer.routed) experts.push_back(s->host()), stacks.push_back(s->on_device());
    for (const Stack* s : layer.shared) {
        shared.push_back({s->host(), s->has_vectors ? &s->vectors.view : nullptr});
        stacks.push_back(s->on_device());
    }
    MoeWeights moe_weights;
    moe_weights.experts = experts.data();
    moe_weights.stacks = static_cast<std::int64_t>(experts.size());
    moe_weights.shared = shared.data();
    moe_weights.shared_stacks = static_cast<std::int64_t>(shared.size());
    moe_weights.activation = p.activation;
    moe_weights.weights_on_input = p.weights_on_input;
    moe_weights.special = {p.special.data(), special, constants ? &vectors.view : nullptr,
                           constants ? &mix.view : nullptr};

    // The CPU's rows of y have the same gaps.
    const auto y_bytes = static_cast<std::size_t>(reference::bytes_of(p.y_dtype));
    const auto untouched = bytes_as(std::vector<float>(static_cast<std::size_t>(p.tokens * y_stride), -7), p.y_dtype);
    auto y = untouched;
    TensorView x_view(x.data(), p.x_dtype, {p.tokens, p.d_model}), y_view(y.data(), p.y_dtype, {p.tokens, p.d_model});
    TensorView id_view(p.is_64 ? static_cast<const void*>(wide.data()) : narrow.data(),
                       p.is_64 ? DType::i64 : DType::i32, {p.tokens, p.picks}),
        weight_view(weights.bytes.data(), p.weights_dtype, {p.tokens, p.picks});
    x_view.strides[0] = x_stride;
    y_view.strides[0] = y_stride;
    id_view.strides[0] = weight_view.strides[0] = id_stride;
    std::vector<std::int64_t> load(static_cast<std::size_t>(all), -1);
    Context context;
    moe(context, x_view, id_view, p.has_weights ? &weight_view : nullptr, moe_weights, y_view, load.data()).value();

    Device<std::byte> device_x(x), device_y(untouched);
    const Device<std::int64_t> device_wide(wide);
    const Device<std::int32_t> device_narrow(narrow);
    Device<std::int64_t> device_load(std::vector<std::int64_t>(static_cast<std::size_t>(all), -1));
    MoeCall call = {};
    call.x = {device_x.data(), static_cast<std::int32_t>(p.x_dtype), p.tokens, p.d_model, x_stride};
    call.y = {device_y.data(), static_cast<std::int32_t>(p.y_dtype), p.tokens, p.d_model, y_stride};
    call.ids = {p.is_64 ? static_cast<const void*>(device_wide.data()) : device_narrow.data(),
                static_cast<std::int32_t>(p.is_64 ? DType::i64 : DType::i32), id_stride, 1};
    if (p.has_weights) call.weights = {weights.device.data(), static_cast<std::int32_t>(p.weights_dtype), id_stride, 1};
    call.picks = p.picks;
    call.stacks = stacks.data();
    call.stack_count = static_cast<std::int32_t>(layer.routed.size());
    call.shared_count = static_cast<std::int32_t>(layer.shared.size());
    call.special = reinterpret_cast<const std::uint8_t*>(p.special.data());
    call.special_count = static_cast<std::int32_t>(special);
    if (constants) call.vectors = vectors.table(), call.mix = mix.table();
    call.activation = static_cast<std::int32_t>(p.activation);
    call.weights_on_input = p.weights_on_input;
    call.load = device_load.data();
    if (const char* reason = refusal(call)) {
        std::fprintf(stderr, "%s\n", reason);
        return 1e300;
    }
    Device<unsigned char> workspace(static_cast<std::size_t>(workspace_bytes(call, p.chunk)));  // exactly
    if (run(call, p.chunk, workspace.data(), nullptr) != cudaSuccess) return 1e299;
    if (device_load.host() != load) return 1e298;
    const auto found = device_y.host();
    if (bits) *bits = found;
    double largest = 1e-30, most = 0;
    for (std::int64_t i = 0; i < p.tokens * y_stride; i++) {
        const double a = value(y, static_cast<std::size_t>(i), p.y_dtype),
                     b = value(found, static_cast<std::size_t>(i), p.y_dtype);
        if (i % y_stride >= p.d_model) {
            if (std::memcmp(found.data() + static_cast<std::size_t>(i) * y_bytes,
                            untouched.data() + static_cast<std::size_t>(i) * y_bytes, y_bytes) != 0)
                return 1e297;
            continue;
        }
        if (std::isnan(a) || std::isnan(b)) {
            if (std::isnan(a) != std::isnan(b)) return 1e296;
            continue;
        }
        largest = std::fmax(largest, std::fabs(a));
        most = std::fmax(most, std::fabs(a - b));
    }
    return most / largest;
}

// Sums of f32 in another order; hidden activations on the edge between two codes or two bf16 numbers fall either way.
double bound(const Kind& kind, DType y_dtype, std::int64_t tokens) {
    const double rounding = y_dtype == DType::bf16 ? 1.0 / 128 * (tokens > 16 ? 3 : 1) : 5e-6;
    bool has_mean = false;
    for (const auto& option : kind.options) has_mean = has_mean || option.name == "act";
    const bool is_exact = kind.format == Format::f32 || kind.format == Format::f16;
    return rounding + (is_exact ? 0 : has_mean ? 0.1 : 0.01);
}

const Kind f32 = {Format::f32, {}}, bf16 = {Format::bf16, {}}, int8 = {Format::int8, {}};

}  // namespace

TEST(every_format) {
    int tested = 0, number = 0;
    for (const Kind& kind : kinds())
        for (bool is_gated : {false, true}) {
            if (kind.has_minima) continue;  // its options are of one matrix
            number++;
#ifdef FASTFFN_RACE_CHECK
            if (number % 5 != 1) continue;  // kernels of formats have race checks of their own
#endif
            std::mt19937 generator(3);
            Stack stack(kind, kind, kind, 5, 50, 37, is_gated, false, generator);
            tested++;
            // 24 tokens of 3 picks are more than 8 per expert: tiles of 128.
            for (std::int64_t tokens : {number % 3 ? 12 : 1, 24}) {
                const DType dtype = (number + tokens / 12) % 2 ? DType::f32 : DType::bf16;
                const Problem p = {tokens, 3, 50, dtype, dtype};
                const double found = apart({{&stack}, {}}, p, static_cast<unsigned>(tokens));
                CHECK(found <= bound(kind, dtype, tokens))
                    << name(kind) << tokens << " tokens" << (is_gated ? ", gated: " : ": ") << emulator::last_failure()
                    << " " << found;
            }
        }
#ifndef FASTFFN_RACE_CHECK
    CHECK(tested >= 20) << tested;
#endif
}

TEST(every_option) {
    std::mt19937 generator(5);
    Stack first(f32, f32, f32, 3, 50, 37, true, false, generator),
        second(f32, f32, f32, 2, 50, 64, true, false, generator),
        shared(f32, f32, f32, 2, 50, 20, true, true, generator),
        plain(f32, f32, f32, 1, 50, 24, true, false, generator);
    const Layer layer = {{&first, &second}, {&shared, &plain}};
    const std::vector<SpecialExpert> special = {SpecialExpert::constant, SpecialExpert::zero, SpecialExpert::copy,
                                                SpecialExpert::constant};
    for (std::int64_t tokens : {3, 17}) {
#ifdef FASTFFN_RACE_CHECK
        if (tokens == 3) continue;
#endif
        Problem p = {tokens, 3};
        const auto check = [&](const char* what) {
            const double found = apart(layer, p, 9);
            CHECK(found <= 5e-6) << what << ", " << tokens << " tokens: " << emulator::last_failure() << " " << found;
        };
        check("several stacks and shared experts");
        p.special = special;
        check("special experts");
        p.weights_on_input = true;
        check("weights on the input");
        p.has_weights = false;
        check("no weights");
        p.weights_on_input = false;
        check("no weights, not on the input");
        p.has_weights = true;
        p.weights_dtype = DType::f16;
        p.is_64 = true;
        p.id_gap = p.x_gap = p.y_gap = 3;
        check("strides");
        p.x_gap = 2;
        p.y_gap = 2;
        p.chunk = 7;
        check("chunks");
        p.picks = 0;
        check("no picks");
        p.picks = 11;
        p.activation = Activation::swiglu_clamped;
        check("more picks than experts");
        p.poisoned = true;
        check("NaN in one token");
    }
}

TEST(sub_norm) {
    std::mt19937 generator(11);
    const Kind ternary = {Format::ternary, {}};
    Stack first(f32, f32, f32, 3, 50, 37, true, false, generator),
        second(f32, f32, f32, 2, 50, 64, false, false, generator),
        shared(f32, f32, f32, 1, 50, 24, true, true, generator),
        codes(ternary, ternary, ternary, 4, 50, 40, true, false, generator);
    first.has_norm = shared.has_norm = codes.has_norm = true;
    for (std::int64_t tokens : {2, 18}) {
        Problem p = {tokens, 3};
        p.activation = Activation::relu2;
        // The second stack has none.
        double found = apart({{&first, &second}, {&shared}}, p, 3);
        CHECK(found <= 1e-5) << tokens << ": " << emulator::last_failure() << " " << found;
        found = apart({{&codes}, {}}, p, 4);
        CHECK(found <= 0.02) << tokens << " ternary: " << emulator::last_failure() << " " << found;
    }
}

TEST(several_formats) {
    std::mt19937 generator(6);
    Stack mixed(bf16, int8, f32, 4, 48, 32, true, false, generator),
        other(int8, int8, bf16, 3, 48, 40, true, false, generator),
        shared(bf16, bf16, int8, 1, 48, 64, true, true, generator);
    for (std::int64_t tokens : {4, 40}) {
        const Problem p = {tokens, 2, 48, DType::bf16, DType::f32};
        const double found = apart({{&mixed, &other}, {&shared}}, p, 4);
        CHECK(found <= 0.02) << tokens << ": " << emulator::last_failure() << " " << found;
    }
}

TEST(nothing) {
    std::mt19937 generator(7);
    Stack stack(bf16, bf16, bf16, 3, 50, 16, true, false, generator);
    CHECK(apart({{&stack}, {}}, {0, 2}, 1) == 0) << emulator::last_failure();
}

TEST(ids_that_name_nothing_are_empty_slots) {
    std::mt19937 generator(8);
    Stack stack(f32, f32, f32, 3, 8, 16, false, false, generator);
    const auto x = random(2 * 8, generator);
    const Device<float> device_x(x);
    const MoeStack on_device = stack.on_device();
    std::vector<float> results[2];
    for (int i = 0; i < 2; i++) {
        const Device<std::int32_t> ids(i == 0 ? std::vector<std::int32_t>{1, 3, -7, 2147483647}
                                              : std::vector<std::int32_t>{1, -1, -1, -1});
        Device<float> y(16);
        MoeCall call = {};
        call.x = {const_cast<float*>(device_x.data()), f32_number, 2, 8, 8};
        call.y = {y.data(), f32_number, 2, 8, 8};
        call.ids = {ids.data(), static_cast<std::int32_t>(DType::i32), 2, 1};
        call.picks = 2;
        call.stacks = &on_device;
        call.stack_count = 1;
        Device<unsigned char> workspace(static_cast<std::size_t>(workspace_bytes(call)));
        CHECK(run(call, workspace.data(), nullptr) == cudaSuccess);
        results[i] = y.host();
    }
    CHECK(results[0] == results[1]);
    CHECK(results[0][8] == 0 && results[0][15] == 0 && results[0][0] != 0);
}

TEST(same_bits_under_every_schedule) {
    std::mt19937 generator(9);
    Stack stack(bf16, bf16, bf16, 6, 64, 32, true, false, generator),
        shared(bf16, bf16, bf16, 1, 64, 16, true, true, generator);
    for (std::int64_t tokens : {5, 30}) {
        std::vector<std::byte> first;
        for (unsigned seed = 0; seed < 6; seed++) {
            emulator::set_seed(seed);
            std::vector<std::byte> bits;
            Problem p = {tokens, 4, 64, DType::bf16, DType::bf16};
            p.special = {SpecialExpert::copy};
            CHECK(apart({{&stack}, {&shared}}, p, 2, &bits) <= 0.04) << emulator::last_failure();
            if (seed == 0) first = bits;
            CHECK(bits == first) << tokens << " tokens, seed " << seed;
        }
    }
    emulator::set_seed(1);
}

TEST(what_has_no_kernels) {
    std::mt19937 generator(10);
    Stack stack(bf16, bf16, bf16, 2, 8, 16, false, false, generator);
    MoeStack on_device = stack.on_device();
    MoeCall call = {};
    call.stacks = &on_device;
    call.stack_count = 1;
    call.picks = 5000;
    CHECK(contains(refusal(call), "4096 ids")) << refusal(call);
    call.picks = 1;
    call.special_count = 200;
    CHECK(contains(refusal(call), "128 special")) << refusal(call);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
