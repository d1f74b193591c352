// Threads: the same bits for any number of them, and callers that run side by side do not disturb each other.
// Meant for ThreadSanitizer too (FASTFFN_THREADING=threads: it cannot see into libgomp).
#include <atomic>
#include <thread>

#include "check.hpp"
#include "support.hpp"

namespace {
using namespace support;

// Large enough that the library does use its threads, small enough for a sanitizer.
Problem problem_for(Format format, std::int64_t tokens) { return Problem(format, DType::f32, tokens, 259, 771, true); }

TEST(same_bits_for_any_number_of_threads) {
    for (Format format : all_formats())
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
                    CHECK(y == expected) << fastffn::format_name(format) << ", " << tokens << " tokens, " << threads
                                         << " threads";
                }
            }
        }
}

TEST(callers_side_by_side) {
    for (Format format : all_formats()) {
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
        CHECK(wrong == 0) << fastffn::format_name(format) << ": " << wrong.load() << " of 24";
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

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
