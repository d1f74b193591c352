// lowrank behind the seam: prepare computes p = x · uᵀ with the factors' own kernels and leaves p in their prepared form, multiply
// runs the panels of v. So any layer can use a packed pair; linear and ffn do better (layers/lowrank.hpp).
//
// Prepared: [p as the factors' kernels want it, total_rows][p in f32, total_rows].
#include <string>
#include <utility>

#include "formats/lowrank/layout.hpp"

namespace fastffn {

namespace {

// Rows that share one reading of u: u streams from L2 or L3, and with 32 rows a byte of bf16 is used 32 times.
constexpr std::int64_t rows_together = 32;
// Prepared rows of one block of u, on the stack: 32 rows of 256 f32, each with a line of padding, and a scale per row.
constexpr std::int64_t prepared_limit = rows_together * (lowrank_block * 4 + 128);
// Panels of u per product.
constexpr std::int64_t panels_together = 4;

std::int64_t sums_stride(std::int64_t rank) { return round_up(rank, panel_columns); }

// p += x · uᵀ for up to 32 rows.
void project(const FormatKernels& kernels, const LowRankView& view, const PrepareArgs& a, std::int64_t row0,
             std::int64_t rows, float* sums, std::int64_t stride) noexcept {
    alignas(64) std::byte prepared[prepared_limit];
    alignas(64) float tile[rows_together * panels_together * panel_columns];
    // The kernels sum in another order where there are few rows. Which one must not depend on how rows come to be together here.
    const std::int64_t total = a.total_rows <= kernels.few_rows ? rows : rows_together;
    const std::int64_t element = a.dtype == DType::f32 ? 4 : 2;
    const std::int64_t panels = divide_up(view.rank, panel_columns);
    for (std::int64_t block = 0; block < view.blocks(); ++block) {
        const MatrixView inner = view.inner(block);
        kernels.prepare({a.src + row0 * a.src_stride + block * lowrank_block * element, a.dtype, a.src_stride, rows,
                         inner.in_features, 0, 0, total, inner.in_features, prepared, &inner});
        for (std::int64_t p = 0; p < panels; p += panels_together) {
            const std::int64_t count = panels - p < panels_together ? panels - p : panels_together;
            const std::int64_t cols = count * panel_columns;
            kernels.multiply({inner, prepared, total, 0, rows, p, count, tile, cols});
            for (std::int64_t r = 0; r < rows; ++r) {
                float* to = sums + r * stride + p * panel_columns;
                const float* from = tile + r * cols;
                if (block == 0)
                    for (std::int64_t c = 0; c < cols; ++c) to[c] = from[c];
                else
                    for (std::int64_t c = 0; c < cols; ++c) to[c] += from[c];
            }
        }
    }
}

template <const FormatDefinition& factors, int level>
struct Seam {
    static const FormatKernels& kernels() noexcept { return format_kernels(factors, static_cast<Isa>(level)); }

    static std::int64_t outer_bytes(std::int64_t total_rows, const LowRankView& view) noexcept {
        return round_up(kernels().prepared_bytes(total_rows, view.outer()), 64);
    }

    static std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
        const LowRankView view = lowrank_view(matrix);
        return outer_bytes(total_rows, view) + total_rows * sums_stride(view.rank) * 4;
    }

    static void prepare(const PrepareArgs& a) noexcept {
        const LowRankView view = lowrank_view(*a.matrix);
        const MatrixView outer = view.outer();
        const std::int64_t stride = sums_stride(view.rank);
        auto* sums = reinterpret_cast<float*>(a.prepared + outer_bytes(a.total_rows, view)) + a.row0 * stride;
        for (std::int64_t row = 0; row < a.rows; row += rows_together) {
            const std::int64_t rows = a.rows - row < rows_together ? a.rows - row : rows_together;
            float* own = sums + row * stride;
            project(kernels(), view, a, row, rows, own, stride);
            kernels().prepare({reinterpret_cast<const std::byte*>(own), DType::f32, stride * 4, rows, view.rank,
                               a.row0 + row, 0, a.total_rows, view.rank, a.prepared, &outer});
        }
    }

    static void multiply(const MultiplyArgs& a) noexcept {
        MultiplyArgs outer = a;
        outer.matrix = lowrank_view(a.matrix).outer();
        kernels().multiply(outer);
    }
};

struct Table {
    std::string names[isa_count];
    FormatKernels kernels[isa_count];
    const FormatKernels* pointers[isa_count];
};

template <const FormatDefinition& factors, int level>
void fill_level(Table& table) {
    using Own = Seam<factors, level>;
    const FormatKernels& dense = Own::kernels();
    table.names[level] = std::string("lowrank/") + dense.name;
    table.kernels[level] = {
        table.names[level].c_str(),
        dense.few_rows,
        dense.block_panels,
        true,  // x · uᵀ takes whole rows
        true,
        dense.element_bytes,
        Own::prepared_bytes,
        Own::prepare,
        Own::multiply,
    };
    table.pointers[level] = &table.kernels[level];
}

template <const FormatDefinition& factors, int... levels>
const FormatKernels* const* table_of(std::integer_sequence<int, levels...>) {
    static const Table* const table = [] {
        auto* filled = new Table;  // for good: calls may outlive static objects
        (fill_level<factors, levels>(*filled), ...);
        return filled;
    }();
    return table->pointers;
}

}  // namespace

const FormatKernels* const* lowrank_kernels(Format factors) noexcept {
    constexpr auto levels = std::make_integer_sequence<int, isa_count>();
    switch (factors) {
        case Format::f32: return table_of<f32_format>(levels);
        case Format::f16: return table_of<f16_format>(levels);
        case Format::int8: return table_of<int8_format>(levels);
        default: return table_of<bf16_format>(levels);
    }
}

}  // namespace fastffn
