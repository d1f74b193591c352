// act(gate) ⊙ up of rows in memory: every activation and dtype, strides, in place, more columns than one block has threads.
#include "launch/gate.hpp"

#include "reference.hpp"
#include "support.hpp"

using fastffn::Activation;
using fastffn::DType;
using fastffn::cuda::DeviceRows;
using reference::Matrix;
using support::Device;

namespace {

constexpr Activation activations[] = {Activation::identity, Activation::relu, Activation::relu2,
                                      Activation::gelu,     Activation::silu, Activation::swiglu_clamped};

double worst(std::int64_t rows, std::int64_t cols, Activation activation, DType gate_dtype, DType up_dtype,
             DType y_dtype, bool in_place) {
    std::mt19937 random(static_cast<unsigned>(rows * 31 + cols));
    const Matrix gate(rows, cols, gate_dtype, 32, random, 3), up(rows, cols, up_dtype, 0, random, 3);
    const int bytes = reference::bytes_of(y_dtype);
    const std::int64_t y_stride = in_place ? up.stride / bytes : cols + 3;
    Device<unsigned char> device_gate(gate.data), device_up(up.data),
        y(std::vector<unsigned char>(static_cast<std::size_t>(rows ? ((rows - 1) * y_stride + cols) * bytes : 0),
                                     0xA5));
    const DeviceRows out = {in_place ? device_up.data() : y.data(), static_cast<std::int32_t>(y_dtype), rows, cols,
                            y_stride};
    const cudaError_t status = launch_gate(
        activation,
        {device_gate.data(), static_cast<std::int32_t>(gate_dtype), rows, cols,
         gate.stride / reference::bytes_of(gate_dtype)},
        {device_up.data(), static_cast<std::int32_t>(up_dtype), rows, cols, up.stride / reference::bytes_of(up_dtype)},
        out, nullptr);
    if (status != cudaSuccess || cudaDeviceSynchronize() != cudaSuccess) return 1e300;
    const auto result = in_place ? device_up.host() : y.host();
    double apart = 0;
    for (std::int64_t r = 0; r < rows; r++)
        for (std::int64_t c = 0; c < cols; c++) {
            // Half a last place of the gate: what the activation's own argument is rounded by.
            const double rounded = std::ldexp(std::fabs(gate.value(r, c)), -24);
            const reference::Value expected =
                reference::through_gated(activation, {gate.value(r, c), rounded}, {up.value(r, c), 0});
            const double got = reference::load(result.data() + (r * y_stride + c) * bytes, y_dtype);
            const double error =
                std::fabs(got - expected.value) / (expected.error + std::ldexp(std::fabs(expected.value), -22) +
                                                   reference::rounding(y_dtype, expected.value));
            apart = error <= apart ? apart : error;
        }
    return apart;
}

}  // namespace

TEST(gated_rows) {
    for (const Activation activation : activations)
        for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
            CHECK(worst(3, 37, activation, dtype, DType::f32, dtype, false) <= 1) << static_cast<int>(activation);
            CHECK(worst(1, 300, activation, DType::f32, dtype, DType::f32, false) <= 1) << static_cast<int>(activation);
        }
    CHECK(worst(2, 600, Activation::silu, DType::f32, DType::f32, DType::f32, true) <= 1);
}

TEST(nothing_and_wrong_shapes) {
    CHECK(worst(0, 37, Activation::silu, DType::f32, DType::f32, DType::f32, false) == 0);
    const DeviceRows rows = {nullptr, static_cast<std::int32_t>(DType::f32), 1, 4, 4};
    DeviceRows wider = rows;
    wider.cols = 5;
    CHECK(fastffn::cuda::launch_gate(Activation::silu, rows, wider, rows, nullptr) == cudaErrorInvalidValue);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
