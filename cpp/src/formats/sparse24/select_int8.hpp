// sparse24 with int8 values: a slot is two groups, whose four kept codes per column meet four of their eight activations in
// one dot product of quads. Include after picks_<isa>.hpp. Quads: the Dot of dense int8; Shuffle: VPSHUFB.
#pragma once

#include "formats/sparse24/select.hpp"

namespace fastffn {
namespace {

template <class Quads>
struct Int8Slots : Quads {
    using typename Quads::Acc;
    using typename Quads::Register;
    struct Weights {
        Register picks, quads;
    };
    static constexpr std::int64_t word_bytes = 8, weight_bytes = 128;
    static constexpr std::int64_t step_bytes = Sparse24Layout(Sparse24Values::int8).block_bytes();

    static Register broadcast(const std::byte* word) { return broadcast_8(word); }
    static Weights read(const std::byte* block, int slot, int part) {
        return {quad_picks(block + slot * 16, part),
                Quads::load_weights(block + 128 + slot * 64 + part * Quads::register_bytes)};
    }
    static void spread(const Weights& weights, std::byte* expanded, int part) {
        expanded += part * Quads::register_bytes;
        store_register(expanded, weights.picks);
        store_register(expanded + 64, weights.quads);
    }
    static Weights load(const std::byte* expanded, std::int64_t k, int part) {
        expanded += k * weight_bytes + part * Quads::register_bytes;
        return {Quads::load_weights(expanded), Quads::load_weights(expanded + 64)};
    }
    static Acc dot(Acc acc, Register word, const Weights& weights) {
        return Quads::dot(acc, shuffle(word, weights.picks), weights.quads);
    }
};

// The payload as the dense kernels see theirs: scales, sums, panels.
inline Int8Layout int8_sections(const Sparse24Payload& payload) {
    return {payload.scales, payload.sums, payload.panels, payload.panel_bytes};
}

}  // namespace
}  // namespace fastffn
