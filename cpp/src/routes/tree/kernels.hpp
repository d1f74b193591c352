// What a tree needs per instruction set: dots of tokens with node rows, and weighted sums of rows.
//
// Kernel files are compiled with their own instruction-set flags. This header is safe there: plain structs only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/kernel.hpp"

namespace fastffn {

enum class Format : std::uint8_t;

// Walkers whose dots run side by side: four rows in flight hide most of a cache's latency.
constexpr std::int64_t dots_at_once = 4;

// z[i] = Σ_c x[i][c] · row(i)[c] for i < count. x rows are f32 and readable, with zeros, up to a multiple of 16 past
// `depth`; node rows are zero padded to whole cache lines. Every dot is summed in one order, whoever runs beside it.
struct DotArgs {
    const float* const* x;         // count rows
    const std::byte* const* rows;  // count rows; one where the row is shared
    std::int64_t depth, count;
    float* z;
    const std::byte* const* ahead;  // count places that will be read soon, for this many bytes; or nullptr
    std::int64_t ahead_bytes;
};

// One row of a weighted sum.
struct Term {
    const std::byte* row;
    float weight;
};

// y[i][c] = (add ? y[i][c] : 0) + Σ_j terms[j].weight · terms[j].row[c], j in [begin[i], begin[i + 1]) ascending, for i < count
// and col0 <= c < col0 + cols; col0 a multiple of 16.
struct SumArgs {
    const Term* terms;
    const std::int32_t* begin;  // count + 1
    std::byte* const* y;        // count rows, no alignment promised
    DType dtype;
    std::int64_t count, col0, cols;
    bool add;                       // f32 only
    bool stream;                    // y is not read soon: past the caches where it is aligned
    const std::byte* const* ahead;  // as DotArgs
    std::int64_t ahead_bytes;
};

struct TreeKernels {
    const char* name;
    // By Format - 1: f32, f16, bf16, int8. dot_each: a row per token, count <= dots_at_once.
    void (*dot_each[4])(const DotArgs& args) noexcept;
    void (*dot_shared[4])(const DotArgs& args) noexcept;
    void (*sum[4])(const SumArgs& args) noexcept;
    // A row of x as DotArgs wants it: `cols` elements as f32, then zeros up to a multiple of 16.
    void (*widen)(const std::byte* src, DType dtype, std::int64_t cols, float* dst) noexcept;
};

const TreeKernels& tree_kernels(Isa isa) noexcept;

namespace ref {
extern const TreeKernels tree;
}
namespace avx2 {
extern const TreeKernels tree;
}
namespace avx512 {
extern const TreeKernels tree;
}

}  // namespace fastffn
