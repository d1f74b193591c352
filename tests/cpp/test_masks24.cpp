// mask24: every pattern counted, optimal against all of them, plain groups against sorting, edges, strides, threads.
#include <algorithm>
#include <cmath>
#include <vector>

#include "check.hpp"
#include "fastffn/sparse24.hpp"

using namespace fastffn;

namespace {

std::vector<float> scores_of(std::int64_t count, unsigned seed) {
    std::vector<float> values(static_cast<std::size_t>(count));
    unsigned state = seed * 2654435761u + 1;
    for (float& value : values) {
        state = state * 1664525u + 1013904223u;
        value = static_cast<float>(static_cast<int>(state >> 8 & 0xFFFF) - 32768) / 4096.0f;
    }
    return values;
}

double kept_sum(const std::vector<float>& scores, const std::vector<std::uint8_t>& mask) {
    double sum = 0;
    for (std::size_t i = 0; i < scores.size(); ++i) sum += mask[i] ? std::fabs(static_cast<double>(scores[i])) : 0.0;
    return sum;
}

std::vector<std::uint8_t> run(const std::vector<float>& scores, std::int64_t rows, std::int64_t cols,
                              bool transposable) {
    std::vector<std::uint8_t> mask(scores.size(), 7);
    mask24({scores.data(), DType::f32, {rows, cols}}, transposable, {mask.data(), DType::u8, {rows, cols}}).value();
    return mask;
}

TEST(there_are_90_patterns) {
    const std::uint16_t* codes = transposable_patterns();
    for (int i = 0; i < transposable_pattern_count; ++i) {
        CHECK(i == 0 || codes[i] > codes[i - 1]);
        for (int line = 0; line < 4; ++line) {
            int row = 0, column = 0;
            for (int k = 0; k < 4; ++k) row += codes[i] >> (4 * line + k) & 1, column += codes[i] >> (4 * k + line) & 1;
            CHECK(row == 2 && column == 2);
        }
    }
    int all = 0;  // of the 2^16
    for (unsigned code = 0; code < 65536; ++code) {
        bool two_each = true;
        for (int line = 0; line < 4; ++line) {
            int row = 0, column = 0;
            for (int k = 0; k < 4; ++k) row += code >> (4 * line + k) & 1, column += code >> (4 * k + line) & 1;
            two_each = two_each && row == 2 && column == 2;
        }
        all += two_each;
    }
    CHECK(all == transposable_pattern_count);
}

TEST(no_pattern_is_better) {
    for (unsigned seed = 0; seed < 200; ++seed) {
        const std::vector<float> scores = scores_of(16, seed);
        double best = 0;
        for (int i = 0; i < transposable_pattern_count; ++i) {
            double sum = 0;
            for (int bit = 0; bit < 16; ++bit)
                if (transposable_patterns()[i] >> bit & 1) sum += std::fabs(scores[static_cast<std::size_t>(bit)]);
            best = std::max(best, sum);
        }
        CHECK(std::fabs(kept_sum(scores, run(scores, 4, 4, true)) - best) < 1e-9);
    }
}

TEST(the_two_largest) {
    for (std::int64_t cols : {1, 2, 3, 4, 5, 31, 32, 33, 70}) {
        const std::int64_t rows = 5;
        std::vector<float> scores = scores_of(rows * cols, static_cast<unsigned>(cols));
        for (std::size_t i = 0; i < scores.size(); i += 3) scores[i] = std::round(scores[i] / 4);  // ties
        const std::vector<std::uint8_t> mask = run(scores, rows, cols, false);
        for (std::int64_t row = 0; row < rows; ++row)
            for (std::int64_t begin = 0; begin < cols; begin += 4) {
                std::vector<std::int64_t> order;
                for (std::int64_t k = begin; k < std::min(begin + 4, cols); ++k) order.push_back(row * cols + k);
                std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
                    return std::fabs(scores[static_cast<std::size_t>(a)]) >
                           std::fabs(scores[static_cast<std::size_t>(b)]);
                });
                for (std::size_t i = 0; i < order.size(); ++i)
                    CHECK(mask[static_cast<std::size_t>(order[i])] == (i < 2));
            }
    }
}

// A matrix that is cut among threads, and its strips, each of which runs on the calling thread.
TEST(threads_do_not_matter) {
    const std::int64_t rows = 262, cols = 300;
    const std::vector<float> scores = scores_of(rows * cols, 5);
    for (bool transposable : {false, true}) {
        const std::vector<std::uint8_t> whole = run(scores, rows, cols, transposable);
        for (std::int64_t first = 0; first < rows; first += 4) {
            const std::int64_t here = std::min<std::int64_t>(4, rows - first);
            const std::vector<float> strip(scores.begin() + first * cols, scores.begin() + (first + here) * cols);
            const std::vector<std::uint8_t> mask = run(strip, here, cols, transposable);
            CHECK(std::equal(mask.begin(), mask.end(), whole.begin() + first * cols));
        }
    }
}

TEST(strides_stacks_and_dtypes) {
    const std::vector<float> scores = scores_of(2 * 8 * 12, 9);
    const std::vector<std::uint8_t> first = run({scores.begin(), scores.begin() + 96}, 8, 12, true);
    const std::vector<std::uint8_t> second = run({scores.begin() + 96, scores.end()}, 8, 12, true);
    std::vector<std::uint8_t> both(192);
    mask24({scores.data(), DType::f32, {2, 8, 12}}, true, {both.data(), DType::u8, {2, 8, 12}}).value();
    CHECK(std::equal(first.begin(), first.end(), both.begin()));
    CHECK(std::equal(second.begin(), second.end(), both.begin() + 96));
    // The transposed view has the transposed mask: no two sums of these scores are equal.
    TensorView turned(scores.data(), DType::f32, {12, 8});
    turned.strides[0] = 1, turned.strides[1] = 12;
    std::vector<std::uint8_t> mask(96);
    mask24(turned, true, {mask.data(), DType::u8, {12, 8}}).value();
    for (int row = 0; row < 8; ++row)
        for (int column = 0; column < 12; ++column)
            CHECK(mask[static_cast<std::size_t>(column * 8 + row)] ==
                  first[static_cast<std::size_t>(row * 12 + column)]);
    const std::vector<double> wide(scores.begin(), scores.begin() + 96);
    mask24({wide.data(), DType::f64, {8, 12}}, true, {mask.data(), DType::u8, {8, 12}}).value();
    CHECK(mask == first);
}

TEST(nan_and_infinity_are_the_largest) {
    const float scores[4] = {1e30f, std::nanf(""), 2, -INFINITY};
    std::uint8_t mask[4];
    mask24({scores, DType::f32, {1, 4}}, false, {mask, DType::u8, {1, 4}}).value();
    CHECK(mask[0] == 0 && mask[1] == 1 && mask[2] == 0 && mask[3] == 1);
}

TEST(wrong_arguments) {
    float scores[16] = {};
    std::uint8_t mask[16];
    const TensorView square(scores, DType::f32, {4, 4});
    CHECK(mask24(square, true, {mask, DType::u8, {4, 4}}).ok());
    CHECK(!mask24(square, true, {mask, DType::u8, {2, 8}}).ok());
    CHECK(!mask24(square, true, {mask, DType::f32, {4, 4}}).ok());
    CHECK(!mask24({scores, DType::f32, {16}}, false, {mask, DType::u8, {16}}).ok());
    CHECK(mask24({scores, DType::f32, {0, 4}}, true, {mask, DType::u8, {0, 4}}).ok());
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
