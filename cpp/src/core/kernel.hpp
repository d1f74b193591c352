// The seam between layers and formats: what a format must do, per instruction set.
//
// A layer owns loops, tiles, threads, activation and combine. A format turns rows of activations into the form its
// inner loop eats (prepare), and multiplies prepared rows by blocks of 16 output columns, called panels, into an f32
// tile (multiply). Both are noexcept, allocate nothing and trust their arguments.
//
// Kernel files are compiled with their own instruction-set flags. This header is safe there: plain structs only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastffn {

enum class DType : std::uint8_t;
enum class Isa : int;

constexpr std::int64_t panel_columns = 16;  // one AVX-512 register of f32, one AMX tile row of int32

namespace {  // as in every header that kernel files include: no weak symbols compiled with their flags

constexpr std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}
constexpr std::int64_t divide_up(std::int64_t value, std::int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace

// One matrix of a packed stack.
struct MatrixView {
    const std::byte* payload;  // no alignment promised
    std::int64_t out_features;
    std::int64_t in_features;
    std::uint32_t flags;          // as in the packed header
    std::uint32_t parameters[2];  // as in the packed header
    // Columns that the panels were packed with, where this is a view of some of them; 0: in_features.
    std::int64_t packed_features = 0;
};

namespace {
inline std::int64_t packed_columns(const MatrixView& matrix) {
    return matrix.packed_features ? matrix.packed_features : matrix.in_features;
}
inline std::int64_t panels_of(const MatrixView& matrix) { return divide_up(matrix.out_features, panel_columns); }
}  // namespace

// Rows [row0, row0 + rows) and columns [col0, col0 + cols) of a [total_rows, depth] matrix, to be brought into prepared
// form. `src` is the first of these elements. col0 is a multiple of 16, and so is cols unless it reaches depth. Calls on several
// threads share no 16 rows (multiples of 16 on) of the same columns.
struct PrepareArgs {
    const std::byte* src;
    DType dtype;              // f32, f16 or bf16
    std::int64_t src_stride;  // bytes from row to row
    std::int64_t rows, cols;
    std::int64_t row0, col0;
    std::int64_t total_rows, depth;
    std::byte* prepared;       // 64-byte aligned, prepared_bytes(total_rows, matrix)
    const MatrixView* matrix;  // that the rows will be multiplied with; depth is its in_features
};

// tile[r][c] = Σ_k prepared[row0 + r][k] · w[first_panel * 16 + c][k] for r < rows, c < panels * 16.
// Columns past out_features are written with anything.
struct MultiplyArgs {
    MatrixView matrix;
    const std::byte* prepared;
    std::int64_t total_rows;  // as given to prepare
    std::int64_t row0, rows;
    std::int64_t first_panel, panels;
    float* tile;               // 64-byte aligned; many rows: room for whole blocks of 16 rows, the surplus is scratch
    std::int64_t tile_stride;  // floats from row to row, a multiple of 16
};

// values[i] = Σ_k prepared[row][k] · w[columns[i]][k], bit for bit what multiply writes there, for i < count.
struct DotRowsArgs {
    MatrixView matrix;
    const std::byte* prepared;
    std::int64_t total_rows, row;
    const std::int32_t* columns;
    std::int64_t count;
    float* values;
};

struct FormatKernels {
    const char* name;  // "bf16/avx512bf16": what ran, for reports and tests
    // Few rows are bound by reading weights: up to this many, tasks are long runs of panels; more are tiled.
    std::int64_t few_rows;
    // Panels per task when there are many rows.
    std::int64_t block_panels;
    // True when prepare must see whole rows (a scale per row): the layer then keeps the hidden rows until all is known.
    bool whole_rows;
    // True when prepared rows depend on the weights themselves (a low-rank factor): rows_serve_both() is then false. What
    // they may depend on otherwise: the depth, flags and parameters of the matrix.
    bool own_rows;
    // Bytes of one prepared element of the reduction dimension, for sizing token tiles.
    std::int64_t element_bytes;

    std::int64_t (*prepared_bytes)(std::int64_t total_rows, const MatrixView& matrix) noexcept;
    void (*prepare)(const PrepareArgs& args) noexcept;
    void (*multiply)(const MultiplyArgs& args) noexcept;

    // Bytes of a panel per column of the reduction dimension, where columns from a multiple of 64 on are a view of their
    // own (MatrixView::packed_features); 0: the format has no such views.
    std::int64_t column_bytes = 0;

    // Single output columns of one row, for routes that pick neurons; nullptr: the layout keeps no column's weights together.
    void (*dot_rows)(const DotRowsArgs& args) noexcept = nullptr;

    // Where rows are few, tasks begin and end at multiples of this many panels, and where it is not 1 they are as long as the
    // threads and their tiles allow: the layout keeps the weights of many panels together.
    std::int64_t panel_multiple = 1;
};

namespace {
// Whether rows prepared for one matrix serve the other of the same depth too, as gate and up of a layer mostly let them.
inline bool rows_serve_both(const FormatKernels& a, const MatrixView& matrix_a, const FormatKernels& b,
                            const MatrixView& matrix_b) {
    return &a == &b && !a.own_rows && matrix_a.flags == matrix_b.flags &&
           matrix_a.parameters[0] == matrix_b.parameters[0] && matrix_a.parameters[1] == matrix_b.parameters[1];
}
}  // namespace

}  // namespace fastffn
