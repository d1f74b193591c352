// What the tests of the sparse24 kernels share: a problem, and how far a launcher's result is from plain loops over the weights as they
// were given.
#pragma once

#include <algorithm>

#include "fastffn/cuda.hpp"
#include "fastffn/packed.hpp"
#include "launch/sparse24.hpp"
#include "layout.hpp"
#include "reference.hpp"
#include "support.hpp"

namespace sparse24_problem {

using fastffn::Activation;
using fastffn::DType;
using fastffn::Format;
using fastffn::cuda::Sparse24Args;
using fastffn::cuda::Sparse24Product;
using fastffn::cuda::TokenGroups;
using reference::Matrix;
using support::Device;

using Launcher = cudaError_t (*)(Sparse24Product, const Sparse24Args&, const TokenGroups*, cudaStream_t);
struct Problem {
    Sparse24Product product;
    std::int64_t tokens, out, depth;
    bool is_gated = false;
    Activation activation = Activation::identity;
    DType y_dtype = DType::f32;
    bool biases = true;
    int tile_tokens = 0;  // of groups: a stack of 4, of which the second meets no token; 0: no groups
};

inline bool is_f32(Sparse24Product product) {
    return product == Sparse24Product::f32 || product == Sparse24Product::f32_f16;
}
inline const char* values_of(Sparse24Product product) {
    switch (product) {
        case Sparse24Product::bf16: return "bf16";
        case Sparse24Product::f16:
        case Sparse24Product::f32_f16: return "f16";
        case Sparse24Product::int8: return "int8";
        default: return "f32";
    }
}
inline DType x_dtype(Sparse24Product product) {
    switch (product) {
        case Sparse24Product::bf16: return DType::bf16;
        case Sparse24Product::f16: return DType::f16;
        case Sparse24Product::int8: return DType::i8;
        default: return DType::f32;
    }
}

// A stack of matrices with groups of every pattern: the six pairs, the four single weights, none; zeros of both signs.
struct Weights {
    std::int64_t count, out, depth;
    std::vector<float> plain;   // as the format stores them; of int8 the codes
    std::vector<bool> kept;     // what x meets: of fewer than two weights also the zeros that fill up
    std::vector<float> scales;  // of int8, [count, out]
    std::vector<std::byte> bytes;
    fastffn::PackedHeader header;

    Weights(const Problem& p, std::int64_t matrices, std::mt19937& random)
        : count(matrices), out(p.out), depth(p.depth), plain(size()), kept(size()) {
        std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(depth)));
        constexpr int patterns[11] = {3, 5, 9, 6, 10, 12, 1, 2, 4, 8, 0};
        const DType stored = p.product == Sparse24Product::int8 ? DType::f32 : x_dtype(p.product);
        std::size_t turn = random() % 11;
        for (std::int64_t row = 0; row < count * out; row++)
            for (std::int64_t k = 0; k < depth; k += 4) {
                const int pattern = patterns[turn++ % 11];
                for (std::int64_t i = 0; i < std::min<std::int64_t>(4, depth - k); i++) {
                    float w = normal(random);
                    w += w < 0 ? -0.01f : 0.01f;  // never zero as a code either
                    if (!(pattern >> i & 1)) w = i % 2 ? 0.0f : -0.0f;
                    unsigned char as_stored[4];
                    const DType dtype = p.product == Sparse24Product::f32_f16 ? DType::f16 : stored;
                    reference::store(as_stored, dtype, w);
                    plain[at(row, k + i)] = static_cast<float>(reference::load(as_stored, dtype));
                }
            }
        pack(p);
        for (std::int64_t row = 0; row < count * out; row++)
            for (std::int64_t k = 0; k < depth; k += 4) keep(row, k);
    }
    std::size_t size() const { return static_cast<std::size_t>(count * out * depth); }
    std::size_t at(std::int64_t row, std::int64_t k) const { return static_cast<std::size_t>(row * depth + k); }
    const std::byte* payload() const { return bytes.data() + sizeof header; }

    void pack(const Problem& p) {
        const fastffn::TensorView view(plain.data(), DType::f32, {count, out, depth});
        const fastffn::PackOptions options = {{"values", values_of(p.product)}};
        std::int64_t total = 0;
        device_packed_bytes(view, Format::sparse24, options, &total).value();
        bytes.resize(static_cast<std::size_t>(total));
        pack_for_device(view, Format::sparse24, options, bytes.data(), total).value();
        std::memcpy(&header, bytes.data(), sizeof header);
        if (p.product != Sparse24Product::int8) return;
        // Codes from the weights by the CPU's rule, not from the packed bytes.
        for (std::int64_t row = 0; row < count * out; row++) {
            float largest = 0;
            for (std::int64_t k = 0; k < depth; k++) largest = std::fmax(largest, std::fabs(plain[at(row, k)]));
            scales.push_back(largest / 127);
            for (std::int64_t k = 0; k < depth; k++)
                plain[at(row, k)] = largest > 0 ? std::nearbyint(plain[at(row, k)] / scales.back()) : 0;
        }
    }
    // Nothing: positions 2 and 3; one weight: its own and 3, or 2 and 3.
    void keep(std::int64_t row, std::int64_t k) {
        int nonzero = 0;
        for (std::int64_t i = 0; i < 4 && k + i < depth; i++)
            nonzero += kept[at(row, k + i)] = plain[at(row, k + i)] != 0;
        const auto fill = [&](std::int64_t i) {
            if (k + i < depth) kept[at(row, k + i)] = true;
        };
        const bool last = k + 3 < depth && plain[at(row, k + 3)] != 0;
        if (nonzero < 2) fill(3);
        if (nonzero == 0 || (nonzero == 1 && last)) fill(2);
    }
    // Row of x times row of one matrix; what is not kept meets nothing.
    reference::Value dot(const Matrix& x, std::int64_t token, std::int64_t matrix, std::int64_t row) const {
        double sum = 0, magnitude = 0;
        for (std::int64_t k = 0; k < depth; k++) {
            if (!kept[at(matrix * out + row, k)]) continue;
            const double product = x.value(token, k) * static_cast<double>(plain[at(matrix * out + row, k)]);
            sum += product;
            magnitude += std::fabs(product);
        }
        // Half the terms of a dense sum, cut off rather than rounded.
        return {sum, x.dtype == DType::i8 ? 0 : magnitude * std::ldexp(static_cast<double>(depth / 2 + 8), -23)};
    }
};

// Groups of very different sizes, cut as the route's kernels cut them.
struct Groups {
    std::vector<std::int32_t> offsets = {0}, rows, tiles, tile_count;
    std::int64_t positions;

    Groups(std::int64_t tokens, int count, int tile_tokens, std::mt19937& random) : positions(2 * tokens) {
        for (int g = 0; g < count; g++) {
            const auto left = static_cast<std::int32_t>(positions) - offsets.back();
            offsets.push_back(offsets.back() + (g + 1 == count ? left : g == 1 ? 0 : left / 2));
        }
        for (std::int64_t i = 0; i < positions; i++)
            rows.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(tokens)));
        for (int g = 0; g < count; g++)
            for (std::int32_t first = offsets[static_cast<std::size_t>(g)];
                 first < offsets[static_cast<std::size_t>(g) + 1]; first += tile_tokens)
                tiles.insert(tiles.end(), {g, first});
        tile_count = {static_cast<std::int32_t>(tiles.size() / 2)};
        tiles.insert(tiles.end(), {99, 1 << 30});  // what is behind the last tile is never read
    }
    std::int64_t group_of(std::int64_t position) const {
        return std::upper_bound(offsets.begin(), offsets.end(), static_cast<std::int32_t>(position)) - offsets.begin() -
               1;
    }
};

// The largest error over its bound; more than 1 is wrong.
inline double worst(const Problem& p, Launcher launcher, unsigned seed, std::vector<unsigned char>* bits = nullptr,
                    double poison = 0) {
    std::mt19937 random(seed);
    const bool int8 = p.product == Sparse24Product::int8;
    const int count = p.tile_tokens ? 4 : 1;
    Matrix x(p.tokens, p.depth, x_dtype(p.product), 16, random);
    if (poison != 0)
        for (std::int64_t k = 0; k < p.depth; k += 5) reference::store(x.at(1, k), x.dtype, static_cast<float>(poison));
    const Weights w(p, count, random), gate(p, count, random);
    const Groups groups(p.tokens, count, p.tile_tokens ? p.tile_tokens : 8, random);
    const std::int64_t positions = p.tile_tokens ? groups.positions : p.tokens;
    std::vector<float> x_scales;
    for (std::int64_t i = 0; i < p.tokens; i++) x_scales.push_back(0.01f + 0.001f * static_cast<float>(i % 7));
    Matrix bias(count, p.out, DType::f32, 0, random), gate_bias(count, p.out, DType::bf16, 0, random);
    const auto packed_rows = [](const Matrix& m) {  // [count, out] without padding
        std::vector<unsigned char> bytes;
        for (std::int64_t r = 0; r < m.rows; r++)
            bytes.insert(bytes.end(), m.data.begin() + r * m.stride,
                         m.data.begin() + r * m.stride + m.depth * reference::bytes_of(m.dtype));
        return bytes;
    };
    const std::int64_t y_stride = seed % 2 ? p.out + 3 : (p.out + 7) / 4 * 4;  // rows of y apart, and aligned or not
    const int y_bytes = reference::bytes_of(p.y_dtype);
    const std::vector<unsigned char> untouched(static_cast<std::size_t>(((positions - 1) * y_stride + p.out) * y_bytes),
                                               0xA5);

    const Device<unsigned char> device_x(x.data), device_bias(packed_rows(bias)),
        device_gate_bias(packed_rows(gate_bias));
    const Device<std::byte> device_w(std::vector<std::byte>(w.payload(), w.bytes.data() + w.bytes.size())),
        device_gate(std::vector<std::byte>(gate.payload(), gate.bytes.data() + gate.bytes.size()));
    const Device<float> device_x_scales(x_scales);
    const Device<std::int32_t> offsets(groups.offsets), rows(groups.rows), tiles(groups.tiles),
        tile_count(groups.tile_count);
    Device<unsigned char> y(untouched);
    const fastffn::cuda::DeviceLayout layout =
        fastffn::cuda::device_layout(w.header.format, w.header.flags, 0, p.out, p.depth);
    Sparse24Args args = {};
    args.x = device_x.data();
    args.x_stride = x.stride;
    args.row_bytes = x.row_bytes;
    args.w = device_w.data();
    args.w_gate = p.is_gated ? device_gate.data() : nullptr;
    args.tile_bytes = layout.tile_bytes;
    args.pieces = fastffn::cuda::sparse24_pieces(w.header.flags, p.depth);
    args.matrix_bytes = layout.bytes;
    if (int8) {
        args.x_scales = device_x_scales.data();
        args.w_scales = reinterpret_cast<const float*>(device_w.data() + layout.scales_offset);
        args.w_gate_scales = reinterpret_cast<const float*>(device_gate.data() + layout.scales_offset);
    }
    if (p.biases) {
        args.bias = device_bias.data();
        args.gate_bias = device_gate_bias.data();
        args.bias_dtype = DType::f32;
        args.gate_bias_dtype = DType::bf16;
    }
    args.y = y.data();
    args.y_stride = y_stride;
    args.y_dtype = p.y_dtype;
    args.tokens = p.tokens;
    args.out_features = p.out;
    args.activation = p.activation;
    // As many tiles as there could be: more than there are.
    const TokenGroups token_groups = {offsets.data(),
                                      rows.data(),
                                      tiles.data(),
                                      tile_count.data(),
                                      static_cast<std::int64_t>(groups.tiles.size()) / 2 + 2,
                                      positions,
                                      p.tile_tokens,
                                      count};
    if (launcher(p.product, args, p.tile_tokens ? &token_groups : nullptr, nullptr) != cudaSuccess) return 1e300;

    const auto found = y.host();
    if (bits) *bits = found;
    double largest = 0;
    for (std::int64_t position = 0; position < positions; position++)
        for (std::int64_t column = 0; column < (position + 1 < positions ? y_stride : p.out); column++) {
            const unsigned char* const at = found.data() + (position * y_stride + column) * y_bytes;
            if (column >= p.out) {
                if (std::memcmp(at, untouched.data(), static_cast<std::size_t>(y_bytes)) != 0) return 1e299;
                continue;
            }
            const std::int64_t token = p.tile_tokens ? groups.rows[static_cast<std::size_t>(position)] : position;
            const std::int64_t matrix = p.tile_tokens ? groups.group_of(position) : 0;
            const auto sum = [&](const Weights& m, const Matrix& b) {
                reference::Value v = m.dot(x, token, matrix, column);
                if (int8)
                    v = reference::scaled(
                        v, static_cast<double>(x_scales[static_cast<std::size_t>(token)]) *
                               static_cast<double>(m.scales[static_cast<std::size_t>(matrix * p.out + column)]));
                return p.biases ? reference::plus(v, b.value(matrix, column)) : v;
            };
            const reference::Value up = sum(w, bias);
            const reference::Value expected = p.is_gated
                                                  ? reference::through_gated(p.activation, sum(gate, gate_bias), up)
                                                  : reference::through(p.activation, up);
            const double value = reference::load(at, p.y_dtype);
            if (std::isnan(expected.value) || std::isnan(value)) {
                if (std::isnan(expected.value) != std::isnan(value)) return 1e298;
                continue;
            }
            if (std::isinf(expected.value) || std::isinf(value)) {
                if (expected.value != value) return 1e297;
                continue;
            }
            largest = std::fmax(largest, std::fabs(value - expected.value) /
                                             (expected.error + reference::rounding(p.y_dtype, expected.value)));
        }
    return largest;
}

inline std::string name(const Problem& p) {
    return std::string(values_of(p.product)) + (p.product == Sparse24Product::f32_f16 ? " by f32, " : ", ") +
           std::to_string(p.tokens) + " x " + std::to_string(p.depth) + " -> " + std::to_string(p.out) +
           (p.is_gated ? " gated" : "") + (p.tile_tokens ? ", tiles of " + std::to_string(p.tile_tokens) : "") +
           ", y " + std::to_string(static_cast<int>(p.y_dtype)) + ": " + emulator::last_failure() + " ";
}

constexpr Sparse24Product on_tensor_cores[] = {Sparse24Product::bf16, Sparse24Product::f16, Sparse24Product::int8};

inline DType y_dtype_of(unsigned seed) { return seed % 3 == 0 ? DType::f32 : seed % 3 == 1 ? DType::bf16 : DType::f16; }

inline void holds(Problem p, Launcher launcher, unsigned seed) {
    p.activation = p.is_gated ? Activation::silu : Activation::identity;
    p.y_dtype = y_dtype_of(seed);
    p.biases = seed % 2 == 0;
    const double error = worst(p, launcher, seed);
    CHECK(error <= 1) << name(p) << error;
}

}  // namespace sparse24_problem
