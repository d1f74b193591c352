// What moe reads, writes and takes: guard pages around every array, the workspace query, offsets beyond 2^31.
#include <sys/mman.h>

#include "check.hpp"
#include "guarded.hpp"
#include "moe_support.hpp"

namespace {
using namespace support;

void check_guarded(const Kind& format, const MoeShape& s, Side side) {
    const MoeProblem problem(format, s);
    fastffn::Context context(2);
    std::vector<float> expected;
    problem.run(context, &expected).value();
    const ExpertStack& stack = problem.stacks[0];
    const Guarded x(problem.x, side), up(stack.up_stack, side), gate(stack.gate_stack, side),
        down(stack.down_stack, side);
    const Guarded b_up(stack.b_up, side), b_gate(stack.b_gate, side), b_down(stack.b_down, side);
    auto bytes_of = [](const auto& values) {
        const auto* data = reinterpret_cast<const std::byte*>(values.data());
        return std::vector<std::byte>(data, data + values.size() * 4);
    };
    const Guarded ids(bytes_of(problem.ids), side), weights(bytes_of(problem.weights), side);
    const Guarded y(expected.size() * 4, side);
    const TensorView up_bias(b_up.data(), DType::f32, {s.experts, s.d_ff}),
        gate_bias(b_gate.data(), DType::f32, {s.experts, s.d_ff});
    const TensorView down_bias(b_down.data(), DType::f32, {s.experts, s.d_out});
    const TensorView weights_view(weights.data(), DType::f32, {s.tokens, s.picks});
    fastffn::MoeExperts experts;
    experts.w_up = {up.data(), up.size()};
    experts.w_down = {down.data(), down.size()};
    if (s.gated) experts.w_gate = {gate.data(), gate.size()};
    if (s.biases) {
        experts.b_up = &up_bias;
        experts.b_down = &down_bias;
        if (s.gated) experts.b_gate = &gate_bias;
    }
    fastffn::MoeWeights layer;
    layer.experts = &experts;
    layer.stacks = 1;
    layer.activation = s.activation;
    layer.weights_on_input = s.on_input;
    const Status status = fastffn::moe(context, TensorView(x.data(), s.dtype, {s.tokens, s.d_model}),
                                       TensorView(ids.data(), DType::i32, {s.tokens, s.picks}), &weights_view, layer,
                                       TensorView(y.data(), DType::f32, {s.tokens, s.d_out}));
    CHECK(status.ok()) << status.message();
    CHECK(std::memcmp(y.data(), expected.data(), expected.size() * 4) == 0)
        << format.name() << " tokens " << s.tokens << " d_model " << s.d_model << " d_ff " << s.d_ff;
}

TEST(against_guard_pages) {
    for (const Kind& format : all_kinds())
        for (Side side : {Side::end, Side::begin})
            for (const MoeShape& shape :
                 {MoeShape{1, 1, 1, 1, 1, 1}, MoeShape{1, 3, 4, 15, 17, 31}, MoeShape{3, 2, 3, 33, 63, 17},
                  MoeShape{40, 2, 3, 65, 31, 130}, MoeShape{90, 2, 2, 17, 100, 15, false},
                  MoeShape{20, 2, 3, 31, 257, 33, true, true, true}})
                for (DType dtype : float_dtypes) {
                    MoeShape s = shape;
                    s.dtype = dtype;
                    check_guarded(format, s, side);
                }
}

TEST(query_is_what_a_call_takes) {
    for (const Kind& format : all_kinds())
        for (std::int64_t tokens : {0, 1, 2, 17, 200})
            for (int threads : {1, 2, 5})
                for (bool on_input : {false, true}) {
                    MoeShape shape{tokens, 3, 6, 70, 130, 70, true, true, on_input};
                    const MoeProblem problem(format, shape);
                    std::vector<fastffn::MoeExperts> experts;
                    std::int64_t bytes = -1;
                    CHECK(fastffn::moe_workspace(problem.x_view(), 3, problem.layer(&experts), threads, &bytes).ok());
                    fastffn::Context context(threads);
                    std::vector<float> y;
                    problem.run(context, &y).value();
                    CHECK(context.workspace_bytes() == bytes) << format.name() << " tokens " << tokens << ": took "
                                                              << context.workspace_bytes() << ", said " << bytes;
                }
}

// A stack of one value, from a source of one element with strides of 0: quick to make at any size.
std::vector<std::byte> pack_constant(const Kind& format, std::int64_t count, std::int64_t out, std::int64_t in) {
    const float value = format.format == Format::sparse24 ? 0.0f : 0.01f;
    TensorView w(&value, DType::f32, {count, out, in});
    w.strides[0] = w.strides[1] = w.strides[2] = 0;
    return pack_weights(w, format);
}

// OLMoE's shape at 4096 tokens, 8 experts each: 64 MB at most beyond x and y.
TEST(workspace_of_a_large_call) {
    for (const Kind& format : all_kinds()) {
        const auto up = pack_constant(format, 8, 1024, 2048), down = pack_constant(format, 8, 2048, 1024);
        fastffn::MoeExperts experts;
        experts.w_up = experts.w_gate = view(up);
        experts.w_down = view(down);
        fastffn::MoeWeights layer;
        layer.experts = &experts;
        layer.stacks = 1;
        std::byte none{};
        for (int threads : {1, 2, 8})
            for (std::int64_t tokens : {4096, 100000}) {
                std::int64_t bytes = 0;
                fastffn::moe_workspace(TensorView(&none, DType::bf16, {tokens, 2048}), 8, layer, threads, &bytes)
                    .value();
                CHECK(bytes <= (tokens == 4096 ? 64'000'000 : 128'000'000))
                    << format.name() << ", " << threads << " threads, " << tokens << " tokens: " << bytes;
            }
    }
}

// Pages that exist once they are touched.
struct Reserved {
    explicit Reserved(std::size_t size) : bytes(size) {
        void* at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        data = at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
    }
    ~Reserved() {
        if (data) munmap(data, bytes);
    }
    std::byte* data;
    std::size_t bytes;
};

// Rows of x and y far apart, so that their offsets pass 2^31 elements (and 2^33 bytes) with little memory in use.
TEST(offsets_beyond_2_to_31) {
    constexpr std::int64_t tokens = 40, stride = std::int64_t{1} << 26;
    const Reserved x(tokens * stride * 4), y(tokens * stride * 4);
    if (!x.data || !y.data) return check::skip("no address space");
    for (const Kind& format : all_kinds()) {
        MoeShape shape{tokens, 2, 3, 48, 24, 48};
        const MoeProblem problem(format, shape);
        std::vector<float> expected;
        fastffn::Context context(2);
        problem.run(context, &expected).value();
        for (std::int64_t t = 0; t < tokens; ++t)
            std::memcpy(x.data + t * stride * 4, problem.x.data() + t * 48 * 4, 48 * 4);
        TensorView x_view(x.data, DType::f32, {tokens, 48}), y_view(y.data, DType::f32, {tokens, 48});
        x_view.strides[0] = y_view.strides[0] = stride;
        std::vector<fastffn::MoeExperts> experts;
        const TensorView weights = problem.weights_view();
        fastffn::moe(context, x_view, problem.ids_view(), &weights, problem.layer(&experts), y_view).value();
        for (std::int64_t t = 0; t < tokens; ++t)
            CHECK(std::memcmp(y.data + t * stride * 4, expected.data() + t * 48, 48 * 4) == 0)
                << format.name() << " token " << t;
    }
}

// More tokens than 2^31 / (k · d_model) would allow a T·k·d_model array in 32-bit arithmetic; x is one row seen many times.
TEST(many_tokens) {
    constexpr std::int64_t tokens = 70000;
    MoeShape shape{1, 2, 4, 16, 2, 16, true, false};
    const MoeProblem problem(Format::f32, shape);
    TensorView x = problem.x_view();
    x.shape[0] = tokens;
    x.strides[0] = 0;
    std::vector<std::int32_t> ids(tokens * 2);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = i % 2 ? 1 : 3;
    std::vector<float> y(tokens * 16);
    std::vector<fastffn::MoeExperts> experts;
    fastffn::Context context(2);
    const fastffn::MoeWeights layer = problem.layer(&experts);
    fastffn::moe(context, x, TensorView(ids.data(), DType::i32, {tokens, 2}), nullptr, layer,
                 TensorView(y.data(), DType::f32, {tokens, 16}))
        .value();
    bool same = true;
    for (std::int64_t t = 1; t < tokens; ++t) same = same && std::memcmp(y.data() + t * 16, y.data(), 64) == 0;
    CHECK(same);
    CHECK(y[0] != 0);
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
