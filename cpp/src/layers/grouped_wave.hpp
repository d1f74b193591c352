// Waves: as many groups at a time as the workspace has room for prepared rows, and how their products split into tasks.
#pragma once

#include <cstdint>

#include "layers/grouped_sort.hpp"

namespace fastffn {

// A worker's f32 tile of few rows spans at most this many columns: 16 rows of 1024 columns are 64 KiB.
constexpr std::int64_t longest_run_panels = 64;
// Rows of one task: as the dense engine's token tile, more gain nothing.
constexpr std::int64_t largest_task_rows = 256;

// Few tokens keep their sums row by row, many panel by panel: each panel of all tokens is then one range of lines.
constexpr std::int64_t row_major_tokens = 16;

// Where the f32 sums of a token tile lie.
struct SumsLayout {
    std::int64_t token_stride, panel_stride;  // floats

    SumsLayout(std::int64_t tokens, std::int64_t panels)
        : token_stride(tokens <= row_major_tokens ? panels * panel_columns : panel_columns),
          // One line more than a power of two, so that the panels of a token fall into different cache sets.
          panel_stride(tokens <= row_major_tokens ? panel_columns : (tokens + 1) * panel_columns) {}
    static std::int64_t bytes(std::int64_t tokens, std::int64_t panels) {
        return (tokens + (tokens <= row_major_tokens ? 0 : 1)) * panels * panel_columns * 4;
    }
};

// Rows of one group within a wave.
struct Batch {
    const GroupStack* stack;
    std::int64_t index;             // of the group in its stack
    std::int64_t first_pick, rows;  // among the sorted picks
    std::int64_t padded_row;        // rows of the batches before, each padded to 16: tasks of preparing split there
    std::int64_t prepared_x, prepared_x_gate, prepared_hidden, hidden;  // offsets in bytes
    // How up and gate split into tasks. A bundle of small batches is one task of the first of them.
    std::int64_t first_task, bundle;
    std::int64_t panels_per_task, row_splits, rows_per_split;
};

struct Wave {
    Batch* batches = nullptr;
    std::int64_t count = 0;
    std::int64_t padded_rows = 0, rows_per_prepare = 0;  // of a task of preparing; a multiple of 16
    std::int64_t hidden_tasks = 0;
    std::int64_t slab_panels = 0;  // of an output task
    bool keeps_rows = false;       // some hidden rows wait in f32 until they are whole
    int threads = 1;
};

// Where the next wave begins.
struct WaveStart {
    std::int64_t active = 0, pick = 0;  // the active group, and which of its picks
};

// Fills `wave` from `start` on and moves it; false when nothing is left. What a wave holds depends on the routing and the
// plan's sizes, never on the number of threads.
bool next_wave(const GroupedLayer& layer, const GroupedPlan& plan, const SortedPicks& picks, WaveStart* start,
               Wave* wave) noexcept;

// What the rows of a stack take.
bool two_forms(const GroupStack& stack) noexcept;              // up and gate eat different prepared rows
bool keeps_rows(const GroupStack& stack) noexcept;             // the hidden rows must be whole before they are prepared
std::int64_t hidden_stride(const GroupStack& stack) noexcept;  // floats

}  // namespace fastffn
