// Low-rank pairs through the plugin's table beside the CPU library, and their layout for devices.
#include <cmath>
#include <random>

#include "abi.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/fastffn.hpp"
#include "fastffn/lowrank.hpp"
#include "formats/container.hpp"
#include "formats/device_layout.hpp"
#include "launch/matrix.hpp"
#include "layout/lowrank.hpp"
#include "weights.hpp"

extern "C" const fastffn::cuda::Plugin* fastffn_cuda_plugin();

using namespace fastffn;
using namespace fastffn::cuda;
using support::bytes_as;
using support::contains;
using support::Device;
using support::difference;
using support::random;

namespace {

// One pair for both sides.
struct Pair {
    std::vector<std::byte> host;
    Device<std::byte> device;
    PackedHeader header;

    Pair(const std::vector<float>& u, const std::vector<float>& v, std::int64_t out, std::int64_t rank, std::int64_t in,
         Format factors)
        : host(pack(u, v, out, rank, in, factors)), device(for_device(host)) {
        cudaMemcpy(&header, device.data(), sizeof header, cudaMemcpyDeviceToHost);
    }
    static std::vector<std::byte> pack(const std::vector<float>& u, const std::vector<float>& v, std::int64_t out,
                                       std::int64_t rank, std::int64_t in, Format factors) {
        const TensorView u_view(u.data(), DType::f32, {rank, in}), v_view(v.data(), DType::f32, {out, rank});
        std::int64_t bytes = 0;
        packed_factors_bytes(u_view, v_view, factors, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack_factors(u_view, v_view, factors, packed.data(), bytes).value();
        return packed;
    }
    static std::vector<std::byte> for_device(const std::vector<std::byte>& host) {
        PackedMatrix matrix;
        open_packed({host.data(), static_cast<std::int64_t>(host.size())}, "test", "pair", &matrix).value();
        PackedHeader header;
        device_header(matrix, &header).value();
        std::vector<std::byte> bytes(static_cast<std::size_t>(total_bytes(header)));
        pack_device_matrix(matrix, 0, bytes.data() + sizeof header);
        seal_header(header, bytes.data());
        return bytes;
    }
    PackedView view() const { return {host.data(), static_cast<std::int64_t>(host.size())}; }
    DeviceMatrix matrix() const {
        return {device.data() + sizeof header,
                header.format,
                header.flags,
                {header.parameters[0], header.parameters[1]},
                header.out_features,
                header.in_features,
                header.count,
                header.matrix_bytes};
    }
};

Pair random_pair(std::int64_t out, std::int64_t rank, std::int64_t in, Format factors, std::mt19937& generator) {
    return {random(rank * in, generator, 1 / std::sqrt(static_cast<float>(in))),
            random(out * rank, generator, 1 / std::sqrt(static_cast<float>(rank))),
            out,
            rank,
            in,
            factors};
}

double linear_difference(Format factors, std::int64_t tokens, std::int64_t out, std::int64_t rank, std::int64_t in,
                         DType dtype) {
    std::mt19937 generator(static_cast<unsigned>(tokens * 7 + out));
    const Pair pair = random_pair(out, rank, in, factors, generator);
    const std::int64_t stride = in + 5;
    const auto x = bytes_as(random(tokens * stride, generator), dtype);
    const auto bias = random(out, generator);
    std::vector<std::byte> y(static_cast<std::size_t>(tokens * out * reference::bytes_of(dtype)));
    Context context;
    const TensorView bias_view(bias.data(), DType::f32, {out});
    TensorView x_view(x.data(), dtype, {tokens, in});
    x_view.strides[0] = stride;
    linear(context, x_view, pair.view(), &bias_view, TensorView(y.data(), dtype, {tokens, out})).value();

    const Device<std::byte> device_x(x);
    Device<std::byte> device_y(y.size());
    const Device<float> device_bias(bias);
    LinearCall call{};
    call.x = {const_cast<std::byte*>(device_x.data()), static_cast<std::int32_t>(dtype), tokens, in, stride};
    call.y = {device_y.data(), static_cast<std::int32_t>(dtype), tokens, out, out};
    call.w = pair.matrix();
    call.bias = {device_bias.data(), static_cast<std::int32_t>(DType::f32)};
    const std::int64_t bytes = fastffn_cuda_plugin()->linear.workspace(call);
    Device<std::byte> workspace(static_cast<std::size_t>(bytes));
    PluginError error;
    if (fastffn_cuda_plugin()->linear.run(0, nullptr, {workspace.data(), bytes}, call, &error) != 0) {
        std::fprintf(stderr, "%s\n", error.message);
        return 1e300;
    }
    return difference(y, device_y.host(), dtype);
}

// shared: gate and up of the same u. `apart` is set where rows of one did not serve the other.
double ffn_difference(Format factors, std::int64_t tokens, DType dtype, bool is_shared, bool* served) {
    std::mt19937 generator(11);
    const std::int64_t d_model = 300, d_ff = 90, rank = 24;
    const auto u = random(rank * d_model, generator, 0.06f), other_u = random(rank * d_model, generator, 0.06f);
    const auto v = random(d_ff * rank, generator, 0.2f), gate_v = random(d_ff * rank, generator, 0.2f);
    const Pair up(u, v, d_ff, rank, d_model, factors),
        gate(is_shared ? u : other_u, gate_v, d_ff, rank, d_model, factors),
        down = random_pair(d_model, 17, d_ff, factors, generator);
    const auto x = bytes_as(random(tokens * d_model, generator), dtype);
    std::vector<std::byte> y(x.size());
    Context context;
    FfnWeights weights;
    weights.w_up = up.view();
    weights.w_gate = gate.view();
    weights.w_down = down.view();
    weights.activation = Activation::silu;
    ffn(context, TensorView(x.data(), dtype, {tokens, d_model}), weights,
        TensorView(y.data(), dtype, {tokens, d_model}))
        .value();

    const Device<std::byte> device_x(x);
    Device<std::byte> device_y(y.size());
    FfnCall call{};
    call.x = {const_cast<std::byte*>(device_x.data()), static_cast<std::int32_t>(dtype), tokens, d_model, d_model};
    call.y = {device_y.data(), static_cast<std::int32_t>(dtype), tokens, d_model, d_model};
    call.up = up.matrix();
    call.gate = gate.matrix();
    call.down = down.matrix();
    call.activation = static_cast<std::int32_t>(Activation::silu);
    *served = up.header.flags == gate.header.flags && up.header.parameters[1] == gate.header.parameters[1];
    PluginError error;
    if (fastffn_cuda_plugin()->ffn.run(0, nullptr, {}, call, &error) != 0) {
        std::fprintf(stderr, "%s\n", error.message);
        return 1e300;
    }
    return difference(y, device_y.host(), dtype);
}

// A rounding of the result's type; where factors are bf16 or int8 (or f16 rows keep p in f16), p on an edge may fall either way.
double tolerance(Format factors, DType dtype) {
    const double rounding = dtype == DType::bf16 ? 1.0 / 128 : dtype == DType::f16 ? 1.0 / 1024 : 3e-6;
    if (factors == Format::bf16 || factors == Format::int8) return rounding + 0.01;
    return rounding + (factors == Format::f16 && dtype == DType::f16 ? 0.002 : 0);
}

}  // namespace

TEST(linear_is_the_cpus) {
    for (Format factors : {Format::f32, Format::f16, Format::bf16, Format::int8})
        for (DType dtype : {DType::f32, DType::f16, DType::bf16})
            for (std::int64_t tokens : {1, 5, 20}) {
                const double apart =
                    linear_difference(factors, tokens, 37, tokens == 5 ? 8 : 19, tokens == 5 ? 600 : 270, dtype);
                CHECK(apart <= tolerance(factors, dtype)) << format_name(factors) << ", " << tokens << " tokens, dtype "
                                                          << static_cast<int>(dtype) << ": " << apart;
            }
    CHECK(linear_difference(Format::int8, 33, 5, 1, 1, DType::f32) <= 0.02);
}

TEST(ffn_is_the_cpus) {
    for (Format factors : {Format::f32, Format::f16, Format::bf16, Format::int8})
        for (bool is_shared : {true, false}) {
            bool served = false;
            const double apart = ffn_difference(factors, 19, DType::f32, is_shared, &served);
            CHECK(served == is_shared);
            CHECK(apart <= tolerance(factors, DType::f32) + (factors == Format::int8 ? 0.02 : 0))
                << format_name(factors) << (is_shared ? " shared: " : ": ") << apart;
        }
}

TEST(stacks_are_their_matrices) {
    // Three pairs; the second has no tokens, and rows of x come more than once.
    constexpr std::int64_t out = 21, rank = 11, in = 300, tokens = 5, positions = 6;
    const std::vector<std::int32_t> offsets = {0, 2, 2, 6}, rows = {4, 0, 3, 3, 1, 0}, tiles = {0, 0, 2, 2},
                                    count = {2};
    const Device<std::int32_t> device_offsets(offsets), device_rows(rows), device_tiles(tiles), device_count(count);
    TokenGroups groups = {};
    groups.offsets = device_offsets.data();
    groups.rows = device_rows.data();
    groups.tiles = device_tiles.data();
    groups.tile_count = device_count.data();
    groups.max_tiles = 4;
    groups.positions = positions;
    groups.groups = 3;
    groups.tile_tokens = 8;
    for (Format factors : {Format::f32, Format::f16, Format::bf16, Format::int8}) {
        std::mt19937 generator(9);
        std::vector<std::byte> stack;
        std::vector<PackedHeader> headers;
        for (int m = 0; m < 3; m++) {
            const Pair pair = random_pair(out, rank, in, factors, generator);
            const auto bytes = pair.device.host();
            stack.insert(stack.end(), bytes.begin() + sizeof(PackedHeader), bytes.end());
            headers.push_back(pair.header);
        }
        const Device<std::byte> payload(stack);
        const auto x = random(tokens * in, generator);
        const auto bias = random(3 * out, generator);
        Device<float> device_x(x), y(positions * out), alone(out);
        const Device<float> device_bias(bias);
        const DeviceRows x_rows = {device_x.data(), static_cast<std::int32_t>(DType::f32), tokens, in, in};
        const DeviceRows y_rows = {y.data(), static_cast<std::int32_t>(DType::f32), positions, out, out};
        const auto matrix = [&](std::int64_t m, std::int64_t matrices) {
            const PackedHeader& header = headers[0];
            return DeviceMatrix{payload.data() + m * header.matrix_bytes,
                                header.format,
                                header.flags,
                                {header.parameters[0], header.parameters[1]},
                                out,
                                in,
                                matrices,
                                header.matrix_bytes};
        };
        const DeviceMatrix all = matrix(0, 3);
        CHECK(refusal(all) == nullptr);
        Pieces counts{nullptr};
        Input input;
        CHECK(prepare(x_rows, all, counts, nullptr, &input, &groups) == cudaSuccess);
        Device<unsigned char> workspace(static_cast<std::size_t>(counts.used));
        Pieces pieces{workspace.data()};
        CHECK(prepare(x_rows, all, pieces, nullptr, &input, &groups) == cudaSuccess);
        CHECK(multiply(input, all, {}, {device_bias.data(), static_cast<std::int32_t>(DType::f32)}, {},
                       Activation::identity, y_rows, &groups, nullptr) == cudaSuccess);
        const auto result = y.host();
        for (std::int64_t p = 0; p < positions; p++) {
            const std::int64_t m = p < 2 ? 0 : 2;
            DeviceRows row = x_rows, y_row = y_rows;
            row.data = device_x.data() + rows[static_cast<std::size_t>(p)] * in;
            row.rows = y_row.rows = 1;
            y_row.data = alone.data();
            Pieces again{workspace.data()};
            CHECK(prepare(row, matrix(m, 1), again, nullptr, &input) == cudaSuccess);
            CHECK(multiply(input, matrix(m, 1), {},
                           {device_bias.data() + m * out, static_cast<std::int32_t>(DType::f32)}, {},
                           Activation::identity, y_row, nullptr, nullptr) == cudaSuccess);
            const auto expected = alone.host();
            for (std::size_t i = 0; i < expected.size(); i++)
                CHECK(std::fabs(expected[i] - result[static_cast<std::size_t>(p * out) + i]) <=
                      tolerance(factors, DType::f32) * 3)
                    << format_name(factors) << " position " << p << " feature " << i;
        }
    }
}

TEST(rows_that_are_not_finite) {
    // int8: one block of one token is NaN, and so is all of that token's row, and no other.
    std::mt19937 generator(3);
    const Pair pair = random_pair(6, 4, 520, Format::int8, generator);
    auto x = random(2 * 520, generator);
    x[300] = std::nanf("");
    const Device<float> device_x(x);
    Device<float> y(12);
    LinearCall call{};
    call.x = {const_cast<float*>(device_x.data()), static_cast<std::int32_t>(DType::f32), 2, 520, 520};
    call.y = {y.data(), static_cast<std::int32_t>(DType::f32), 2, 6, 6};
    call.w = pair.matrix();
    PluginError error;
    CHECK(fastffn_cuda_plugin()->linear.run(0, nullptr, {}, call, &error) == 0) << error.message;
    const auto result = y.host();
    for (int i = 0; i < 12; i++) CHECK(std::isnan(result[static_cast<std::size_t>(i)]) == (i < 6)) << i;
}

TEST(headers) {
    std::mt19937 generator(1);
    const Pair pair = random_pair(6, 4, 520, Format::int8, generator);
    CHECK(pair.header.layout == device_rows_layout && lowrank_factors_of(pair.header.parameters[1]) == format_int8);
    PackedMatrix matrix;
    const PackedView view = {pair.device.data(), static_cast<std::int64_t>(pair.device.size()), &pair.header};
    CHECK(open_packed(view, "test", "w", &matrix, device_rows_layout).ok());
    PackedHeader forged = pair.header;
    forged.parameters[1] = (forged.parameters[1] & ~255u) | static_cast<std::uint32_t>(format_ternary);
    std::vector<std::byte> bytes = pair.device.host();
    seal_header(forged, bytes.data());
    const Status status =
        open_packed({bytes.data(), static_cast<std::int64_t>(bytes.size())}, "test", "w", &matrix, device_rows_layout);
    CHECK(!status.ok() && contains(status.message(), "options")) << status.message();
    LinearCall call{};
    call.w = pair.matrix();
    call.w.parameters[1] = forged.parameters[1];
    PluginError error;
    CHECK(fastffn_cuda_plugin()->linear.run(0, nullptr, {}, call, &error) != 0 && contains(error.message, "factors"));
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
