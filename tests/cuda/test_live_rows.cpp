// Rows of w_up whose gates live, against plain loops. Rows whose gates do not live have scales that would spoil everything.
#include "launch/live_rows.hpp"

#include "layout.hpp"
#include "reference.hpp"
#include "support.hpp"

using fastffn::DType;
using namespace fastffn::cuda;
using support::Device;

namespace {

struct Problem {
    int bits;
    std::int64_t tokens, out, depth, group;
    std::uint32_t zeros;
    double dead;  // how many gates are zero
    bool biased;
};

double worst(const Problem& p, unsigned seed, std::vector<float>* bits = nullptr) {
    std::mt19937 random(seed);
    DeviceMatrix w = {nullptr, p.bits == 2 ? format_ternary : format_int4,
                      p.zeros, {static_cast<std::uint32_t>(p.group), 0},
                      p.out,   p.depth,
                      1,       0};
    const DeviceLayout layout = device_layout(w.format, w.flags, w.parameters[0], p.out, p.depth);
    std::uniform_real_distribution<double> uniform(0, 1);
    std::vector<float> gates(static_cast<std::size_t>(p.tokens * p.out));
    for (float& g : gates) g = uniform(random) < p.dead ? 0.0f : static_cast<float>(uniform(random));
    const auto lives = [&](std::int64_t row) {
        for (std::int64_t t = 0; t < p.tokens; t++)
            if (gates[static_cast<std::size_t>(t * p.out + row)] != 0) return true;
        return false;
    };
    std::vector<unsigned char> payload(static_cast<std::size_t>(layout.bytes));
    std::vector<int> codes(static_cast<std::size_t>(p.out * p.depth)),
        zeros(static_cast<std::size_t>(codes_table_rows(p.out) * layout.groups));
    std::vector<double> scales(zeros.size()), minima(zeros.size());
    for (std::int64_t row = 0; row < p.out; row++) {
        for (std::int64_t k = 0; k < p.depth; k++) {
            const int code = static_cast<int>(random() % (p.bits == 2 ? 3u : 16u));
            codes[static_cast<std::size_t>(row * p.depth + k)] = code;
            payload[static_cast<std::size_t>(row * layout.row_bytes + codes_byte(p.bits, k))] |=
                static_cast<unsigned char>(code << codes_shift(p.bits, k));
        }
        for (std::int64_t g = 0; g < layout.groups; g++) {
            const std::int64_t entry = codes_entry(p.out, row, g);
            const DType type = p.group ? DType::f16 : DType::f32;
            const float scale = lives(row) ? 0.01f + 0.05f * static_cast<float>(uniform(random)) : NAN;
            unsigned char* const at = payload.data() + layout.scales_offset + entry * reference::bytes_of(type);
            reference::store(at, type, scale);
            scales[static_cast<std::size_t>(entry)] = reference::load(at, type);
            zeros[static_cast<std::size_t>(entry)] = p.bits == 2 ? 1 : 8;
            if (p.zeros == layout_zero_points) {
                zeros[static_cast<std::size_t>(entry)] = static_cast<int>(random() % 16);
                payload[static_cast<std::size_t>(layout.zeros_offset + entry)] =
                    static_cast<unsigned char>(zeros[static_cast<std::size_t>(entry)]);
            }
            if (p.zeros == layout_minima) {
                unsigned char* const minimum = payload.data() + layout.zeros_offset + entry * 2;
                reference::store(minimum, DType::f16, -static_cast<float>(uniform(random)));
                minima[static_cast<std::size_t>(entry)] = reference::load(minimum, DType::f16);
                zeros[static_cast<std::size_t>(entry)] = 0;
            }
        }
    }
    // Codes of x in the order of codes, and their sums.
    std::vector<std::int8_t> x(static_cast<std::size_t>(p.tokens * layout.padded_depth));
    std::vector<int> plain(static_cast<std::size_t>(p.tokens * p.depth));
    std::vector<std::int32_t> sums(static_cast<std::size_t>(p.tokens * layout.groups));
    std::vector<float> x_scales;
    for (std::int64_t t = 0; t < p.tokens; t++) {
        x_scales.push_back(0.01f * static_cast<float>(t + 1));
        for (std::int64_t k = 0; k < p.depth; k++) {
            const int code = static_cast<int>(random() % 255) - 127;
            plain[static_cast<std::size_t>(t * p.depth + k)] = code;
            const std::int64_t place = k / 64 * 64 + k % 32 / 8 * 16 + (k % 64 >= 32 ? 8 : 0) + k % 8;
            x[static_cast<std::size_t>(t * layout.padded_depth + place)] = static_cast<std::int8_t>(code);
            sums[static_cast<std::size_t>(t * layout.groups + (p.group ? k / p.group : 0))] += code;
        }
    }
    const reference::Matrix bias(1, p.out, DType::f16, 0, random);
    const Device<unsigned char> device_payload(payload), device_bias(bias.data);
    const Device<std::int8_t> device_x(x);
    Device<float> device_scales(x_scales), hidden(gates);
    Device<std::int32_t> device_sums(sums);
    w.payload = device_payload.data();
    Input input;
    input.rows = device_x.data();
    input.stride = layout.padded_depth;
    input.scales = device_scales.data();
    input.sums = device_sums.data();
    const DeviceRows rows = {hidden.data(), static_cast<std::int32_t>(DType::f32), p.tokens, p.out, p.out};
    const DeviceBias b = {p.biased ? device_bias.data() : nullptr, static_cast<std::int32_t>(DType::f16)};
    if (launch_live_rows(input, w, b, rows, nullptr) != cudaSuccess) return 1e300;
    const auto found = hidden.host();
    if (bits) *bits = found;
    double largest = 0;
    for (std::int64_t t = 0; t < p.tokens; t++)
        for (std::int64_t row = 0; row < p.out; row++) {
            const double value = found[static_cast<std::size_t>(t * p.out + row)],
                         gate = gates[static_cast<std::size_t>(t * p.out + row)];
            if (!lives(row)) {
                if (value != 0) return 1e299;
                continue;
            }
            double sum = 0, magnitude = 0;
            for (std::int64_t k = 0; k < p.depth; k++) {
                const auto entry = static_cast<std::size_t>(codes_entry(p.out, row, p.group ? k / p.group : 0));
                const double weight =
                    scales[entry] * (codes[static_cast<std::size_t>(row * p.depth + k)] - zeros[entry]) + minima[entry];
                sum += weight * plain[static_cast<std::size_t>(t * p.depth + k)];
                // Before zeros are taken off, sums are as large as all codes make them.
                magnitude += (scales[entry] * 15 + 1) * 127;
            }
            const double scale = static_cast<double>(x_scales[static_cast<std::size_t>(t)]);
            const double bias_value = p.biased ? bias.value(0, row) : 0, right = gate * (sum * scale + bias_value);
            const double bound =
                gate * (magnitude * scale + std::fabs(bias_value)) * std::ldexp(1.0, p.group ? -20 : -22) + 1e-30;
            const double error = std::fabs(value - right) / bound;
            largest = error <= largest ? largest : error;
        }
    return largest;
}

}  // namespace

TEST(only_live_rows_are_multiplied) {
    unsigned seed = 0;
    for (int bits : {2, 4})
        for (std::int64_t group :
             bits == 2 ? std::vector<std::int64_t>{0, 32, 128} : std::vector<std::int64_t>{32, 128})
            for (std::uint32_t zeros : {0u, layout_zero_points, layout_minima}) {
                if (zeros && bits == 2) continue;
                for (std::int64_t tokens : {1, 3, 8})
                    for (double dead : {0.0, 0.7, 1.0}) {
                        const Problem p = {bits, tokens, 75, bits == 2 ? 1300 : 333, group, zeros, dead, tokens == 3};
                        const double error = worst(p, ++seed);
                        CHECK(error <= 1) << bits << " bits, group " << group << ", zeros " << zeros << ", " << tokens
                                          << " tokens, dead " << dead << ": " << error << emulator::last_failure();
                    }
            }
}

TEST(what_is_not_finite_lives) {
    // A NaN gate, a bias that is infinite, and a row of x whose scale is NaN.
    std::mt19937 random(1);
    const DeviceLayout layout = device_layout(format_ternary, 0, 0, 40, 64);
    std::vector<unsigned char> payload(static_cast<std::size_t>(layout.bytes), 0x55);  // every code 1, which is zero
    for (std::int64_t row = 0; row < 40; row++)
        reference::store(payload.data() + layout.scales_offset + row * 4, DType::f32, 1);
    for (int which = 0; which < 3; which++) {
        std::vector<float> gates(40), bias(40), scale = {which == 2 ? NAN : 1.0f};
        if (which == 0) gates[33] = NAN;
        if (which == 1) bias[7] = INFINITY;
        const Device<unsigned char> data(payload);
        const Device<std::int8_t> x(static_cast<std::size_t>(layout.padded_depth));
        Device<float> scales(scale), hidden(gates);
        const Device<float> biases(bias);
        Device<std::int32_t> sums(std::vector<std::int32_t>(1));
        Input input;
        input.rows = x.data();
        input.stride = layout.padded_depth;
        input.scales = scales.data();
        input.sums = sums.data();
        const DeviceMatrix w = {data.data(), format_ternary, 0, {0, 0}, 40, 64, 1, 0};
        CHECK(launch_live_rows(input, w, {biases.data(), static_cast<std::int32_t>(DType::f32)},
                               {hidden.data(), static_cast<std::int32_t>(DType::f32), 1, 40, 40},
                               nullptr) == cudaSuccess)
            << emulator::last_failure();
        const auto found = hidden.host();
        for (std::size_t i = 0; i < 40; i++)
            CHECK(std::isnan(found[i]) == (which == 2 || (which == 0 && i == 33) || (which == 1 && i == 7)))
                << which << " " << i << ": " << found[i];
    }
}

TEST(the_same_bits_in_every_schedule) {
    std::vector<float> first, again;
    for (unsigned seed : {1u, 2u, 3u}) {
        emulator::set_seed(seed);
        worst({4, 8, 70, 400, 32, layout_minima, 0.5, true}, 77, seed == 1 ? &first : &again);
        CHECK(seed == 1 || again == first) << seed;
    }
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
