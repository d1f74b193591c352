// The plugin's table on the emulated device beside the CPU library: every format that devices have, the same weights and rows.
#include "architectures.hpp"
#include "weights.hpp"

extern "C" const fastffn::cuda::Plugin* fastffn_cuda_plugin();

using namespace fastffn;
using namespace fastffn::cuda;
using namespace support;

namespace {

// Rows of x begin `skew` elements into their memory.
double linear_difference(const Kind& kind, std::int64_t tokens, std::int64_t out, std::int64_t in, DType dtype,
                         int skew, bool biased) {
    std::mt19937 generator(static_cast<unsigned>(tokens * 7 + out));
    const Weights w(kind, out, in, generator);
    const std::int64_t stride = in + skew;
    const auto x = bytes_as(random(skew + tokens * stride, generator), dtype);
    const auto bias = random(out, generator);
    const auto element = static_cast<std::size_t>(reference::bytes_of(dtype));
    std::vector<std::byte> y(static_cast<std::size_t>(tokens * out) * element);
    Context context;
    const TensorView bias_view(bias.data(), DType::f32, {out});
    TensorView x_view(x.data() + static_cast<std::size_t>(skew) * element, dtype, {tokens, in});
    x_view.strides[0] = stride;
    linear(context, x_view, w.view(), biased ? &bias_view : nullptr, TensorView(y.data(), dtype, {tokens, out}))
        .value();

    Device<std::byte> device_x(x), device_y(y.size());
    const Device<float> device_bias(bias);
    LinearCall call{};
    call.x = {device_x.data() + static_cast<std::size_t>(skew) * element, static_cast<std::int32_t>(dtype), tokens, in,
              stride};
    call.y = {device_y.data(), static_cast<std::int32_t>(dtype), tokens, out, out};
    call.w = w.matrix();
    if (biased) call.bias = {device_bias.data(), static_cast<std::int32_t>(DType::f32)};
    PluginError error;
    if (fastffn_cuda_plugin()->linear.run(0, nullptr, {}, call, &error) != 0) {
        std::fprintf(stderr, "%s\n", error.message);
        return 1e300;
    }
    return difference(y, device_y.host(), dtype);
}

double ffn_difference(const Kind& up_kind, const Kind& down_kind, std::int64_t tokens, DType dtype, bool gated,
                      bool own_workspace) {
    std::mt19937 generator(5);
    const std::int64_t d_model = 70, d_ff = 101;
    const Weights up(up_kind, d_ff, d_model, generator), gate(up_kind, d_ff, d_model, generator),
        down(down_kind, d_model, d_ff, generator);
    const auto x = bytes_as(random(tokens * d_model, generator), dtype);
    const auto b_up = random(d_ff, generator), b_gate = random(d_ff, generator), b_down = random(d_model, generator);
    std::vector<std::byte> y(x.size());
    Context context;
    const TensorView up_view(b_up.data(), DType::f32, {d_ff}), gate_view(b_gate.data(), DType::f32, {d_ff}),
        down_view(b_down.data(), DType::f32, {d_model});
    FfnWeights weights;
    weights.w_up = up.view();
    weights.w_down = down.view();
    weights.b_up = &up_view;
    weights.b_down = &down_view;
    weights.activation = gated ? Activation::silu : Activation::gelu;
    if (gated) weights.w_gate = gate.view(), weights.b_gate = &gate_view;
    ffn(context, TensorView(x.data(), dtype, {tokens, d_model}), weights,
        TensorView(y.data(), dtype, {tokens, d_model}))
        .value();

    Device<std::byte> device_x(x), device_y(y.size());
    const Device<float> device_b_up(b_up), device_b_gate(b_gate), device_b_down(b_down);
    FfnCall call{};
    call.x = {device_x.data(), static_cast<std::int32_t>(dtype), tokens, d_model, d_model};
    call.y = {device_y.data(), static_cast<std::int32_t>(dtype), tokens, d_model, d_model};
    call.up = up.matrix();
    call.down = down.matrix();
    if (gated) call.gate = gate.matrix();
    call.b_up = {device_b_up.data(), static_cast<std::int32_t>(DType::f32)};
    call.b_down = {device_b_down.data(), static_cast<std::int32_t>(DType::f32)};
    if (gated) call.b_gate = {device_b_gate.data(), static_cast<std::int32_t>(DType::f32)};
    call.activation = static_cast<std::int32_t>(weights.activation);
    const std::int64_t bytes = fastffn_cuda_plugin()->ffn.workspace(call);
    Device<std::byte> workspace(static_cast<std::size_t>(bytes));  // exactly: a guard page follows
    PluginError error;
    if (fastffn_cuda_plugin()->ffn.run(0, nullptr, {own_workspace ? workspace.data() : nullptr, bytes}, call, &error) !=
        0) {
        std::fprintf(stderr, "%s\n", error.message);
        return 1e300;
    }
    return difference(y, device_y.host(), dtype);
}

// Differences of one rounding of the result's type, and of f32 sums in another order.
double rounding_of(DType dtype) { return dtype == DType::bf16 ? 1.0 / 128 : dtype == DType::f16 ? 1.0 / 1024 : 3e-6; }

// Where the mean of magnitudes is summed in another order a code may differ by one step.
bool has_mean(const Kind& kind) {
    for (const auto& option : kind.options)
        if (option.name == "act" && option.value.to_string() == "int4") return true;
    return false;
}

}  // namespace

TEST(linear_is_the_cpus) {
    for (const Kind& kind : kinds())
        for (DType dtype : {DType::f32, DType::f16, DType::bf16})
            for (std::int64_t tokens : {1, 5, 20})
                for (int skew : {0, 3}) {
                    const double apart = linear_difference(kind, tokens, 37, skew ? 90 : 64, dtype, skew, tokens == 5);
                    CHECK(apart <= rounding_of(dtype) + (has_mean(kind) ? 0.05 : 0))
                        << name(kind) << tokens << " tokens, dtype " << static_cast<int>(dtype) << ": " << apart;
                }
}

TEST(linear_of_many_tokens_is_the_cpus) {
    for (const Kind& kind : kinds()) {
        if (kind.format != Format::ternary && kind.format != Format::int4) continue;
        const double apart = linear_difference(kind, 75, 37, 90, DType::f16, 0, true);
        CHECK(apart <= rounding_of(DType::f16) + (has_mean(kind) ? 0.05 : 0)) << name(kind) << apart;
    }
}

TEST(ffn_is_the_cpus) {
    // Hidden activations on the edge between two codes or two bf16 numbers may fall either way.
    for (const Kind& kind : kinds())
        for (DType dtype : {DType::f32, DType::bf16})
            for (bool gated : {false, true}) {
                const double apart = ffn_difference(kind, kind, 3, dtype, gated, gated);
                const double slack = kind.format == Format::f32 || kind.format == Format::f16 ? 0
                                     : has_mean(kind)                                         ? 0.1
                                                                                              : 0.01;
                CHECK(apart <= rounding_of(dtype) + slack)
                    << name(kind) << "dtype " << static_cast<int>(dtype) << (gated ? " gated: " : ": ") << apart;
            }
    CHECK(ffn_difference({Format::bf16, {}}, {Format::int8, {}}, 20, DType::f32, true, true) <= 0.02);
    CHECK(ffn_difference({Format::ternary, {}}, {Format::bf16, {}}, 20, DType::f32, true, false) <= 0.02);
}

TEST(many_tokens_run_in_chunks) {
    // 2048 and 5 more (launch/ffn.cu): those of the second chunk lie behind the first's.
    CHECK(ffn_difference({Format::bf16, {}}, {Format::bf16, {}}, 2053, DType::f32, true, true) <= 0.01);
}

TEST(flags_that_nobody_knows_are_refused) {
    std::mt19937 generator(1);
    const Weights weights({Format::ternary, {}}, random(8 * 64, generator), 8, 64);
    LinearCall call{};
    call.w = weights.matrix();
    call.w.flags |= 1u << 20;
    PluginError error;
    CHECK(fastffn_cuda_plugin()->linear.run(0, nullptr, {}, call, &error) != 0 && contains(error.message, "flags"))
        << error.message;
}

TEST(a_failed_launch_says_which) {
    if (support::on_gpu) return check::skip("a launch that a GPU refuses ends the program's use of it");
    std::mt19937 generator(1);
    const Weights weights({Format::bf16, {}}, 8, 64, generator);
    Device<float> y(8);
    LinearCall call{};
    call.x = {nullptr, static_cast<std::int32_t>(DType::bf16), std::int64_t{1} << 50, 64, 64};
    call.y = {y.data(), static_cast<std::int32_t>(DType::f32), std::int64_t{1} << 50, 8, 8};
    call.w = weights.matrix();
    PluginError error;
    CHECK(fastffn_cuda_plugin()->linear.run(0, nullptr, {}, call, &error) != 0);
    CHECK(contains(error.message, "kernel") &&
          contains(error.message, ("sm_" + std::to_string(emulator::architecture())).c_str()))
        << error.message;
    std::int32_t count = 0;
    DeviceInfo info;
    CHECK(fastffn_cuda_plugin()->device_count(&count, &error) == 0 && count == 1);
    CHECK(fastffn_cuda_plugin()->device_info(0, &info, &error) == 0 && info.major == emulator::architecture() / 10 &&
          info.has_code);
}

TEST(devices_that_machine_code_runs_on) {
    const char* const all = "80 86 89 90 90a 100 120 ptx120";
    for (const int capability : {80, 86, 87, 89, 90, 100, 103, 120, 121})
        CHECK(has_machine_code(all, capability / 10, capability % 10)) << capability;
    for (const int capability : {75, 70, 110, 130})
        CHECK(!has_machine_code(all, capability / 10, capability % 10)) << capability;
    CHECK(has_machine_code("90a", 9, 0) && !has_machine_code("90a", 9, 1) && !has_machine_code("90a", 10, 0));
    CHECK(!has_machine_code("86", 8, 0) && has_machine_code("80", 8, 9));
    for (const char* const names : {"", "cpu", "native", "ptx80", "100f", "80x"})
        CHECK(!has_machine_code(names, 8, 0) && !has_machine_code(names, 10, 0)) << names;
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
