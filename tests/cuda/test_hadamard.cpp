// Rows through RMSNorm and Hadamard transforms, to floats and to codes, against plain loops in double; and what no f32 sum in another
// order may change, bit for bit.
#include "core/hadamard_matrices.hpp"
#include "launch/hadamard.hpp"
#include "launch/transform.hpp"
#include "reference.hpp"
#include "support.hpp"

using fastffn::DType;
using fastffn::Hadamard;
using namespace fastffn::cuda;
using reference::Matrix;
using support::Device;

namespace {

constexpr int none = 0, pow2 = 1, kron = 2, block = 3;

struct Shape {
    std::int64_t power = 1, order = 1;
    Shape(int mode, std::int64_t n, std::int64_t of_block) {
        if (!fastffn::split_hadamard(static_cast<Hadamard>(mode), n, of_block, &power, &order)) power = 0;
    }
};

// H · x in double, or in float with the CPU's order of additions.
template <class T>
std::vector<T> transformed(std::vector<T> x, int mode, std::int64_t of_block, bool is_inverse) {
    const auto n = static_cast<std::int64_t>(x.size());
    const Shape shape(mode, n, of_block);
    const double scale = 1 / std::sqrt(static_cast<double>(shape.power * shape.order));
    for (T& v : x) v *= static_cast<T>(static_cast<float>(scale));
    for (std::int64_t half = 1; half < shape.power; half *= 2)
        for (std::int64_t i = 0; i < n; i++) {
            if (i & half) continue;
            const std::size_t low = static_cast<std::size_t>(i), high = static_cast<std::size_t>(i + half);
            const T a = x[low], b = x[high];
            x[low] = a + b;
            x[high] = a - b;
        }
    if (shape.order == 1) return x;
    std::vector<T> y(x.size());
    const auto order = static_cast<int>(shape.order);
    for (std::int64_t column = 0; column < shape.power; column++)
        for (int i = 0; i < order; i++) {
            T sum = 0;
            for (int j = 0; j < order; j++) {
                const int sign =
                    is_inverse ? fastffn::hadamard_entry(order, j, i) : fastffn::hadamard_entry(order, i, j);
                sum += static_cast<T>(sign) * x[static_cast<std::size_t>(j * shape.power + column)];
            }
            y[static_cast<std::size_t>(i * shape.power + column)] = sum;
        }
    return y;
}

struct Case {
    int mode;
    std::int64_t n, of_block;
    bool is_inverse;
};

std::string name(const Case& c, DType from, DType to) {
    return "mode " + std::to_string(c.mode) + ", " + std::to_string(c.n) + ", block " + std::to_string(c.of_block) +
           (c.is_inverse ? " inverse" : "") + ", " + std::to_string(static_cast<int>(from)) + " to " +
           std::to_string(static_cast<int>(to)) + ": " + emulator::last_failure() + " ";
}

// A call of the plugin's operation; x and y have gaps between rows, and what lies there must stay.
struct Transformed {
    std::vector<unsigned char> y;
    std::int64_t stride;
    cudaError_t status;
    bool overran = false;
};

Transformed run_hadamard(const Case& c, const Matrix& x, DType to, std::int64_t skew) {
    const int bytes = reference::bytes_of(to);
    Transformed result;
    result.stride = c.n + skew;
    const std::vector<unsigned char> untouched(static_cast<std::size_t>(((x.rows - 1) * result.stride + c.n) * bytes),
                                               0xA5);
    const Device<unsigned char> source(x.data);
    Device<unsigned char> y(untouched);
    HadamardCall call{};
    call.x = {const_cast<unsigned char*>(source.data()), static_cast<std::int32_t>(x.dtype), x.rows, c.n,
              x.stride / reference::bytes_of(x.dtype)};
    call.y = {y.data(), static_cast<std::int32_t>(to), x.rows, c.n, result.stride};
    call.mode = c.mode;
    call.block = c.of_block;
    call.is_inverse = c.is_inverse;
    const std::int64_t workspace_size = workspace_bytes(call);
    Device<unsigned char> workspace(static_cast<std::size_t>(workspace_size));
    result.status = refusal(call) ? cudaErrorNotSupported : run(call, workspace.data(), nullptr);
    result.y = y.host();
    for (std::int64_t r = 0; r + 1 < x.rows; r++)
        for (std::int64_t i = c.n * bytes; i < result.stride * bytes; i++)
            result.overran =
                result.overran || result.y[static_cast<std::size_t>(r * result.stride * bytes + i)] != 0xA5;
    return result;
}

std::vector<double> row_of(const Matrix& x, std::int64_t row) {
    std::vector<double> values;
    for (std::int64_t k = 0; k < x.depth; k++) values.push_back(x.value(row, k));
    return values;
}

// The largest error over the tolerance; bit for bit where no H_K adds in another order.
double worst(const Case& c, std::int64_t rows, DType from, DType to, std::int64_t skew) {
    std::mt19937 random(static_cast<unsigned>(c.n + rows));
    const Matrix x(rows, c.n, from, skew * reference::bytes_of(from), random);
    const Transformed found = run_hadamard(c, x, to, skew);
    if (found.status != cudaSuccess || found.overran) return 1e300;
    const Shape shape(c.mode, c.n, c.of_block);
    const int bytes = reference::bytes_of(to);
    double largest = 0;
    for (std::int64_t r = 0; r < rows; r++) {
        const std::vector<double> exact = transformed(row_of(x, r), c.mode, c.of_block, c.is_inverse);
        std::vector<float> as_floats;
        for (double v : row_of(x, r)) as_floats.push_back(static_cast<float>(v));
        as_floats = transformed(as_floats, c.mode, c.of_block, c.is_inverse);
        double magnitude = 0;
        for (std::int64_t k = 0; k < c.n; k++) magnitude = std::fmax(magnitude, std::fabs(x.value(r, k)));
        const double terms = static_cast<double>(shape.power * shape.order);
        for (std::int64_t k = 0; k < c.n; k++) {
            const double value = reference::load(found.y.data() + (r * found.stride + k) * bytes, to);
            // Each of log2(power) + order additions rounds sums of at most √n · max|x|, cut off on tensor cores.
            const double bound =
                magnitude * std::sqrt(terms) *
                    (std::log2(static_cast<double>(shape.power)) + static_cast<double>(shape.order) + 2) *
                    std::ldexp(1.0, -23) +
                reference::rounding(to, exact[static_cast<std::size_t>(k)]);
            largest = std::fmax(largest, std::fabs(value - exact[static_cast<std::size_t>(k)]) / bound);
            if (shape.order > 1) continue;
            unsigned char stored[4];
            reference::store(stored, to, as_floats[static_cast<std::size_t>(k)]);
            if (std::memcmp(stored, found.y.data() + (r * found.stride + k) * bytes, static_cast<std::size_t>(bytes)) !=
                0)
                return 1e299;
        }
    }
    return largest;
}

}  // namespace

TEST(every_mode_and_type) {
    const Case cases[] = {
        {pow2, 1, 0, false},   {pow2, 2, 0, false},   {pow2, 4, 0, false},      {pow2, 8, 0, false},
        {pow2, 64, 0, false},  {pow2, 256, 0, false}, {pow2, 512, 0, false},    {pow2, 2048, 0, false},
        {block, 6, 0, false},  {block, 20, 2, false}, {block, 96, 0, false},    {block, 1536, 0, false},
        {block, 768, 8, true}, {kron, 12, 0, false},  {kron, 12, 0, true},      {kron, 40, 0, false},
        {kron, 28, 0, true},   {kron, 144, 0, false}, {kron, 432, 0, true},     {kron, 13 * 64, 0, false},
        {kron, 60, 0, true},   {none, 33, 0, false},  {kron, 172 * 4, 0, true}, {kron, 156, 0, false}};
    const DType types[] = {DType::f32, DType::f16, DType::bf16};
    int at = 0;
    for (const Case& c : cases)
        for (DType from : types) {
            const DType to = types[at++ % 3];
            for (std::int64_t skew : {0, 3})
                CHECK(worst(c, skew ? 3 : 5, from, to, skew) <= 1) << name(c, from, to) << "skew " << skew;
        }
}

TEST(sizes_of_models) {
    CHECK(worst({kron, 108 * 64, 0, false}, 1, DType::bf16, DType::bf16, 0) <= 1) << emulator::last_failure();
    CHECK(worst({block, 6912, 0, false}, 2, DType::bf16, DType::f32, 0) <= 1) << emulator::last_failure();
    CHECK(worst({pow2, 16384, 0, false}, 2, DType::f16, DType::f16, 0) <= 1) << emulator::last_failure();
}

TEST(blocks_take_several_rows) {
    // H_K's are few, as each makes the signs for itself.
    emulator::set_multiprocessors(1);
    CHECK(worst({kron, 12, 0, false}, 4 * 8 * 2 + 3, DType::f32, DType::f32, 0) <= 1) << emulator::last_failure();
    CHECK(worst({kron, 28 * 64, 0, false}, 4 * 4 + 5, DType::bf16, DType::f16, 0) <= 1) << emulator::last_failure();
    emulator::set_multiprocessors(3);  // as it was
    // Many rows have fewer threads each.
    CHECK(worst({pow2, 256, 0, false}, 131, DType::f32, DType::f32, 0) <= 1) << emulator::last_failure();
    CHECK(worst({block, 1536, 0, false}, 130, DType::f16, DType::bf16, 1) <= 1) << emulator::last_failure();
    CHECK(worst({kron, 36 * 32, 0, false}, 129, DType::bf16, DType::f32, 0) <= 1) << emulator::last_failure();
}

TEST(rows_longer_than_shared_memory) {
    // 163 KiB on the emulated device: 40960 columns and more go through memory.
    const Case cases[] = {{pow2, 65536, 0, false},
                          {block, 3 * 16384, 0, false},
                          {block, 3 * 16384, 256, false},
                          {block, 2 * 25001, 0, false},
                          {kron, 12 * 4096, 0, true}};
    for (const Case& c : cases)
        for (DType to : {DType::f32, DType::bf16})
            CHECK(worst(c, 2, DType::f32, to, 0) <= 1) << name(c, DType::f32, to);
    CHECK(worst({pow2, 65536, 0, false}, 2, DType::f16, DType::f16, 1) <= 1) << emulator::last_failure();
    CHECK(worst({pow2, 65536, 0, false}, 2, DType::f16, DType::f32, 3) <= 1) << emulator::last_failure();
}

TEST(in_place_and_the_inverse_of_each_other) {
    std::mt19937 random(3);
    for (std::int64_t n : {64, 240, 65536}) {
        const Matrix x(3, n, DType::f32, 0, random);
        Device<unsigned char> data(x.data);
        HadamardCall call{};
        call.x = call.y = {data.data(), static_cast<std::int32_t>(DType::f32), 3, n, n};
        call.mode = kron;
        Device<unsigned char> workspace(static_cast<std::size_t>(workspace_bytes(call)));
        CHECK(run(call, workspace.data(), nullptr) == cudaSuccess) << emulator::last_failure();
        call.is_inverse = 1;
        CHECK(run(call, workspace.data(), nullptr) == cudaSuccess) << emulator::last_failure();
        const auto found = data.host();
        double apart = 0;
        for (std::int64_t r = 0; r < 3; r++)
            for (std::int64_t k = 0; k < n; k++)
                apart = std::fmax(
                    apart, std::fabs(reference::load(found.data() + (r * n + k) * 4, DType::f32) - x.value(r, k)));
        CHECK(apart < 2e-5) << n << ": " << apart;
    }
}

TEST(not_finite) {
    std::mt19937 random(4);
    // A NaN spreads over its block and no further; infinities are NaN or infinite.
    Matrix x(2, 96, DType::f32, 0, random);
    reference::store(x.at(0, 40), DType::f32, NAN);
    const Transformed found = run_hadamard({block, 96, 0, false}, x, DType::f32, 0);
    for (std::int64_t i = 0; i < 192; i++)
        CHECK(std::isnan(reference::load(found.y.data() + i * 4, DType::f32)) == (i >= 32 && i < 64)) << i;
    Matrix z(2, 144, DType::f32, 0, random);
    reference::store(z.at(1, 7), DType::f32, INFINITY);
    const Transformed mixed = run_hadamard({kron, 144, 0, false}, z, DType::f32, 0);
    for (std::int64_t i = 0; i < 288; i++) {
        const double value = reference::load(mixed.y.data() + i * 4, DType::f32);
        // Half of each column's products add infinity and subtract none: columns 0 … 11 of H_2^m meet it, which is one part here.
        CHECK(std::isfinite(value) == (i < 144)) << i;
    }
    // Where a payload would be cut off.
    unsigned char quiet[4] = {1, 0, 0x80, 0x7f};
    std::memcpy(z.at(0, 0), quiet, 4);
    const Transformed nan = run_hadamard({kron, 144, 0, false}, z, DType::f32, 0);
    for (std::int64_t i = 0; i < 144; i++) CHECK(std::isnan(reference::load(nan.y.data() + i * 4, DType::f32))) << i;
}

namespace {

struct Hidden {
    double worst_code = 0;  // steps beyond what rounding of the row explains
    cudaError_t status;
    bool sums_are_right = true, padding_is_zero = true;
};

// Norm, transform and codes in one kernel, against double; γ of one row or of a group's.
Hidden norm_then_codes(std::int64_t tokens, std::int64_t n, int mode, RowRule rule, std::int64_t group, DType from,
                       DType gamma_type, const std::vector<std::int32_t>& offsets, float size = 1) {
    std::mt19937 random(static_cast<unsigned>(n));
    const Matrix x(tokens, n, from, 16, random, size);
    const std::int64_t gammas = offsets.empty() ? 1 : static_cast<std::int64_t>(offsets.size()) - 1;
    const Matrix gamma(1, gammas * n, gamma_type, 0, random);
    const std::int64_t row_bytes = (n + 127) / 128 * 128, groups = group ? (n + group - 1) / group : 1;
    const Device<unsigned char> source(x.data), gamma_data(gamma.data);
    const Device<std::int32_t> group_offsets(offsets);
    Device<std::int8_t> codes(std::vector<std::int8_t>(static_cast<std::size_t>(tokens * row_bytes), 99));
    Device<float> scales(static_cast<std::size_t>(tokens));
    Device<std::int32_t> sums(static_cast<std::size_t>(tokens * groups));
    QuantizeArgs args = {};
    args.rows = {source.data(), from,     x.stride / reference::bytes_of(from), tokens, n, codes.data(),
                 row_bytes,     row_bytes};
    args.rows.transform.norm = {
        gamma_data.data(),           gamma_type, 1e-5f, n, offsets.empty() ? nullptr : group_offsets.data(),
        offsets.empty() ? 0 : gammas};
    const Shape shape(mode, n, 0);
    if (mode)
        args.rows.transform.hadamard = {
            shape.power, static_cast<int>(shape.order), false,
            static_cast<float>(1 / std::sqrt(static_cast<double>(shape.power * shape.order)))};
    Device<unsigned char> scratch(static_cast<std::size_t>(transform_scratch_bytes(tokens, n, args.rows.transform)));
    args.rows.scratch = reinterpret_cast<float*>(scratch.data());
    args.scales = scales.data();
    args.sums = sums.data();
    args.group = group;
    args.groups = groups;
    args.rule = rule;
    args.interleaved = true;
    Hidden result;
    result.status = launch_quantize_rows(args, nullptr);
    const auto found = codes.host();
    const auto found_scales = scales.host();
    const auto found_sums = sums.host();
    for (std::int64_t token = 0; token < (offsets.empty() ? tokens : offsets.back()); token++) {
        std::int64_t which = 0;
        while (!offsets.empty() && offsets[static_cast<std::size_t>(which) + 1] <= token) which++;
        std::vector<double> row = row_of(x, token);
        double squares = 0;
        for (double v : row) squares += v * v;
        const double inverse = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
        for (std::int64_t k = 0; k < n; k++)
            row[static_cast<std::size_t>(k)] *= inverse * gamma.value(0, which * n + k);
        row = transformed(row, mode, 0, false);
        const auto scale = static_cast<double>(found_scales[static_cast<std::size_t>(token)]);
        double largest = 0, mean = 0;
        for (double v : row) largest = std::fmax(largest, std::fabs(v)), mean += std::fabs(v) / static_cast<double>(n);
        const bool four = rule == RowRule::mean4;
        const double wanted = four ? mean / std::sqrt(7.0) : std::fmax(largest, 1e-5) / 127;
        result.worst_code = std::fmax(result.worst_code, std::fabs(scale / wanted - 1) * 1e4);
        std::vector<int> totals(static_cast<std::size_t>(groups));
        for (std::int64_t k = 0; k < row_bytes; k++) {
            const std::int64_t at = k / 64 * 64 + k % 32 / 8 * 16 + (k % 64 >= 32 ? 8 : 0) + k % 8;
            const int code = found[static_cast<std::size_t>(token * row_bytes + at)];
            if (k >= n) {
                result.padding_is_zero = result.padding_is_zero && code == 0;
                continue;
            }
            totals[static_cast<std::size_t>(group ? k / group : 0)] += code;
            const double steps =
                row[static_cast<std::size_t>(k)] / (four ? mean / std::sqrt(7.0) + 1e-5 / std::sqrt(7.0) : wanted);
            const double right = std::fmin(std::fmax(steps, four ? -8.0 : -127.0), four ? 7.0 : 127.0);
            result.worst_code = std::fmax(result.worst_code, std::fabs(code - right) - 0.5);
        }
        for (std::int64_t g = 0; g < groups; g++)
            result.sums_are_right =
                result.sums_are_right &&
                totals[static_cast<std::size_t>(g)] == found_sums[static_cast<std::size_t>(token * groups + g)];
    }
    return result;
}

}  // namespace

TEST(norm_hadamard_and_codes_in_one_kernel) {
    const auto check = [](const Hidden& h, const char* what) {
        CHECK(h.status == cudaSuccess && h.worst_code < 1e-2 && h.sums_are_right && h.padding_is_zero)
            << what << ": " << h.worst_code << (h.sums_are_right ? "" : " sums")
            << (h.padding_is_zero ? "" : " padding") << emulator::last_failure();
    };
    check(norm_then_codes(3, 256, pow2, RowRule::ternary, 0, DType::f32, DType::f32, {}), "pow2");
    check(norm_then_codes(3, 432, kron, RowRule::ternary, 64, DType::f32, DType::bf16, {}), "kron");
    check(norm_then_codes(5, 1536, block, RowRule::mean4, 256, DType::f32, DType::f16, {}), "block, 4 bits");
    check(norm_then_codes(2, 300, none, RowRule::int4, 32, DType::f32, DType::f32, {}), "no transform");
    check(norm_then_codes(3, 51, none, RowRule::int8, 0, DType::bf16, DType::bf16, {}), "51 columns");
    check(norm_then_codes(2, 2048, pow2, RowRule::ternary, 128, DType::f32, DType::f32, {}, 1e25f),
          "squares beyond f32");
    check(norm_then_codes(2, 256, pow2, RowRule::ternary, 0, DType::f32, DType::f32, {}, 3e-3f), "eps counts");
    // Few blocks (on a GPU enough rows for all): each takes several rows, of two warps.
    emulator::set_multiprocessors(1);
    check(norm_then_codes(4 * 4 * 2 + 3, 1536, kron, RowRule::ternary, 32, DType::f32, DType::f32, {}),
          "blocks of several rows");
    emulator::set_multiprocessors(3);  // as it was
    check(norm_then_codes(7, 128, pow2, RowRule::ternary, 0, DType::f32, DType::f32, {0, 2, 2, 3, 6}), "γ of groups");
    check(norm_then_codes(2, 49152, block, RowRule::ternary, 0, DType::f32, DType::f32, {}), "a long row");
    check(norm_then_codes(3, 41000, none, RowRule::ternary, 0, DType::f32, DType::f32, {0, 1, 3}),
          "long rows of groups");
}

TEST(norms_of_rows_that_are_not_finite) {
    std::mt19937 random(6);
    Matrix x(4, 64, DType::f32, 0, random);
    reference::store(x.at(0, 5), DType::f32, INFINITY);
    reference::store(x.at(1, 9), DType::f32, NAN);
    for (std::int64_t k = 0; k < 64; k++) reference::store(x.at(2, k), DType::f32, 0);
    const Matrix gamma(1, 64, DType::f32, 0, random);
    const Device<unsigned char> source(x.data), gamma_data(gamma.data);
    Device<float> y(4 * 64);
    RowsArgs args = {source.data(), DType::f32, 64, 4, 64, y.data(), 256, 256};
    args.transform.norm = {gamma_data.data(), DType::f32, 1e-5f, 64, nullptr, 0};
    CHECK(launch_copy_rows(DType::f32, args, nullptr) == cudaSuccess) << emulator::last_failure();
    const auto found = y.host();
    for (std::size_t k = 0; k < 64; k++) {
        CHECK(k == 5 ? std::isnan(found[k]) : found[k] == 0) << k << ": " << found[k];
        CHECK(std::isnan(found[64 + k])) << k;
        CHECK(found[128 + k] == 0) << k;
        CHECK(std::isfinite(found[192 + k])) << k;
    }
}

TEST(quantize_is_what_ternary_weights_make_of_x) {
    std::mt19937 random(7);
    for (int kind : {0, 1})
        for (std::int64_t n : {1, 7, 130}) {
            const Matrix x(3, n, DType::bf16, 6, random);
            const Device<unsigned char> source(x.data);
            Device<std::int8_t> codes(static_cast<std::size_t>(3 * n));
            Device<float> scales(3);
            QuantizeCall call{};
            call.x = {const_cast<unsigned char*>(source.data()), static_cast<std::int32_t>(DType::bf16), 3, n,
                      x.stride / 2};
            call.codes = codes.data();
            call.scales = scales.data();
            call.kind = kind;
            CHECK(!refusal(call) && workspace_bytes(call) == 0 && run(call, nullptr, nullptr) == cudaSuccess)
                << emulator::last_failure();
            const auto found = codes.host();
            const auto scale = scales.host();
            for (std::int64_t r = 0; r < 3; r++)
                for (std::int64_t k = 0; k < n; k++) {
                    const double value = x.value(r, k), step = static_cast<double>(scale[static_cast<std::size_t>(r)]);
                    const double right = kind ? std::fmin(std::fmax(value / step, -8.0), 7.0) : value / step;
                    CHECK(std::fabs(found[static_cast<std::size_t>(r * n + k)] - right) <= 0.501) << k;
                }
        }
}

TEST(lengths_without_a_transform_are_refused) {
    HadamardCall call{};
    call.x.cols = 24;
    call.mode = pow2;
    CHECK(refusal(call) != nullptr);
    call.mode = block;
    call.block = 16;
    CHECK(refusal(call) != nullptr);
    call.block = 8;
    CHECK(refusal(call) == nullptr);
}

TEST(the_same_bits_in_every_schedule) {
    const Case c = {kron, 432, 0, false};
    std::mt19937 random(9);
    const Matrix x(9, c.n, DType::bf16, 0, random);
    std::vector<unsigned char> first;
    for (unsigned seed : {1u, 2u, 3u}) {
        emulator::set_seed(seed);
        const Transformed found = run_hadamard(c, x, DType::f32, 0);
        if (first.empty()) first = found.y;
        CHECK(found.y == first) << seed;
    }
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
