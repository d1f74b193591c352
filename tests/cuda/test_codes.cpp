// Rows of x made for kernels, and products with codes of 2 and 4 bits, against plain loops.
#include "launch/codes.hpp"

#include "launch/rows.hpp"
#include "reference.hpp"
#include "support.hpp"

using fastffn::Activation;
using fastffn::DType;
using fastffn::cuda::CodesArgs;
using fastffn::cuda::CodesZeros;
using fastffn::cuda::QuantizeArgs;
using fastffn::cuda::RowRule;
using reference::Matrix;
using support::Device;

namespace {

// What a row becomes, in the CPU's own arithmetic (formats/int8/rows_ref.hpp, formats/codes).
struct Rows {
    std::vector<int> codes;  // [tokens, depth]
    std::vector<float> scales;
    std::vector<double> slack;  // that a code may be off, in steps: the sum of magnitudes has no fixed order
};

Rows quantized(const Matrix& x, RowRule rule) {
    Rows rows;
    for (std::int64_t token = 0; token < x.rows; token++) {
        float largest = 0, sum = 0;
        bool finite = true;
        for (std::int64_t k = 0; k < x.depth; k++) {
            const auto magnitude = static_cast<float>(std::fabs(x.value(token, k)));
            finite = finite && std::isfinite(magnitude);
            largest = std::fmax(largest, magnitude);
            sum += magnitude;
        }
        const bool four = rule == RowRule::mean4 || rule == RowRule::mean4_int4;
        const float floor = rule == RowRule::ternary || rule == RowRule::mean4 ? 1e-5f : 1e-35f;
        float inverse, scale;
        if (four) {
            const float mean = sum / static_cast<float>(x.depth);
            inverse = 2.6457513f / (mean + floor);
            scale = mean / 2.6457513f;
        } else {
            const float gamma = std::fmax(largest, floor);
            inverse = 127.0f / gamma;
            scale = gamma / 127.0f;
            if (rule == RowRule::int8 && largest < floor) inverse = scale = 0;
        }
        rows.scales.push_back(finite ? scale : NAN);
        for (std::int64_t k = 0; k < x.depth; k++) {
            const float q =
                std::fmin(std::fmax(static_cast<float>(x.value(token, k)) * inverse, four ? -8.0f : -127.0f),
                          four ? 7.0f : 127.0f);
            rows.codes.push_back(finite ? static_cast<int>(std::nearbyint(q)) : 0);
        }
    }
    return rows;
}

struct Prepared {
    std::vector<std::int8_t> codes;  // in columns' order, [tokens, row_bytes]
    std::vector<float> scales;
    std::vector<std::int32_t> sums;
    std::vector<std::int8_t> raw;
    cudaError_t status;
};

Prepared prepare(const Matrix& x, RowRule rule, std::int64_t row_bytes, std::int64_t group, bool interleaved) {
    const std::int64_t groups = group ? (x.depth + group - 1) / group : 1;
    const Device<unsigned char> source(x.data);
    Device<std::int8_t> rows(std::vector<std::int8_t>(static_cast<std::size_t>(x.rows * row_bytes), 99));
    Device<float> scales(static_cast<std::size_t>(x.rows));
    Device<std::int32_t> sums(static_cast<std::size_t>(x.rows * groups));
    QuantizeArgs args = {};
    args.rows = {source.data(), x.dtype,  x.stride / reference::bytes_of(x.dtype), x.rows, x.depth, rows.data(),
                 row_bytes,     row_bytes};
    args.scales = scales.data();
    args.sums = interleaved ? sums.data() : nullptr;
    args.group = group;
    args.groups = groups;
    args.rule = rule;
    args.interleaved = interleaved;
    Prepared result;
    result.status = launch_quantize_rows(args, nullptr);
    result.raw = rows.host();
    result.scales = scales.host();
    result.sums = sums.host();
    for (std::int64_t token = 0; token < x.rows; token++)
        for (std::int64_t k = 0; k < row_bytes; k++) {
            // Written out once more: eight of the first 32 columns, eight of the second, in turn.
            const std::int64_t place = interleaved ? k / 64 * 64 + k % 32 / 8 * 16 + (k % 64 >= 32 ? 8 : 0) + k % 8 : k;
            result.codes.push_back(result.raw[static_cast<std::size_t>(token * row_bytes + place)]);
        }
    return result;
}

struct Problem {
    int bits;
    std::int64_t tokens, out, depth, group;
    CodesZeros zeros;
    bool is_gated;
    Activation activation;
    DType y_dtype;
    bool biases;
};

// One weight matrix with random codes, scales and zeros.
struct Weights {
    std::vector<int> codes;  // [out, depth]
    std::vector<unsigned char> packed, scales, zeros;
    const Problem& p;
    std::int64_t groups;

    Weights(const Problem& problem, std::mt19937& random)
        : p(problem), groups(p.group ? (p.depth + p.group - 1) / p.group : 1) {
        const std::int64_t row_bytes = fastffn::cuda::codes_padded_depth(p.bits, p.depth) * p.bits / 8;
        // What pads a row may be anything: x is zero there.
        for (std::int64_t i = 0; i < p.out * row_bytes; i++) packed.push_back(static_cast<unsigned char>(random()));
        for (std::int64_t row = 0; row < p.out; row++)
            for (std::int64_t k = 0; k < p.depth; k++) {
                const int code = static_cast<int>(random() % (p.bits == 2 ? 3u : 16u));
                codes.push_back(code);
                unsigned char& byte =
                    packed[static_cast<std::size_t>(row * row_bytes + fastffn::cuda::codes_byte(p.bits, k))];
                const int shift = fastffn::cuda::codes_shift(p.bits, k);
                byte = static_cast<unsigned char>((byte & ~((p.bits == 2 ? 3 : 15) << shift)) | code << shift);
            }
        std::uniform_real_distribution<float> uniform(0.01f, 0.05f);
        const DType type = p.group ? DType::f16 : DType::f32;
        for (std::int64_t i = 0; i < p.out * groups; i++) {
            unsigned char bytes[4];
            reference::store(bytes, type, uniform(random));
            scales.insert(scales.end(), bytes, bytes + reference::bytes_of(type));
            if (p.zeros == CodesZeros::points) zeros.push_back(static_cast<unsigned char>(random() % 16));
            if (p.zeros != CodesZeros::minima) continue;
            reference::store(bytes, DType::f16, -uniform(random));
            zeros.insert(zeros.end(), bytes, bytes + 2);
        }
    }
    double scale(std::int64_t row, std::int64_t group) const {
        return p.group ? reference::load(scales.data() + (row * groups + group) * 2, DType::f16)
                       : reference::load(scales.data() + row * 4, DType::f32);
    }
    reference::Value dot(const Prepared& x, std::int64_t row_bytes, std::int64_t token, std::int64_t row) const {
        double sum = 0, magnitude = 0;
        for (std::int64_t k = 0; k < p.depth; k++) {
            const std::int64_t group = p.group ? k / p.group : 0;
            double w = codes[static_cast<std::size_t>(row * p.depth + k)];
            if (p.zeros == CodesZeros::fixed) w -= p.bits == 2 ? 1 : 8;
            if (p.zeros == CodesZeros::points) w -= zeros[static_cast<std::size_t>(row * groups + group)];
            w *= scale(row, group);
            if (p.zeros == CodesZeros::minima)
                w += reference::load(zeros.data() + (row * groups + group) * 2, DType::f16);
            const double product = w * x.codes[static_cast<std::size_t>(token * row_bytes + k)];
            sum += product;
            magnitude += std::fabs(product);
        }
        const double x_scale = static_cast<double>(x.scales[static_cast<std::size_t>(token)]);
        // One rounding per group and a few after; minima add a second term per group, of the size of the first.
        const double terms = p.group ? 2.0 * static_cast<double>(groups) + 10 : 4;
        double bound = magnitude;
        if (p.zeros == CodesZeros::minima) bound = 0.05 * 2 * 16 * 127 * static_cast<double>(p.depth);
        return {sum * x_scale, bound * std::fabs(x_scale) * terms * std::ldexp(1.0, -24)};
    }
};

double worst(const Problem& p, unsigned seed, std::vector<unsigned char>* bits = nullptr) {
    std::mt19937 random(seed);
    const Matrix x(p.tokens, p.depth, DType::f16, 0, random);
    const std::int64_t padded = fastffn::cuda::codes_padded_depth(p.bits, p.depth),
                       groups = p.group ? (p.depth + p.group - 1) / p.group : 1;
    const Prepared rows = prepare(x, p.bits == 2 ? RowRule::ternary : RowRule::int4, padded, p.group, true);
    if (rows.status != cudaSuccess) return 1e300;
    const Weights w(p, random), gate(p, random);
    Matrix bias(1, p.out, DType::f32, 0, random), gate_bias(1, p.out, DType::f16, 0, random);
    const Device<std::int8_t> device_x(rows.raw);
    const Device<float> x_scales(rows.scales);
    const Device<std::int32_t> x_sums(rows.sums);
    const Device<unsigned char> codes(w.packed), scales(w.scales), zeros(w.zeros), gate_codes(gate.packed),
        gate_scales(gate.scales), gate_zeros(gate.zeros), device_bias(bias.data), device_gate_bias(gate_bias.data);
    const int y_bytes = reference::bytes_of(p.y_dtype);
    const std::int64_t y_stride = p.out + 3;
    const std::vector<unsigned char> untouched(static_cast<std::size_t>(((p.tokens - 1) * y_stride + p.out) * y_bytes),
                                               0xA5);
    Device<unsigned char> y(untouched);
    CodesArgs args = {};
    args.x = device_x.data();
    args.x_stride = padded;
    args.x_scales = x_scales.data();
    args.x_sums = x_sums.data();
    args.w = {codes.data(), scales.data(), zeros.data()};
    if (p.is_gated) args.w_gate = {gate_codes.data(), gate_scales.data(), gate_zeros.data()};
    args.bits = p.bits;
    args.zeros = p.zeros;
    args.padded_depth = padded;
    args.group = p.group;
    args.groups = groups;
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
    if (launch_codes_few_tokens(args, nullptr) != cudaSuccess) return 1e300;
    const auto found = y.host();
    if (bits) *bits = found;
    double largest = 0;
    for (std::int64_t token = 0; token < p.tokens; token++)
        for (std::int64_t column = 0; column < (token + 1 < p.tokens ? y_stride : p.out); column++) {
            const unsigned char* const at = found.data() + (token * y_stride + column) * y_bytes;
            if (column >= p.out) {
                if (std::memcmp(at, untouched.data(), static_cast<std::size_t>(y_bytes)) != 0) return 1e299;
                continue;
            }
            const auto sum = [&](const Weights& m, const Matrix& b) {
                const reference::Value v = m.dot(rows, padded, token, column);
                return p.biases ? reference::plus(v, b.value(0, column)) : v;
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
    return largest;
}

std::string name(const Problem& p) {
    return std::to_string(p.bits) + " bits, " + std::to_string(p.tokens) + " x " + std::to_string(p.depth) + " -> " +
           std::to_string(p.out) + ", group " + std::to_string(p.group) + ", zeros " +
           std::to_string(static_cast<int>(p.zeros)) + (p.is_gated ? " gated: " : ": ") + emulator::last_failure() +
           " ";
}

}  // namespace

TEST(quantized_rows) {
    std::mt19937 random(1);
    for (RowRule rule : {RowRule::int8, RowRule::ternary, RowRule::int4, RowRule::mean4, RowRule::mean4_int4})
        for (DType dtype : {DType::f32, DType::f16, DType::bf16})
            for (std::int64_t depth : {1, 50, 300})
                for (bool interleaved : {false, true}) {
                    const std::int64_t group = interleaved && depth > 1 ? 64 : 0;
                    Matrix x(4, depth, dtype, 16, random);
                    for (std::int64_t k = 0; k < depth; k++) {
                        reference::store(x.at(1, k), dtype, 0);
                        reference::store(x.at(2, k), dtype, rule == RowRule::int8 ? 1e-37f : 1e-6f);
                    }
                    reference::store(x.at(3, depth / 2), dtype, depth == 50 ? INFINITY : NAN);
                    const Rows expected = quantized(x, rule);
                    const std::int64_t row_bytes = interleaved ? (depth + 127) / 128 * 128 : (depth + 15) / 16 * 16;
                    const Prepared found = prepare(x, rule, row_bytes, group, interleaved);
                    CHECK(found.status == cudaSuccess) << emulator::last_failure();
                    const bool mean = rule == RowRule::mean4 || rule == RowRule::mean4_int4;
                    for (std::int64_t token = 0; token < 4; token++) {
                        const float scale = found.scales[static_cast<std::size_t>(token)],
                                    wanted = expected.scales[static_cast<std::size_t>(token)];
                        CHECK(token == 3 ? std::isnan(scale) : std::fabs(scale - wanted) <= (mean ? 1e-5f * wanted : 0))
                            << scale << " " << wanted;
                        std::vector<int> sums(static_cast<std::size_t>(group ? (depth + group - 1) / group : 1));
                        for (std::int64_t k = 0; k < row_bytes; k++) {
                            const int code = found.codes[static_cast<std::size_t>(token * row_bytes + k)];
                            const int right =
                                k < depth ? expected.codes[static_cast<std::size_t>(token * depth + k)] : 0;
                            CHECK(mean ? std::abs(code - right) <= 1 : code == right)
                                << "token " << token << " column " << k << ": " << code << " " << right;
                            if (k < depth) sums[static_cast<std::size_t>(group ? k / group : 0)] += code;
                        }
                        for (std::size_t i = 0; interleaved && i < sums.size(); i++)
                            CHECK(found.sums[static_cast<std::size_t>(token) * sums.size() + i] == sums[i]) << i;
                    }
                }
}

TEST(copied_rows) {
    std::mt19937 random(2);
    for (DType from : {DType::f32, DType::f16, DType::bf16})
        for (DType to : {DType::f16, DType::bf16}) {
            const Matrix x(3, 45, from, 16, random);
            const Device<unsigned char> source(x.data);
            Device<unsigned char> rows(std::vector<unsigned char>(3 * 112, 99));
            const fastffn::cuda::RowsArgs args = {
                source.data(), from, x.stride / reference::bytes_of(from), 3, 45, rows.data(), 96, 112};
            CHECK(launch_copy_rows(to, args, nullptr) == cudaSuccess) << emulator::last_failure();
            const auto found = rows.host();
            for (int token = 0; token < 3; token++) {
                for (int k = 0; k < 48; k++) {
                    unsigned char wanted[4];
                    reference::store(wanted, to, k < 45 ? static_cast<float>(x.value(token, k)) : 0.0f);
                    CHECK(std::memcmp(found.data() + token * 112 + 2 * k, wanted, 2) == 0) << token << " " << k;
                }
                for (int i = 96; i < 112; i++) CHECK(found[static_cast<std::size_t>(token * 112 + i)] == 99);
            }
        }
}

TEST(codes_of_every_shape) {
    unsigned seed = 0;
    for (int bits : {2, 4})
        for (bool is_gated : {false, true})
            for (std::int64_t tokens : {1, 13, 35})
                for (auto [out, depth] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {37, 300}, {20, 2100}}) {
                    if (tokens == 35 && depth == 2100) continue;
                    for (std::int64_t group : {0, 32, 128, 512}) {
                        if (group == 512 && depth < 512) continue;
                        const CodesZeros zeros = group == 0 ? CodesZeros::fixed : static_cast<CodesZeros>(seed % 3);
                        const Problem p = {bits,
                                           tokens,
                                           out,
                                           depth,
                                           group,
                                           zeros,
                                           is_gated,
                                           is_gated ? Activation::relu2 : Activation::identity,
                                           seed % 2 ? DType::f32 : DType::f16,
                                           seed % 5 < 2};
                        const double error = worst(p, ++seed);
                        CHECK(error <= 1) << name(p) << error;
                    }
                }
}

TEST(same_bits_under_every_schedule) {
    for (std::int64_t group : {0, 64}) {
        const Problem p = {
            4,          9,   20, 1500, group, group ? CodesZeros::points : CodesZeros::fixed, true, Activation::silu,
            DType::f32, true};
        std::vector<unsigned char> first;
        for (unsigned seed = 0; seed < 8; seed++) {
            emulator::set_seed(seed);
            std::vector<unsigned char> bits;
            const double error = worst(p, 3, &bits);
            CHECK(error <= 1) << name(p) << error;
            if (seed == 0) first = bits;
            CHECK(bits == first) << seed;
        }
    }
    emulator::set_seed(1);
}

TEST(every_code_has_a_place_of_its_own) {
    for (int bits : {2, 4}) {
        std::vector<int> taken(static_cast<std::size_t>(64 * 8 / bits * 2));
        for (std::int64_t k = 0; k < 2 * fastffn::cuda::codes_chunk_columns(bits); k++)
            ++taken[static_cast<std::size_t>(fastffn::cuda::codes_byte(bits, k) * (8 / bits) +
                                             fastffn::cuda::codes_shift(bits, k) / bits)];
        for (int count : taken) CHECK(count == 1);
    }
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
