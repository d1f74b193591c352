// Threads: the same bits for any number of them, and callers that run side by side do not disturb each other.
// Meant for ThreadSanitizer too (FASTFFN_THREADING=threads: it cannot see into libgomp).
#include <atomic>
#include <thread>

#include "check.hpp"
#include "support.hpp"

namespace {
using namespace support;

// Large enough that the library does use its threads, small enough for a sanitizer.
Problem problem_for(const Kind& format, std::int64_t tokens) {
    return Problem(format, DType::f32, tokens, 259, 771, true);
}

TEST(same_bits_for_any_number_of_threads) {
    for (const Kind& format : all_kinds())
        for (std::int64_t tokens : {1, 5, 40, 150}) {
            const Problem problem = problem_for(format, tokens);
            auto expected = problem.output();
            fastffn::Context one(1);
            problem.run(one, expected).value();
            for (int threads = 2; threads <= 8; threads++) {
                fastffn::Context context(threads);
                auto y = problem.output();
                for (int again = 0; again < 2; again++) {
                    problem.run(context, y).value();
                    CHECK(y == expected) << format.name() << ", " << tokens << " tokens, " << threads << " threads";
                }
            }
        }
}

TEST(callers_side_by_side) {
    for (const Kind& format : all_kinds()) {
        std::vector<std::thread> callers;
        std::atomic<int> wrong{0}, errors{0};
        const Problem problem = problem_for(format, 20);
        auto expected = problem.output();
        fastffn::Context one(1);
        problem.run(one, expected).value();
        for (int caller = 0; caller < 8; caller++)
            callers.emplace_back([&, caller] {
                fastffn::Context context(caller % 3);  // 0: the default number
                for (int round = 0; round < 3; round++) {
                    auto y = problem.output();
                    if (!problem.run(context, y).ok()) errors++;
                    if (y != expected) wrong++;
                }
            });
        for (auto& caller : callers) caller.join();
        CHECK(errors == 0) << errors.load();
        CHECK(wrong == 0) << format.name() << ": " << wrong.load() << " of 24";
    }
}

// Pools are made by one thread, used by another, and outlive both.
TEST(callers_one_after_another) {
    const Problem problem = problem_for(Format::f32, 20);
    auto expected = problem.output();
    for (int caller = 0; caller < 4; caller++)
        std::thread([&] {
            fastffn::Context context(3);
            auto y = problem.output();
            problem.run(context, y).value();
            if (expected == problem.output()) expected = y;
            CHECK(y == expected);
        }).join();
}

TEST(packing_side_by_side) {
    std::vector<std::thread> callers;
    std::atomic<int> wrong{0};
    const auto expected = pack_random(Format::int8, 300, 200, 1);
    for (int caller = 0; caller < 4; caller++)
        callers.emplace_back([&] {
            if (pack_random(Format::int8, 300, 200, 1) != expected) wrong++;
            if (!fastffn::verify_packed(view(expected)).ok()) wrong++;
        });
    for (auto& caller : callers) caller.join();
    CHECK(wrong == 0);
}

#if defined(__x86_64__)
// A caller that flushes subnormals (torch.set_flush_denormal does) while the pool's threads do not: who runs a task must not
// matter, and the caller keeps its mode.
TEST(floating_point_mode_of_the_caller) {
    const std::int64_t tokens = 64, d_model = 512;
    const auto packed = pack_random(Format::f32, d_model, d_model, 1);
    std::vector<float> x(static_cast<std::size_t>(tokens * d_model), 1e-38f), one(x.size()), four(x.size());
    const TensorView x_view(x.data(), DType::f32, {tokens, d_model});
    fastffn::Context warm(4), alone(1);
    fastffn::linear(warm, x_view, view(packed), nullptr, TensorView(four.data(), DType::f32, {tokens, d_model}))
        .value();
    const unsigned before = __builtin_ia32_stmxcsr(), flushing = before | 0x8040u;
    __builtin_ia32_ldmxcsr(flushing);
    fastffn::linear(alone, x_view, view(packed), nullptr, TensorView(one.data(), DType::f32, {tokens, d_model}))
        .value();
    const unsigned after = __builtin_ia32_stmxcsr();
    fastffn::linear(warm, x_view, view(packed), nullptr, TensorView(four.data(), DType::f32, {tokens, d_model}))
        .value();
    __builtin_ia32_ldmxcsr(before);
    CHECK((after & 0xffc0u) == (flushing & 0xffc0u));
    CHECK(one == four);
    bool any_subnormal = false;
    for (float value : one) any_subnormal = any_subnormal || (value != 0 && std::fabs(value) < 1.17549435e-38f);
    CHECK(any_subnormal) << "the inputs were chosen to give some";
}
#endif

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
