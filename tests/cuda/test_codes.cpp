// Rows of x made for kernels, against plain loops; and where codes of 2 and 4 bits are.
#include "launch/codes.hpp"
#include "launch/rows.hpp"
#include "reference.hpp"
#include "support.hpp"

using fastffn::DType;
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

void check_rows(RowRule rule, DType dtype, std::int64_t depth, std::int64_t group, bool interleaved,
                std::mt19937& random) {
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
            const int right = k < depth ? expected.codes[static_cast<std::size_t>(token * depth + k)] : 0;
            CHECK(mean ? std::abs(code - right) <= 1 : code == right)
                << "token " << token << " column " << k << ": " << code << " " << right;
            if (k < depth) sums[static_cast<std::size_t>(group ? k / group : 0)] += code;
        }
        for (std::size_t i = 0; interleaved && i < sums.size(); i++)
            CHECK(found.sums[static_cast<std::size_t>(token) * sums.size() + i] == sums[i]) << i;
    }
}

}  // namespace

TEST(quantized_rows) {
    std::mt19937 random(1);
    for (RowRule rule : {RowRule::int8, RowRule::ternary, RowRule::int4, RowRule::mean4, RowRule::mean4_int4})
        for (DType dtype : {DType::f32, DType::f16, DType::bf16})
            for (std::int64_t depth : {1, 50, 300})
                for (bool interleaved : {false, true})
                    check_rows(rule, dtype, depth, interleaved && depth > 1 ? 64 : 0, interleaved, random);
    // More than one piece of a row per thread; longer than a block's registers; groups that are wider than a warp's columns.
    for (auto [depth, group] :
         {std::pair<std::int64_t, std::int64_t>{700, 0}, {700, 32}, {9000, 256}, {20000, 0}, {40000, 128}, {3000, 512}})
        for (DType dtype : {DType::f32, DType::bf16}) check_rows(RowRule::ternary, dtype, depth, group, true, random);
    check_rows(RowRule::int8, DType::f16, 40000, 0, false, random);
}

TEST(many_rows_quantised) {
    // Blocks of two pieces per thread, which go on to further rows.
    std::mt19937 random(3);
    const Matrix x(300, 530, DType::bf16, 0, random);
    const Rows expected = quantized(x, RowRule::int4);
    const Prepared found = prepare(x, RowRule::int4, 640, 64, true);
    CHECK(found.status == cudaSuccess) << emulator::last_failure();
    for (std::int64_t token = 0; token < 300; token++) {
        std::vector<int> sums(9);
        for (std::int64_t k = 0; k < 530; k++) {
            const int code = expected.codes[static_cast<std::size_t>(token * 530 + k)];
            CHECK(found.codes[static_cast<std::size_t>(token * 640 + k)] == code) << token << " " << k;
            sums[static_cast<std::size_t>(k / 64)] += code;
        }
        for (std::size_t g = 0; g < 9; g++)
            CHECK(found.sums[static_cast<std::size_t>(token) * 9 + g] == sums[g]) << token;
    }
}

TEST(copied_rows) {
    std::mt19937 random(2);
    for (DType from : {DType::f32, DType::f16, DType::bf16})
        for (auto [to, depth] :
             {std::pair<DType, std::int64_t>{DType::f16, 45}, {DType::bf16, 45}, {DType::bf16, 5001}}) {
            const Matrix x(3, depth, from, 16, random);
            const std::int64_t padded = (depth + 7) / 8 * 8, stride = 2 * padded + 16;
            const Device<unsigned char> source(x.data);
            Device<unsigned char> rows(std::vector<unsigned char>(static_cast<std::size_t>(3 * stride), 99));
            const fastffn::cuda::RowsArgs args = {
                source.data(), from, x.stride / reference::bytes_of(from), 3, depth, rows.data(), 2 * padded, stride};
            CHECK(launch_copy_rows(to, args, nullptr) == cudaSuccess) << emulator::last_failure();
            const auto found = rows.host();
            for (int token = 0; token < 3; token++) {
                for (std::int64_t k = 0; k < padded; k++) {
                    unsigned char wanted[4];
                    reference::store(wanted, to, k < depth ? static_cast<float>(x.value(token, k)) : 0.0f);
                    CHECK(std::memcmp(found.data() + token * stride + 2 * k, wanted, 2) == 0) << token << " " << k;
                }
                for (std::int64_t i = 2 * padded; i < stride; i++)
                    CHECK(found[static_cast<std::size_t>(token * stride + i)] == 99);
            }
        }
}

TEST(every_code_has_a_place_of_its_own) {
    for (int kind : {2, 4, 16}) {
        const int bits = kind == 2 ? 2 : 4;
        std::vector<int> taken(static_cast<std::size_t>(64 * 8 / bits * 2));
        for (std::int64_t k = 0; k < 2 * fastffn::cuda::codes_chunk_columns(bits); k++)
            ++taken[static_cast<std::size_t>(fastffn::cuda::codes_byte(bits, k, kind == 16) * (8 / bits) +
                                             fastffn::cuda::codes_shift(bits, k, kind == 16) / bits)];
        for (int count : taken) CHECK(count == 1);
    }
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
