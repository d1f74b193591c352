// mask24: the two largest of every four, and the exact search for masks that are 2:4 along rows and columns.
//
// A pattern's sum is that of two rows above plus that of two rows below, so 72 sums of row pairs serve all 90 patterns. Eight
// blocks go side by side, one per lane, and the loops over lanes become vector instructions of whatever the compiler may
// assume. In f64, sums of eight f32 values are exact unless they differ by more than 2^26: equal sums are seen as equal.
#include "fastffn/sparse24.hpp"

#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <new>

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "fastffn/context.hpp"

namespace fastffn {

namespace {

constexpr int lanes = 8;
constexpr int pair_count = 6;

// The two columns of a row that stay, as bits, ascending, and as indices.
constexpr std::array<int, pair_count> pair_bits = {0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100};
constexpr std::array<std::array<int, 2>, pair_count> pair_columns = {{{0, 1}, {0, 2}, {1, 2}, {0, 3}, {1, 3}, {2, 3}}};

struct Patterns {
    std::array<std::uint16_t, transposable_pattern_count> codes{};
    std::array<std::uint8_t, transposable_pattern_count> above{}, below{};  // pair of row 0 (2) · 6 + pair of row 1 (3)
};

constexpr Patterns find_patterns() {
    Patterns found{};
    int count = 0;
    // Ascending codes: the last row is in the highest bits.
    for (int d = 0; d < pair_count; ++d)
        for (int c = 0; c < pair_count; ++c)
            for (int b = 0; b < pair_count; ++b)
                for (int a = 0; a < pair_count; ++a) {
                    bool two_each = true;
                    for (int column = 0; column < 4; ++column) {
                        int kept = 0;
                        for (int row : {a, b, c, d}) kept += pair_bits[static_cast<std::size_t>(row)] >> column & 1;
                        two_each = two_each && kept == 2;
                    }
                    if (!two_each) continue;
                    const auto bits = [](int row) { return pair_bits[static_cast<std::size_t>(row)]; };
                    const auto at = static_cast<std::size_t>(count++);
                    found.codes[at] = static_cast<std::uint16_t>(bits(a) | bits(b) << 4 | bits(c) << 8 | bits(d) << 12);
                    found.above[at] = static_cast<std::uint8_t>(a * pair_count + b);
                    found.below[at] = static_cast<std::uint8_t>(c * pair_count + d);
                }
    return found;
}

constexpr Patterns patterns = find_patterns();
static_assert(patterns.codes[transposable_pattern_count - 1] != 0);

// |score|, NaN as infinity.
double magnitude(const std::byte* at, DType dtype) {
    double value;
    if (dtype == DType::f64) std::memcpy(&value, at, 8);
    else value = static_cast<double>(load_f32(at, dtype));
    return std::isnan(value) ? std::numeric_limits<double>::infinity() : std::fabs(value);
}

// Numbers of the best patterns of `lanes` blocks. block[row][column][lane].
void best_patterns(const double (&block)[4][4][lanes], int (&best)[lanes]) {
    double pairs[4][pair_count][lanes];
    for (int row = 0; row < 4; ++row)
        for (int pair = 0; pair < pair_count; ++pair) {
            const auto [first, second] = pair_columns[static_cast<std::size_t>(pair)];
            for (int lane = 0; lane < lanes; ++lane)
                pairs[row][pair][lane] = block[row][first][lane] + block[row][second][lane];
        }
    double halves[2][pair_count * pair_count][lanes];
    for (int half = 0; half < 2; ++half)
        for (int first = 0; first < pair_count; ++first)
            for (int second = 0; second < pair_count; ++second)
                for (int lane = 0; lane < lanes; ++lane)
                    halves[half][first * pair_count + second][lane] =
                        pairs[2 * half][first][lane] + pairs[2 * half + 1][second][lane];
    double largest[lanes], chosen[lanes];  // numbers as f64, so that both take lanes of one width
    for (int lane = 0; lane < lanes; ++lane) largest[lane] = -1, chosen[lane] = 0;
    for (int number = 0; number < transposable_pattern_count; ++number) {
        const double* above = halves[0][patterns.above[static_cast<std::size_t>(number)]];
        const double* below = halves[1][patterns.below[static_cast<std::size_t>(number)]];
        for (int lane = 0; lane < lanes; ++lane) {
            const double sum = above[lane] + below[lane];
            const bool better = sum > largest[lane];
            largest[lane] = better ? sum : largest[lane];
            chosen[lane] = better ? static_cast<double>(number) : chosen[lane];
        }
    }
    for (int lane = 0; lane < lanes; ++lane) best[lane] = static_cast<int>(chosen[lane]);
}

// Four rows of magnitudes, `width` apart and zero beyond the scores → their masks, `stride` apart.
void mask_strip(const double* scores, std::int64_t width, std::int64_t rows, std::int64_t cols, std::uint8_t* mask) {
    for (std::int64_t begin = 0; begin < cols; begin += 4 * lanes) {
        double block[4][4][lanes];
        for (int row = 0; row < 4; ++row)
            for (int lane = 0; lane < lanes; ++lane)
                for (int column = 0; column < 4; ++column)
                    block[row][column][lane] = scores[row * width + begin + 4 * lane + column];
        int best[lanes];
        best_patterns(block, best);
        for (int lane = 0; lane < lanes; ++lane) {
            const unsigned code = patterns.codes[static_cast<std::size_t>(best[lane])];
            for (std::int64_t row = 0; row < rows; ++row)
                for (std::int64_t column = 0; column < 4 && begin + 4 * lane + column < cols; ++column)
                    mask[row * cols + begin + 4 * lane + column] = code >> (4 * row + column) & 1;
        }
    }
}

// One row of magnitudes, padded with -1 to whole groups.
void mask_row(const double* scores, std::int64_t cols, std::uint8_t* mask) {
    for (std::int64_t begin = 0; begin < cols; begin += 4) {
        const double *s = scores + begin, a = s[0], b = s[1], c = s[2], d = s[3];
        // How many of the others each one comes before: all of 3, 2, 1, 0 occur once.
        const int wins[4] = {(a >= b) + (a >= c) + (a >= d), (b > a) + (b >= c) + (b >= d),
                             (c > a) + (c > b) + (c >= d), (d > a) + (d > b) + (d > c)};
        for (std::int64_t i = 0; i < 4 && begin + i < cols; ++i) mask[begin + i] = wins[i] >= 2;
    }
}

Status check_arguments(const TensorView& scores, const TensorView& mask) {
    auto fail = [](const std::string& text) { return Status(StatusCode::invalid_argument, "mask24: " + text); };
    if (scores.ndim != 2 && scores.ndim != 3)
        return fail("scores have shape " + scores.shape_string() + ", expected [rows, cols] or [count, rows, cols]");
    if (scores.dtype != DType::f32 && scores.dtype != DType::f16 && scores.dtype != DType::bf16 &&
        scores.dtype != DType::f64)
        return fail(std::string("scores have dtype ") + dtype_name(scores.dtype) + ", expected f32, f16, bf16 or f64");
    if (mask.dtype != DType::u8) return fail(std::string("mask has dtype ") + dtype_name(mask.dtype) + ", expected u8");
    bool same = mask.ndim == scores.ndim;
    for (int i = 0; same && i < scores.ndim; ++i) same = mask.shape[i] == scores.shape[i];
    if (!same) return fail("mask has shape " + mask.shape_string() + ", expected " + scores.shape_string());
    std::int64_t stride = 1;
    for (int i = mask.ndim - 1; i >= 0; stride *= mask.shape[i--])
        if (mask.shape[i] > 1 && mask.strides[i] != stride)
            return fail("mask has strides " + mask.stride_string() + ", expected it to be contiguous");
    return {};
}

}  // namespace

const std::uint16_t* transposable_patterns() noexcept { return patterns.codes.data(); }

Status mask24(const TensorView& scores, bool transposable, const TensorView& mask) {
    if (Status status = check_arguments(scores, mask); !status.ok()) return status;
    if (scores.size() == 0) return {};
    const int last = scores.ndim - 1;
    const std::int64_t count = last == 2 ? scores.shape[0] : 1, rows = scores.shape[last - 1],
                       cols = scores.shape[last];
    const std::int64_t strips = (rows + 3) / 4, width = (cols + 4 * lanes - 1) / (4 * lanes) * (4 * lanes);
    const auto element = dtype_bytes(scores.dtype);
    const bool small = scores.size() < (1 << 16);
    std::atomic<bool> out_of_memory{false};
    parallel_for(small ? 1 : usable_threads(default_threads()), count * strips, [&](std::int64_t task, int) {
        const std::unique_ptr<double[]> strip(new (std::nothrow) double[static_cast<std::size_t>(4 * width)]);
        if (!strip) {
            out_of_memory = true;
            return;
        }
        const std::int64_t matrix = task / strips, first = task % strips * 4,
                           here = rows - first < 4 ? rows - first : 4;
        const std::byte* source = static_cast<const std::byte*>(scores.data) +
                                  (last == 2 ? matrix * scores.strides[0] * element : 0) +
                                  first * scores.strides[last - 1] * element;
        auto* out = static_cast<std::uint8_t*>(mask.data) + (matrix * rows + first) * cols;
        for (std::int64_t row = 0; row < 4; ++row)
            for (std::int64_t k = 0; k < width; ++k)
                strip[static_cast<std::size_t>(row * width + k)] =
                    row < here && k < cols
                        ? magnitude(source + (row * scores.strides[last - 1] + k * scores.strides[last]) * element,
                                    scores.dtype)
                    : transposable ? 0.0
                                   : -1.0;
        if (transposable) return mask_strip(strip.get(), width, here, cols, out);
        for (std::int64_t row = 0; row < here; ++row) mask_row(strip.get() + row * width, cols, out + row * cols);
    });
    if (out_of_memory) return {StatusCode::out_of_memory, "mask24: no memory for four rows of scores"};
    return {};
}

}  // namespace fastffn
