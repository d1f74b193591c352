// Products with codes of 2 and 4 bits for tests: random weights in the devices' layout, rows of x as the kernels take them, and what
// must come out, in double over the very numbers that the kernel gets.
#pragma once

#include "launch/codes.hpp"
#include "launch/sm90_codes.hpp"
#include "reference.hpp"
#include "support.hpp"

namespace codes {

using fastffn::Activation;
using fastffn::DType;
using fastffn::cuda::CodesArgs;
using fastffn::cuda::CodesZeros;
using fastffn::cuda::TokenGroups;
using support::Device;

enum class Kernel { few, many, chosen, sm90 };

struct Problem {
    int bits;
    bool is_bf16;
    std::int64_t tokens, out, depth, group;
    CodesZeros zeros;
    bool is_gated;
    Kernel kernel;
    int tile_tokens = 0;  // 0: one matrix; else a stack of 5, its tiles of so many tokens
    Activation activation = Activation::relu2;
    DType y_dtype = DType::f32;
    bool biases = false;

    std::int64_t groups() const { return group ? (depth + group - 1) / group : 1; }
    std::int64_t matrices() const { return tile_tokens ? 5 : 1; }
    fastffn::cuda::DeviceLayout layout() const {
        using namespace fastffn::cuda;
        const std::uint32_t flags =
            (is_bf16 ? layout_act_bf16 << layout_act_shift : 0) | static_cast<std::uint32_t>(zeros);
        return device_layout(bits == 2 ? format_ternary : format_int4, flags, static_cast<std::uint32_t>(group), out,
                             depth);
    }
    std::string name() const {
        return std::to_string(bits) + (is_bf16 ? " bits bf16, " : " bits, ") + std::to_string(tokens) + " x " +
               std::to_string(depth) + " -> " + std::to_string(out) + ", group " + std::to_string(group) + ", zeros " +
               std::to_string(static_cast<int>(zeros)) + ", kernel " + std::to_string(static_cast<int>(kernel)) +
               ", tiles " + std::to_string(tile_tokens) + (is_gated ? " gated: " : ": ") + emulator::last_failure() +
               " ";
    }
};

struct Weights {
    const Problem& p;
    fastffn::cuda::DeviceLayout layout;
    std::vector<int> codes;  // [matrices, out, depth]
    std::vector<unsigned char> payload;

    Weights(const Problem& problem, std::mt19937& random) : p(problem), layout(p.layout()) {
        // What pads a row or a table may be any code: x is zero there. Scales that pad are never met.
        for (std::int64_t i = 0; i < p.matrices() * layout.bytes; i++)
            payload.push_back(static_cast<unsigned char>(random()));
        std::uniform_real_distribution<float> uniform(0.01f, 0.05f);
        for (std::int64_t m = 0; m < p.matrices(); m++)
            for (std::int64_t row = 0; row < p.out; row++) {
                for (std::int64_t k = 0; k < p.depth; k++) {
                    const int code = static_cast<int>(random() % (p.bits == 2 ? 3u : 16u));
                    codes.push_back(code);
                    unsigned char& byte =
                        at(m, row * layout.row_bytes + fastffn::cuda::codes_byte(p.bits, k, p.is_bf16));
                    const int shift = fastffn::cuda::codes_shift(p.bits, k, p.is_bf16);
                    byte = static_cast<unsigned char>((byte & ~((p.bits == 2 ? 3 : 15) << shift)) | code << shift);
                }
                for (std::int64_t g = 0; g < p.groups(); g++) {
                    reference::store(&scale_at(m, row, g), p.group ? DType::f16 : DType::f32, uniform(random));
                    if (p.zeros == CodesZeros::points) zero_at(m, row, g) = static_cast<unsigned char>(random() % 16);
                    if (p.zeros == CodesZeros::minima)
                        reference::store(&zero_at(m, row, g), DType::f16, -uniform(random));
                }
            }
    }
    unsigned char& at(std::int64_t m, std::int64_t byte) {
        return payload[static_cast<std::size_t>(m * layout.bytes + byte)];
    }
    unsigned char& scale_at(std::int64_t m, std::int64_t row, std::int64_t g) {
        return at(m, layout.scales_offset + (p.group ? 2 * entry(row, g) : 4 * row));
    }
    unsigned char& zero_at(std::int64_t m, std::int64_t row, std::int64_t g) {
        return at(m, layout.zeros_offset + (p.zeros == CodesZeros::points ? 1 : 2) * entry(row, g));
    }
    // Written out once more: tables of groups have rows of 16.
    std::int64_t entry(std::int64_t row, std::int64_t g) const { return g * ((p.out + 15) / 16 * 16) + row; }

    // Σ x · w without the scale of x. x: [depth].
    reference::Value dot(const double* x, std::int64_t m, std::int64_t row) {
        double sum = 0, magnitude = 0;
        for (std::int64_t k = 0; k < p.depth; k++) {
            const std::int64_t g = p.group ? k / p.group : 0;
            const double scale = reference::load(&scale_at(m, row, g), p.group ? DType::f16 : DType::f32);
            const int code = codes[static_cast<std::size_t>((m * p.out + row) * p.depth + k)];
            double zero = p.bits == 2 ? 1 : 8, minimum = 0;
            if (p.zeros == CodesZeros::points) zero = zero_at(m, row, g);
            if (p.zeros == CodesZeros::minima) {
                zero = 0;
                minimum = reference::load(&zero_at(m, row, g), DType::f16);
            }
            sum += x[k] * (scale * (code - zero) + minimum);
            // The parts that are summed on their own: bf16 kernels sum (code - 8) and what is left of the zero.
            const double parts = p.is_bf16 ? std::abs(code - 8) + std::fabs(8 - zero) : std::fabs(code - zero);
            magnitude += std::fabs(x[k]) * (scale * parts + std::fabs(minimum));
        }
        // Integers: one rounding per group and a few after; minima add a second term per group. bf16: one per product.
        const double terms = p.is_bf16 ? 2.0 * static_cast<double>(p.depth + 3 * p.groups() + 8)
                             : p.group ? 2.0 * static_cast<double>(p.groups()) + 10
                                       : 4;
        return {sum, magnitude * terms * std::ldexp(1.0, -24)};
    }
};

// Rows of x, in columns' order and as the kernels take them.
struct Rows {
    std::vector<double> values;  // [tokens, depth]
    std::vector<unsigned char> bytes;
    std::vector<float> scales;
    std::vector<std::int32_t> sums;
    std::vector<float> bf16_sums;
    std::int64_t stride;

    Rows(const Problem& p, std::mt19937& random) {
        const std::int64_t padded = p.layout().padded_depth, groups = p.groups();
        stride = padded * (p.is_bf16 ? 2 : 1) + 32;
        bytes.assign(static_cast<std::size_t>(p.tokens * stride - 32), 0xFF);
        std::normal_distribution<float> normal(0, 1);
        for (std::int64_t token = 0; token < p.tokens; token++) {
            scales.push_back(0.01f + 0.02f * std::fabs(normal(random)));
            std::vector<double> of_group(static_cast<std::size_t>(groups));
            unsigned char* const row = bytes.data() + token * stride;
            for (std::int64_t k = 0; k < padded; k++) {
                float value = 0;
                if (k < p.depth) {
                    unsigned char bits[2];
                    reference::store(bits, DType::bf16, normal(random));
                    value = p.is_bf16 ? static_cast<float>(reference::load(bits, DType::bf16))
                                      : static_cast<float>(static_cast<int>(random() % 255) - 127);
                    values.push_back(static_cast<double>(value));
                    of_group[static_cast<std::size_t>(p.group ? k / p.group : 0)] += static_cast<double>(value);
                }
                // Written out once more: eight of the first 32 columns, eight of the second, in turn.
                const std::int64_t place = k / 64 * 64 + k % 32 / 8 * 16 + (k % 64 >= 32 ? 8 : 0) + k % 8;
                if (p.is_bf16) reference::store(row + 2 * k, DType::bf16, value);
                else reference::store(row + place, DType::i8, value);
            }
            for (const double sum : of_group) {
                sums.push_back(static_cast<std::int32_t>(sum));
                bf16_sums.push_back(static_cast<float>(sum));
            }
        }
    }
};

// Positions of a stack: random groups of random tokens, and their tiles.
struct Positions {
    std::vector<std::int32_t> offsets{0}, rows, tiles, tile_count{0};
    TokenGroups groups = {};

    Positions(const Problem& p, std::mt19937& random) {
        if (!p.tile_tokens) return;
        std::vector<std::vector<std::int32_t>> of(static_cast<std::size_t>(p.matrices()));
        // Some tokens twice, some not at all; one matrix has none.
        for (std::int64_t i = 0; i < p.tokens; i++)
            of[random() % 8 == 0 ? 0 : random() % 3 + 2].push_back(static_cast<std::int32_t>(random() % p.tokens));
        for (std::size_t m = 0; m < of.size(); m++) {
            for (std::size_t i = 0; i < of[m].size(); i += static_cast<std::size_t>(p.tile_tokens)) {
                tiles.insert(tiles.end(),
                             {static_cast<std::int32_t>(m), offsets.back() + static_cast<std::int32_t>(i)});
                ++tile_count[0];
            }
            rows.insert(rows.end(), of[m].begin(), of[m].end());
            offsets.push_back(static_cast<std::int32_t>(rows.size()));
        }
        groups.max_tiles = tile_count[0] + 2;
        tiles.resize(static_cast<std::size_t>(2 * groups.max_tiles), -1);
        groups.positions = p.tokens;
        groups.tile_tokens = p.tile_tokens;
        groups.groups = p.matrices();
    }
};

// The largest error as a part of what rounding allows.
inline double worst(const Problem& p, unsigned seed, std::vector<unsigned char>* bits = nullptr) {
    std::mt19937 random(seed);
    Weights w(p, random), gate(p, random);
    const Rows x(p, random);
    Positions positions(p, random);
    reference::Matrix bias(p.matrices(), p.out, DType::f32, 0, random),
        gate_bias(p.matrices(), p.out, DType::f16, 0, random);
    const auto packed_bias = [&](const reference::Matrix& from) {
        std::vector<unsigned char> bytes;
        for (std::int64_t m = 0; m < from.rows; m++)
            bytes.insert(bytes.end(), from.data.begin() + m * from.stride,
                         from.data.begin() + m * from.stride + p.out * reference::bytes_of(from.dtype));
        return bytes;
    };
    const Device<unsigned char> device_x(x.bytes), payload(w.payload), gate_payload(gate.payload),
        device_bias(packed_bias(bias)), device_gate_bias(packed_bias(gate_bias));
    const Device<float> x_scales(x.scales), bf16_sums(x.bf16_sums);
    const Device<std::int32_t> x_sums(x.sums), offsets(positions.offsets), rows(positions.rows), tiles(positions.tiles),
        tile_count(positions.tile_count);
    const int y_bytes = reference::bytes_of(p.y_dtype);
    const std::int64_t y_stride = p.out + 3;
    const std::vector<unsigned char> untouched(static_cast<std::size_t>(((p.tokens - 1) * y_stride + p.out) * y_bytes),
                                               0xA5);
    Device<unsigned char> y(untouched);
    CodesArgs args = {};
    args.x = device_x.data();
    args.x_stride = x.stride;
    if (!p.is_bf16) args.x_scales = x_scales.data();
    if (!p.is_bf16) args.x_sums = x_sums.data();
    else if (p.zeros != CodesZeros::fixed) args.x_sums = bf16_sums.data();
    const auto matrix = [&](const unsigned char* data) {
        return fastffn::cuda::CodesMatrix{data, data + w.layout.scales_offset, data + w.layout.zeros_offset};
    };
    args.w = matrix(payload.data());
    if (p.is_gated) args.w_gate = matrix(gate_payload.data());
    args.matrix_bytes = w.layout.bytes;
    args.bits = p.bits;
    args.is_bf16 = p.is_bf16;
    args.zeros = p.zeros;
    args.padded_depth = w.layout.padded_depth;
    args.group = p.group;
    args.groups = p.groups();
    if (p.biases) {
        args.bias = device_bias.data();
        args.gate_bias = device_gate_bias.data();
        args.bias_dtype = DType::f32;
        args.gate_bias_dtype = DType::f16;
    }
    args.y = y.data();
    args.y_stride = y_stride;
    args.y_dtype = p.y_dtype;
    args.tokens = p.tokens;
    args.out_features = p.out;
    args.activation = p.activation;
    positions.groups.offsets = offsets.data();
    positions.groups.rows = rows.data();
    positions.groups.tiles = tiles.data();
    positions.groups.tile_count = tile_count.data();
    const TokenGroups* const groups = p.tile_tokens ? &positions.groups : nullptr;
    const cudaError_t status = p.kernel == Kernel::few    ? launch_codes_few_tokens(args, groups, nullptr)
                               : p.kernel == Kernel::sm90 ? launch_sm90_codes(args, nullptr)
                               : p.kernel == Kernel::many ? launch_codes_many_tokens(args, groups, nullptr)
                                                          : launch_codes(args, groups, nullptr);
    if (status != cudaSuccess) return 1e300;
    const auto found = y.host();
    if (bits) *bits = found;
    double largest = 0;
    for (std::int64_t i = 0; i < p.tokens; i++) {
        std::int64_t m = 0, token = i;
        if (p.tile_tokens) {
            while (positions.offsets[static_cast<std::size_t>(m + 1)] <= i) m++;
            token = positions.rows[static_cast<std::size_t>(i)];
        }
        const double* const values = x.values.data() + token * p.depth;
        for (std::int64_t row = 0; row < (i + 1 < p.tokens ? y_stride : p.out); row++) {
            const unsigned char* const at = found.data() + (i * y_stride + row) * y_bytes;
            if (row >= p.out) {
                if (std::memcmp(at, untouched.data(), static_cast<std::size_t>(y_bytes)) != 0) return 1e299;
                continue;
            }
            const auto sum = [&](Weights& weights, const reference::Matrix& b) {
                const reference::Value v = weights.dot(values, m, row);
                const double scale = p.is_bf16 ? 1 : static_cast<double>(x.scales[static_cast<std::size_t>(token)]);
                const reference::Value scaled = {v.value * scale, v.error * scale};
                return p.biases ? reference::plus(scaled, b.value(m, row)) : scaled;
            };
            const reference::Value up = sum(w, bias);
            const reference::Value expected = p.is_gated
                                                  ? reference::through_gated(p.activation, sum(gate, gate_bias), up)
                                                  : reference::through(p.activation, up);
            const double value = reference::load(at, p.y_dtype);
            const double error =
                std::fabs(value - expected.value) / (expected.error + reference::rounding(p.y_dtype, expected.value));
            largest = error <= largest ? largest : error;  // NaN wins
        }
    }
    return largest;
}

}  // namespace codes
