// The inner loops of every plain format, written once for AVX2 and AVX-512.
//
//   few rows   one panel at a time, its whole depth, several accumulators per row: each packed byte is read once, in order
//   many rows  blocks of 6 rows × `block_registers` registers of columns (AVX-512: 4 panels, 24 accumulators; AVX2: one
//              panel, 12). Per step AVX-512 loads 4 weights and 6 activations for 24 multiply-adds, so two loads a cycle
//              keep two multiply-adds a cycle busy. The reduction runs in chunks whose weights stay in L1 while all rows
//              pass over them; partial sums wait in the f32 (or int32) tile meanwhile.
//
// A Dot says what one multiply-add is (see registers_avx512.hpp, registers_avx2.hpp): Register, Acc, zero, load_acc,
// store_acc, sum, load_weights, broadcast, dot, register_bytes, block_registers, few_unroll, few_panels. A dot eats a word of
// the row, word_bytes wide (4, unless a Dot says otherwise), and Weights: what load(panel, k, part) makes of the k-th
// weight_bytes (64) of a panel for one of its registers of columns.
// An Op says how a format's packed bytes reach it:
//   row_words        prepared words that a step consumes
//   step_bytes       packed bytes of a panel that a step consumes
//   step(acc, words, weights)       one step of one register of columns, straight from packed bytes
//   Native           the Dot for many rows
//   expands, expand(weights, steps, expanded)   packed bytes of one panel → weight_bytes per word, where Native needs that
//   Direct           the Dot that reads packed bytes as they are; up to direct_blocks blocks of rows share too few reads of an
//                    expanded chunk to pay for it. Native itself where there is no other.
//   few_rows         up to so many rows read panels front to back; 0: blocks at any number of rows, and no step()
// Sums of one output run over the depth in the same order for any number of threads.
#pragma once

#include <immintrin.h>

#include "core/fetch.hpp"
#include "core/kernel.hpp"
#include "formats/common/words.hpp"

namespace fastffn {
namespace {

constexpr int block_rows = 6;

// Lines that a fetch takes: as many as a word meets, so that one fetch per word always keeps up.
template <class Dot>
constexpr int fetch_lines = static_cast<int>(Dot::weight_bytes / 64);

// Packed bytes that a block fetches into L2 for the chunk after its own: fetch_lines of every panel each `every` words.
// Without this a chunk from memory arrives while nothing is multiplied: 16 rows of 4096×11008 took twice as long.
struct Ahead {
    const std::byte* lines;
    std::int64_t panel_bytes;
    std::int64_t every;
};

// rows × registers of one chunk, weights at weight_bytes per word and panel.
template <class Dot, int rows, int registers>
void block(const std::byte* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_panel, std::int64_t words,
           float* tile, std::int64_t tile_stride, bool continues, Ahead ahead) {
    constexpr int per_panel = 64 / Dot::register_bytes, lanes = Dot::register_bytes / 4;
    typename Dot::Acc acc[rows][registers];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < registers; ++i) acc[r][i] = Dot::zero();
    std::int64_t until_fetch = ahead.every;
    for (std::int64_t k = 0; k < words; ++k) {
        if (--until_fetch == 0) {
            until_fetch = ahead.every;
#pragma GCC unroll 4
            for (int i = 0; i < registers / per_panel; ++i)
#pragma GCC unroll 4
                for (int line = 0; line < fetch_lines<Dot>; ++line)
                    _mm_prefetch(reinterpret_cast<const char*>(ahead.lines + i * ahead.panel_bytes + line * 64),
                                 _MM_HINT_T1);
            ahead.lines += 64 * fetch_lines<Dot>;
        }
        typename Dot::Weights weights[registers];
#pragma GCC unroll 4
        for (int i = 0; i < registers; ++i) weights[i] = Dot::load(b + i / per_panel * b_panel, k, i % per_panel);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            const typename Dot::Register word = Dot::broadcast(a + r * a_stride + k * Dot::word_bytes);
#pragma GCC unroll 4
            for (int i = 0; i < registers; ++i) acc[r][i] = Dot::dot(acc[r][i], word, weights[i]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < registers; ++i) {
            float* sums = tile + r * tile_stride + i * lanes;
            // Each chunk sums from zero and joins the others at the end: half the rounding error of one long chain.
            Dot::store_acc(sums, continues ? Dot::sum(Dot::load_acc(sums), acc[r][i]) : acc[r][i]);
        }
}

using BlockFunction = void (*)(const std::byte*, std::int64_t, const std::byte*, std::int64_t, std::int64_t, float*,
                               std::int64_t, bool, Ahead);

template <class Dot, int registers>
BlockFunction block_of_rows(std::int64_t rows) {
    constexpr BlockFunction functions[block_rows] = {block<Dot, 1, registers>, block<Dot, 2, registers>,
                                                     block<Dot, 3, registers>, block<Dot, 4, registers>,
                                                     block<Dot, 5, registers>, block<Dot, 6, registers>};
    return functions[rows - 1];
}

template <class Dot>
BlockFunction block_of(std::int64_t rows, std::int64_t panels) {
    constexpr int per_panel = 64 / Dot::register_bytes;
    if constexpr (Dot::block_registers > per_panel) {
        switch (panels) {
            case 1: return block_of_rows<Dot, per_panel>(rows);
            case 2: return block_of_rows<Dot, 2 * per_panel>(rows);
            case 3: return block_of_rows<Dot, 3 * per_panel>(rows);
            default: break;
        }
    }
    return block_of_rows<Dot, Dot::block_registers>(rows);
}

// One or two panels, their whole depth, for a few rows. `unroll` accumulators per row and register hide the latency of a
// step; it depends on the rows alone, so that a sum does not depend on which panels a task holds.
template <class Op, int rows, int panels>
void run_panels(const std::byte* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_panel, std::int64_t steps,
                float* tile, std::int64_t tile_stride, bool fetches) {
    constexpr int per_panel = 64 / Op::register_bytes, registers = panels * per_panel;
    constexpr int unroll = Op::few_unroll(rows);
    constexpr std::int64_t register_step = Op::step_bytes / per_panel;
    typename Op::Acc acc[rows][registers][unroll];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int i = 0; i < registers; ++i)
#pragma GCC unroll 4
            for (int u = 0; u < unroll; ++u) acc[r][i][u] = Op::zero();
    auto step = [&](std::int64_t k, int u) __attribute__((always_inline)) {
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
            for (int i = 0; i < registers; ++i)
                acc[r][i][u] =
                    Op::step(acc[r][i][u], a + r * a_stride + k * Op::row_words * 4,
                             b + i / per_panel * b_panel + k * Op::step_bytes + i % per_panel * register_step);
    };
    std::int64_t k = 0;
    for (; k + unroll <= steps; k += unroll) {
        if (fetches)
#pragma GCC unroll 8
            for (std::int64_t line = 0; line < unroll * Op::step_bytes; line += 64)
#pragma GCC unroll 2
                for (int p = 0; p < panels; ++p) fetch_ahead(b + p * b_panel + k * Op::step_bytes + line);
#pragma GCC unroll 4
        for (int u = 0; u < unroll; ++u) step(k + u, u);
    }
    for (; k < steps; ++k) step(k, 0);
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int i = 0; i < registers; ++i) {
#pragma GCC unroll 4
            for (int half = unroll / 2; half >= 1; half /= 2)
#pragma GCC unroll 4
                for (int u = 0; u < half; ++u) acc[r][i][u] = Op::sum(acc[r][i][u], acc[r][i][u + half]);
            Op::store_acc(tile + r * tile_stride + i * (Op::register_bytes / 4), acc[r][i][0]);
        }
}

// Up to one block of rows there is nothing to share a chunk with, and reading panels front to back is fastest: 6 rows of
// 768×3072 bf16 take 0.129 ms so and 8 rows in blocks 0.21 ms, both on one Zen 5 core.
constexpr std::int64_t few_rows_limit = 6;

// What both loops need to know of a call.
struct PanelCall {
    const std::byte* a;  // prepared rows, from row0 on
    std::int64_t a_stride;
    const std::byte* b;  // packed panels, from first_panel on
    std::int64_t panel_bytes;
    std::int64_t steps;
    std::int64_t rows, panels;
    float* tile;
    std::int64_t tile_stride;
};

template <class Op, int panels>
void run_panels_of(const PanelCall& call, std::int64_t panel, bool fetches) {
    const std::byte* b = call.b + panel * call.panel_bytes;
    float* tile = call.tile + panel * 16;
    auto run = [&](auto function) {
        function(call.a, call.a_stride, b, call.panel_bytes, call.steps, tile, call.tile_stride, fetches);
    };
    switch (call.rows) {
        case 1: return run(run_panels<Op, 1, panels>);
        case 2: return run(run_panels<Op, 2, panels>);
        case 3: return run(run_panels<Op, 3, panels>);
        case 4: return run(run_panels<Op, 4, panels>);
        case 5: return run(run_panels<Op, 5, panels>);
        default: return run(run_panels<Op, 6, panels>);
    }
}

// finish(row, rows, panel, panels): called once per region of the tile whose sums are complete.
template <class Op, class Finish>
void multiply_few(const PanelCall& call, Finish finish) {
    const bool fetches = fetches_weights();
    std::int64_t p = 0;
    // Two panels share the broadcasts of a row: for 4 rows that is 3 loads per packed line instead of 5. One row has
    // little to share, and a single stream suits the prefetchers better.
    if constexpr (Op::few_panels == 2)
        for (; call.rows > 1 && p + 2 <= call.panels; p += 2) run_panels_of<Op, 2>(call, p, fetches);
    for (; p < call.panels; ++p) run_panels_of<Op, 1>(call, p, fetches);
    finish(0, call.rows, 0, call.panels);
}

template <class Op, class Native, bool expands, class Finish>
void multiply_chunks(const PanelCall& call, Finish finish) {
    constexpr std::int64_t block_panels = Native::block_registers * Native::register_bytes / 64;
    constexpr std::int64_t step_lines = Op::row_words * Native::weight_bytes / 64;
    alignas(64) std::byte expanded[expands ? block_panels * chunk_steps * 64 : 64];
    const std::int64_t chunk = balanced_chunk(call.steps * step_lines) / step_lines;
    const std::int64_t row_blocks = divide_up(call.rows, block_rows);
    const std::int64_t base_rows = call.rows / row_blocks, longer_blocks = call.rows % row_blocks;
    for (std::int64_t p = 0; p < call.panels; p += block_panels) {
        const std::int64_t panels = call.panels - p < block_panels ? call.panels - p : block_panels;
        for (std::int64_t k = 0; k < call.steps; k += chunk) {
            const std::int64_t steps = call.steps - k < chunk ? call.steps - k : chunk;
            const std::byte* b = call.b + p * call.panel_bytes + k * Op::step_bytes;
            std::int64_t b_panel = call.panel_bytes;
            if constexpr (expands) {
                b_panel = chunk * step_lines * 64;
                for (std::int64_t i = 0; i < panels; ++i)
                    Op::expand(b + i * call.panel_bytes, steps, expanded + i * b_panel);
                b = expanded;
            }
            const bool last = k + steps == call.steps;
            // Every block fetches its share of the next chunk, or of the next panels' first.
            const std::byte* next = call.b + (last ? (p + block_panels) * call.panel_bytes
                                                   : p * call.panel_bytes + (k + steps) * Op::step_bytes);
            const std::int64_t next_lines = chunk * Op::step_bytes / 64;
            const std::int64_t fetches = next_lines / fetch_lines<Native>;
            const std::int64_t every = row_blocks * steps * Op::row_words / (fetches ? fetches : 1);
            std::int64_t row = 0;
            for (std::int64_t i = 0; i < row_blocks; ++i) {
                const std::int64_t rows = base_rows + (i < longer_blocks);
                float* tile = call.tile + row * call.tile_stride + p * 16;
                block_of<Native>(rows, panels)(call.a + row * call.a_stride + k * Op::row_words * Native::word_bytes,
                                               call.a_stride, b, b_panel, steps * Op::row_words, tile, call.tile_stride,
                                               k > 0,
                                               Ahead{next + i * next_lines / row_blocks * 64, call.panel_bytes, every});
                if (last) finish(row, rows, p, panels);
                row += rows;
            }
        }
    }
}

template <class Op, class Finish>
void multiply_many(const PanelCall& call, Finish finish) {
    if constexpr (Op::direct_blocks > 0)
        if (call.rows <= Op::direct_blocks * block_rows)
            return multiply_chunks<Op, typename Op::Direct, false>(call, finish);
    multiply_chunks<Op, typename Op::Native, Op::expands>(call, finish);
}

// Which loop runs depends on the rows of the token tile alone, not on how threads split it.
template <class Op, class Finish>
void multiply_panels(const PanelCall& call, std::int64_t total_rows, Finish finish) {
    if constexpr (Op::few_rows > 0)
        if (total_rows <= Op::few_rows) return multiply_few<Op>(call, finish);
    multiply_many<Op>(call, finish);
}

inline void nothing_to_finish(std::int64_t, std::int64_t, std::int64_t, std::int64_t) {}

}  // namespace
}  // namespace fastffn
