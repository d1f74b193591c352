// Masks and checks of 2:4 sparsity. Plain loops over lanes that every compiler vectorises: the exact search of transposable
// masks is 280 additions and comparisons per 4×4 block, less than reading it from memory costs on a few cores.
#include "fastffn/sparse24.hpp"

#include <cmath>
#include <cstring>
#include <string>

#include "core/convert.hpp"
#include "core/overlap.hpp"
#include "core/parallel.hpp"
#include "fastffn/context.hpp"

namespace fastffn {

namespace {

// Scores as matrices: strides in bytes.
struct Matrices {
    const std::byte* data;
    DType dtype;
    std::int64_t count, rows, cols;
    std::int64_t matrix_stride, row_stride, col_stride;

    std::int64_t groups() const { return (cols + 3) / 4; }
    const std::byte* row(std::int64_t matrix, std::int64_t r) const {
        return data + matrix * matrix_stride + r * row_stride;
    }
};

Status open(const char* operation, const char* name, const TensorView& w, Matrices* m) {
    auto fail = [&](const std::string& text) {
        return Status(StatusCode::invalid_argument, std::string(operation) + ": " + name + " has " + text);
    };
    if (w.ndim != 2 && w.ndim != 3)
        return fail("shape " + w.shape_string() + ", expected [rows, cols] or [count, rows, cols]");
    if (w.dtype != DType::f32 && w.dtype != DType::f16 && w.dtype != DType::bf16 && w.dtype != DType::f64)
        return fail(std::string("dtype ") + dtype_name(w.dtype) + ", expected f32, f16, bf16 or f64");
    if (w.size() > 0 && !w.data) return fail("no data");
    const std::int64_t element = dtype_bytes(w.dtype);
    const int rows_dim = w.ndim - 2;
    *m = {static_cast<const std::byte*>(w.data),
          w.dtype,
          w.ndim == 3 ? w.shape[0] : 1,
          w.shape[rows_dim],
          w.shape[rows_dim + 1],
          w.ndim == 3 ? w.strides[0] * element : 0,
          w.strides[rows_dim] * element,
          w.strides[rows_dim + 1] * element};
    return {};
}

// The magnitude that scores are compared by; sums of four of the largest stay finite.
constexpr float largest_score = 4e37f;
float magnitude(float score) {
    const float absolute = std::fabs(score);
    return absolute <= largest_score ? absolute : largest_score;  // NaN too
}

template <DType dtype>
float read(const std::byte* at) {
    if constexpr (dtype == DType::f64) {
        double value;
        std::memcpy(&value, at, 8);
        const double absolute = std::fabs(value);
        return absolute <= largest_score ? static_cast<float>(absolute) : largest_score;
    } else {
        return load_f32(at, dtype);
    }
}

// `cols` magnitudes of a row, the last group filled up with zeros.
template <DType dtype>
void read_row(const std::byte* src, std::int64_t stride, std::int64_t begin, std::int64_t cols, float* out) {
    constexpr std::int64_t element = dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2;
    src += begin * stride;
    if (stride == element)
        for (std::int64_t k = 0; k < cols; ++k) out[k] = magnitude(read<dtype>(src + k * element));
    else
        for (std::int64_t k = 0; k < cols; ++k) out[k] = magnitude(read<dtype>(src + k * stride));
}
void read_row(const Matrices& m, std::int64_t matrix, std::int64_t row, std::int64_t begin, std::int64_t cols,
              float* out) {
    const std::byte* src = m.row(matrix, row);
    switch (m.dtype) {
        case DType::f64: return read_row<DType::f64>(src, m.col_stride, begin, cols, out);
        case DType::f32: return read_row<DType::f32>(src, m.col_stride, begin, cols, out);
        case DType::f16: return read_row<DType::f16>(src, m.col_stride, begin, cols, out);
        default: return read_row<DType::bf16>(src, m.col_stride, begin, cols, out);
    }
}

// Columns that are worked on at a time: scores of four rows are 16 KiB.
constexpr std::int64_t strip = 1024;

// Two of four: a score is kept when fewer than two beat it. Of equal ones the lower index wins.
void keep_largest(const float* scores, std::int64_t groups, std::uint8_t* mask) {
    for (std::int64_t g = 0; g < groups; ++g) {
        const float a = scores[4 * g], b = scores[4 * g + 1], c = scores[4 * g + 2], d = scores[4 * g + 3];
        const int ba = b > a, ca = c > a, da = d > a, cb = c > b, db = d > b, dc = d > c;
        mask[4 * g] = ba + ca + da < 2;
        mask[4 * g + 1] = !ba + cb + db < 2;
        mask[4 * g + 2] = !ca + !cb + dc < 2;
        mask[4 * g + 3] = !da + !db + !dc < 2;
    }
}

// The six ways to keep two of four columns, as bits, ascending.
constexpr int pair_count = 6;
constexpr std::uint8_t pair_bits[pair_count] = {0x3, 0x5, 0x6, 0x9, 0xA, 0xC};

struct Patterns {
    std::uint16_t bits[pattern24_count] = {};
    std::uint8_t halves[pattern24_count][2] = {};  // 6 · the pair that row 0 (2) keeps + the pair of row 1 (3)
};
constexpr Patterns make_patterns() {
    Patterns all;
    int count = 0;
    // Row 3 holds the highest bits, so its pairs vary slowest.
    for (int r3 = 0; r3 < pair_count; ++r3)
        for (int r2 = 0; r2 < pair_count; ++r2)
            for (int r1 = 0; r1 < pair_count; ++r1)
                for (int r0 = 0; r0 < pair_count; ++r0) {
                    bool balanced = true;
                    for (int column = 0; column < 4; ++column)
                        balanced = balanced && (pair_bits[r0] >> column & 1) + (pair_bits[r1] >> column & 1) +
                                                       (pair_bits[r2] >> column & 1) + (pair_bits[r3] >> column & 1) ==
                                                   2;
                    if (!balanced) continue;
                    all.bits[count] = static_cast<std::uint16_t>(pair_bits[r0] | pair_bits[r1] << 4 |
                                                                 pair_bits[r2] << 8 | pair_bits[r3] << 12);
                    all.halves[count][0] = static_cast<std::uint8_t>(r0 * pair_count + r1);
                    all.halves[count][1] = static_cast<std::uint8_t>(r2 * pair_count + r3);
                    ++count;
                }
    return all;
}
constexpr Patterns patterns = make_patterns();
static_assert(patterns.bits[pattern24_count - 1] != 0, "there are exactly 90");

// Blocks side by side in the lanes of a vector.
constexpr int lanes = 16;

// The best patterns of `lanes` blocks; scores: 4 rows of 4 · lanes columns, `stride` apart.
void best_patterns(const float* scores, std::int64_t stride, std::int32_t* best) {
    float pairs[4][pair_count][lanes];
    for (int r = 0; r < 4; ++r) {
        float column[4][lanes];
        for (int i = 0; i < lanes; ++i)
            for (int c = 0; c < 4; ++c) column[c][i] = scores[r * stride + 4 * i + c];
        constexpr int first[pair_count] = {0, 0, 1, 0, 1, 2}, second[pair_count] = {1, 2, 2, 3, 3, 3};
        for (int p = 0; p < pair_count; ++p)
            for (int i = 0; i < lanes; ++i) pairs[r][p][i] = column[first[p]][i] + column[second[p]][i];
    }
    // A pattern is two rows above two rows: 72 sums serve all 90, each with one addition.
    float halves[2][pair_count * pair_count][lanes];
    for (int h = 0; h < 2; ++h)
        for (int p = 0; p < pair_count; ++p)
            for (int q = 0; q < pair_count; ++q)
                for (int i = 0; i < lanes; ++i)
                    halves[h][p * pair_count + q][i] = pairs[2 * h][p][i] + pairs[2 * h + 1][q][i];
    float largest[lanes];
    for (int i = 0; i < lanes; ++i) {
        largest[i] = -1;
        best[i] = 0;
    }
    for (int p = 0; p < pattern24_count; ++p) {
        const float *above = halves[0][patterns.halves[p][0]], *below = halves[1][patterns.halves[p][1]];
        for (int i = 0; i < lanes; ++i) {
            const float sum = above[i] + below[i];
            const bool better = sum > largest[i];  // ties keep the earlier one
            largest[i] = better ? sum : largest[i];
            best[i] = better ? p : best[i];
        }
    }
}

void keep_transposable(const Matrices& m, std::int64_t matrix, std::int64_t row0, std::uint8_t* mask) {
    float scores[4 * strip];
    const std::int64_t rows = m.rows - row0 < 4 ? m.rows - row0 : 4;
    for (std::int64_t begin = 0; begin < m.cols; begin += strip) {
        const std::int64_t cols = m.cols - begin < strip ? m.cols - begin : strip;
        std::memset(scores, 0, sizeof scores);
        for (std::int64_t r = 0; r < rows; ++r) read_row(m, matrix, row0 + r, begin, cols, scores + r * strip);
        for (std::int64_t block = 0; 4 * block < cols; block += lanes) {
            std::int32_t best[lanes];
            best_patterns(scores + 4 * block, strip, best);
            for (std::int64_t i = 0; i < lanes; ++i)
                for (std::int64_t r = 0; r < rows; ++r) {
                    const std::int64_t col = 4 * (block + i);
                    const std::uint32_t bits = patterns.bits[best[i]] >> (4 * r);
                    std::uint8_t* out = mask + (row0 + r) * m.cols + begin + col;
                    for (std::int64_t c = 0; c < 4 && col + c < cols; ++c) out[c] = bits >> c & 1;
                }
        }
    }
}

template <DType dtype>
void count_row(const std::byte* src, std::int64_t stride, std::int64_t cols, std::int64_t* counts,
               std::int64_t* first) {
    auto nonzero = [&](std::int64_t k) -> int {
        if constexpr (dtype == DType::f64) {
            double value;
            std::memcpy(&value, src + k * stride, 8);
            return !(value == 0);
        } else if constexpr (dtype == DType::f32) {
            std::uint32_t bits;
            std::memcpy(&bits, src + k * stride, 4);
            return (bits << 1) != 0;
        } else {
            std::uint16_t bits;
            std::memcpy(&bits, src + k * stride, 2);
            return (bits & 0x7fff) != 0;
        }
    };
    const std::int64_t whole = cols / 4;
    for (std::int64_t g = 0; g < whole; ++g) {
        const int found = nonzero(4 * g) + nonzero(4 * g + 1) + nonzero(4 * g + 2) + nonzero(4 * g + 3);
        ++counts[found];
        if (found > 2 && *first < 0) *first = g;
    }
    if (whole * 4 == cols) return;
    int found = 0;
    for (std::int64_t k = whole * 4; k < cols; ++k) found += nonzero(k);
    ++counts[found];
    if (found > 2 && *first < 0) *first = whole;
}

int threads_for(std::int64_t elements) { return elements < (1 << 16) ? 1 : usable_threads(default_threads()); }

}  // namespace

const std::uint16_t* patterns24() noexcept { return patterns.bits; }

Status mask24(const TensorView& scores, Mask24 kind, const TensorView& mask) {
    Matrices m;
    if (Status status = open("mask24", "scores", scores, &m); !status.ok()) return status;
    bool same = mask.ndim == scores.ndim && mask.dtype == DType::u8;
    std::int64_t stride = 1;
    for (int i = mask.ndim - 1; same && i >= 0; --i) {
        same = mask.shape[i] == scores.shape[i] && (mask.shape[i] <= 1 || mask.strides[i] == stride);
        stride *= mask.shape[i];
    }
    if (!same)
        return {StatusCode::invalid_argument, "mask24: mask is " + std::string(dtype_name(mask.dtype)) + " of shape " +
                                                  mask.shape_string() + ", expected contiguous u8 of shape " +
                                                  scores.shape_string()};
    if (scores.size() == 0) return {};
    if (!mask.data) return {StatusCode::invalid_argument, "mask24: mask has no data"};
    if (may_overlap(mask, scores))
        return {StatusCode::invalid_argument, "mask24: mask and scores share a range of memory"};
    auto* out = static_cast<std::uint8_t*>(mask.data);
    const std::int64_t per_matrix = (m.rows + 3) / 4;
    parallel_for(threads_for(scores.size()), m.count * per_matrix, [&](std::int64_t task, int) {
        const std::int64_t matrix = task / per_matrix, row0 = task % per_matrix * 4;
        std::uint8_t* matrix_out = out + matrix * m.rows * m.cols;
        if (kind == Mask24::transposable) return keep_transposable(m, matrix, row0, matrix_out);
        float row_scores[strip];
        std::uint8_t row_mask[strip];
        for (std::int64_t row = row0; row < row0 + 4 && row < m.rows; ++row)
            for (std::int64_t begin = 0; begin < m.cols; begin += strip) {
                const std::int64_t cols = m.cols - begin < strip ? m.cols - begin : strip, groups = (cols + 3) / 4;
                // Columns past the end never win against real ones: these are at least 0.
                for (std::int64_t k = cols; k < 4 * groups; ++k) row_scores[k] = -1;
                read_row(m, matrix, row, begin, cols, row_scores);
                keep_largest(row_scores, groups, row_mask);
                std::memcpy(matrix_out + row * m.cols + begin, row_mask, static_cast<std::size_t>(cols));
            }
    });
    return {};
}

Status check24(const TensorView& w, Check24* result) {
    Matrices m;
    if (Status status = open("check24", "w", w, &m); !status.ok()) return status;
    *result = {};
    if (w.size() == 0) return {};
    // One worker's share is a run of rows, so that the first fault and the counts need no order.
    constexpr std::int64_t most_tasks = 64;
    const std::int64_t rows = m.count * m.rows, tasks = rows < most_tasks ? rows : most_tasks;
    struct Part {
        std::int64_t counts[5] = {};
        std::int64_t row = -1, group = -1;
    };
    Part parts[most_tasks];
    parallel_for(threads_for(w.size()), tasks, [&](std::int64_t task, int) {
        Part part;
        for (std::int64_t i = rows * task / tasks; i < rows * (task + 1) / tasks; ++i) {
            const std::byte* src = m.row(i / m.rows, i % m.rows);
            std::int64_t first = -1;
            switch (m.dtype) {
                case DType::f64: count_row<DType::f64>(src, m.col_stride, m.cols, part.counts, &first); break;
                case DType::f32: count_row<DType::f32>(src, m.col_stride, m.cols, part.counts, &first); break;
                default: count_row<DType::bf16>(src, m.col_stride, m.cols, part.counts, &first);
            }
            if (first >= 0 && part.row < 0) {
                part.row = i;
                part.group = first;
            }
        }
        parts[task] = part;
    });
    for (std::int64_t task = 0; task < tasks; ++task) {
        for (int i = 0; i < 5; ++i) result->groups_with[i] += parts[task].counts[i];
        if (parts[task].row >= 0 && result->ok()) {
            result->matrix = parts[task].row / m.rows;
            result->row = parts[task].row % m.rows;
            result->group = parts[task].group;
        }
    }
    return {};
}

}  // namespace fastffn
