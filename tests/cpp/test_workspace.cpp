// The workspace query says what a call takes, and a context keeps its memory from call to call.
#include "check.hpp"
#include "support.hpp"

namespace {
using namespace support;

TEST(query_is_what_a_call_takes) {
    for (const Kind& format : all_kinds())
        for (DType dtype : float_dtypes)
            for (std::int64_t tokens : {0, 1, 2, 16, 17, 128, 700})
                for (int threads : {1, 2, 5})
                    for (bool gated : {false, true}) {
                        if (tokens == 700 && dtype != DType::f16) continue;  // several token tiles; slow
                        const Problem problem(format, dtype, tokens, 100, 300, gated);
                        fastffn::FfnWeights weights;
                        weights.w_up = view(problem.w_up);
                        weights.w_down = view(problem.w_down);
                        if (gated) weights.w_gate = view(problem.w_gate);
                        std::int64_t bytes = -1;
                        const TensorView x(problem.x.data(), dtype, {tokens, 100});
                        CHECK(fastffn::ffn_workspace(x, weights, threads, &bytes).ok());
                        fastffn::Context context(threads);
                        auto y = problem.output();
                        problem.run(context, y).value();
                        CHECK(context.workspace_bytes() == bytes)
                            << format.name() << " tokens " << tokens << " threads " << threads << ": took "
                            << context.workspace_bytes() << ", said " << bytes;
                        fastffn::Context other(threads);
                        CHECK(fastffn::linear_workspace(x, view(problem.w_up), threads, &bytes).ok());
                        std::vector<std::byte> wide(
                            static_cast<std::size_t>(tokens * 300 * fastffn::dtype_bytes(dtype)));
                        fastffn::linear(other, x, view(problem.w_up), nullptr,
                                        TensorView(wide.data(), dtype, {tokens, 300}))
                            .value();
                        CHECK(other.workspace_bytes() == bytes) << "linear " << format.name() << " tokens " << tokens;
                    }
}

TEST(query_refuses_what_the_call_refuses) {
    const Problem problem(Format::f32, DType::f32, 4, 100, 300, false);
    fastffn::FfnWeights weights;
    weights.w_up = view(problem.w_up);
    weights.w_down = view(problem.w_up);
    std::int64_t bytes = -1;
    const TensorView x(problem.x.data(), DType::f32, {4, 100});
    CHECK(fastffn::ffn_workspace(x, weights, 1, &bytes).code() == StatusCode::invalid_argument);
    CHECK(fastffn::linear_workspace(x, view(problem.w_down), 1, &bytes).code() == StatusCode::invalid_argument);
    CHECK(bytes == -1);
}

// A weight of one value, from a source of one element with strides of 0: quick to make at any size.
std::vector<std::byte> pack_constant(const Kind& format, std::int64_t out, std::int64_t in) {
    const float value = format == Format::sparse24 ? 0.0f : 0.01f;
    TensorView w(&value, DType::f32, {out, in});
    w.strides[0] = w.strides[1] = 0;
    return pack_weights(w, format);
}

// A gated 4096×11008 call over 1024 tokens takes at most 8 MB.
TEST(workspace_of_a_large_layer) {
    for (const Kind& format : all_kinds()) {
        const auto w_up = pack_constant(format, 11008, 4096), w_down = pack_constant(format, 4096, 11008);
        fastffn::FfnWeights weights;
        weights.w_up = weights.w_gate = view(w_up);
        weights.w_down = view(w_down);
        weights.activation = fastffn::Activation::silu;
        std::byte none{};
        for (int threads : {1, 2}) {
            std::int64_t bytes = 0;
            fastffn::ffn_workspace(TensorView(&none, DType::bf16, {1024, 4096}), weights, threads, &bytes).value();
            CHECK(bytes <= 8'000'000) << format.name() << ", " << threads << " threads: " << bytes;
        }
    }
}

TEST(context_keeps_and_releases) {
    fastffn::Context context(1);
    CHECK(context.workspace_bytes() == 0);
    CHECK(std::strcmp(context.last_kernel(), "") == 0);
    std::byte* const memory = context.workspace(1000);
    CHECK(memory != nullptr && reinterpret_cast<std::uintptr_t>(memory) % 64 == 0);
    CHECK(context.workspace_bytes() >= 1000);
    CHECK(context.workspace(500) == memory);
    CHECK(context.workspace(5000000) != nullptr && context.workspace_bytes() >= 5000000);
    fastffn::Context moved(std::move(context));
    CHECK(moved.workspace_bytes() >= 5000000 && moved.threads() == 1);
    fastffn::Context assigned(3);
    assigned = std::move(moved);
    CHECK(assigned.workspace_bytes() >= 5000000 && assigned.threads() == 1);
    assigned.release();
    CHECK(assigned.workspace_bytes() == 0);
    CHECK(assigned.workspace(64) != nullptr);
}

TEST(no_memory_left) {
    fastffn::Context context(1);
    CHECK(context.workspace(std::int64_t{1} << 60) == nullptr);
    CHECK(context.workspace_bytes() == 0);
    CHECK(context.workspace(64) != nullptr);
}

TEST(one_context_for_many_shapes) {
    fastffn::Context shared(2);
    for (std::int64_t tokens : {1, 300, 3, 64})
        for (const Kind& format : all_kinds()) {
            const Problem problem(format, DType::bf16, tokens, 70, 200, true);
            fastffn::Context fresh(2);
            auto a = problem.output(), b = problem.output();
            problem.run(fresh, a).value();
            problem.run(shared, b).value();
            CHECK(a == b) << format.name() << " " << tokens;
        }
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
