// The engine of layers whose down projection (or only matrix) is a packed pair of factors.
//
//   p = x · u1ᵀ;  h = act(p · v1ᵀ + b1), gated or not;  s = h · u2ᵀ;  y = s · v2ᵀ + b2
//
// A sub-norm never sees whole rows of h: s = ((h ⊙ γ) · u2ᵀ) / rms(h), as the rms is one number per row.
//
// Each hidden element is computed once. Two ways through the same pieces (lowrank_pieces.hpp), chosen by the number of tokens
// alone, so that threads never change a bit:
//
//   phases   few tokens: every product is cut into tasks over output columns and rows, all workers do one product after the other.
//            A packed byte is read once. The hidden rows of the (at most 256) tokens are kept, prepared.
//   stream   many tokens: a worker owns a tile of tokens, computes hidden columns 256 at a time, adds their share to s, and
//            forgets them; s is lifted once. No memory grows with tokens (FlashSVD, arXiv:2508.01506, in a single pass).
#pragma once

#include "core/elementwise.hpp"
#include "formats/lowrank/layout.hpp"
#include "layers/engine.hpp"
#include "layers/rows.hpp"

namespace fastffn {

// One weight: a pair of factors, or (up and gate) a plain matrix.
struct LowRankOperand {
    bool pair = false;
    LowRankView view{};                      // of a pair
    MatrixView outer{};                      // v, or the plain matrix
    const FormatKernels* kernels = nullptr;  // of the factors' format, or of the plain matrix
    const TensorView* bias = nullptr;
};

struct LowRankLayer {
    LowRankOperand up, gate, down;  // linear is `down` alone
    bool has_hidden = false, has_gate = false;
    bool shared = false;    // gate's v (or plain matrix) multiplies what up's does
    bool shared_x = false;  // two projections of the same prepared blocks of x
    Activation activation{};
    const ElementwiseKernels* elementwise = nullptr;
    Segments segments;
    SubNorm sub_norm;

    const LowRankOperand& first() const { return has_hidden ? up : down; }
};

// Offsets are bytes: of the workspace where phases run, of a worker's part of it where tiles stream.
struct LowRankPlan {
    std::int64_t tokens = 0, token_tile = 0;
    int threads = 1;
    bool streams = false;
    std::int64_t blocks[3] =
        {};  // prepared blocks of 256 columns that meet u: of x for up, of x for gate, of x or h for down
    std::int64_t block_bytes[3] = {};         // from block to block; 0: one place for all of them
    std::int64_t sums[3] = {};                // x · uᵀ or h · uᵀ in f32
    std::int64_t prepared[3] = {};            // the same prepared for v, or x prepared for a plain matrix
    std::int64_t sums_stride[3] = {};         // floats
    std::int64_t squares = 0;                 // of hidden elements, f64 [rows][blocks of h], where there is a sub-norm
    std::int64_t tiles = 0, tile_floats = 0;  // f32 tiles per worker: one, two with a gate
    std::int64_t worker_bytes = 0;
    std::int64_t workspace_bytes = 0;
};

// Whether run_low_rank is the engine for this layer.
bool is_low_rank(const DenseLayer& layer) noexcept;

LowRankLayer low_rank_layer(const DenseLayer& layer) noexcept;

LowRankPlan plan_low_rank(const LowRankLayer& layer, std::int64_t tokens, int threads) noexcept;

// workspace: plan.workspace_bytes, 64-byte aligned.
void run_low_rank(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
                  std::byte* workspace) noexcept;

// Hidden elements that calls of this process computed since the last time, for tests; counting must have been switched on.
void count_hidden(bool on) noexcept;
std::int64_t counted_hidden() noexcept;

}  // namespace fastffn
