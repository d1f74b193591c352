// The plugin's table on the emulated device beside the CPU library: every format that devices have, the same weights and rows.
#include <cmath>
#include <deque>
#include <random>

#include "abi.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/fastffn.hpp"
#include "reference.hpp"
#include "support.hpp"

extern "C" const fastffn::cuda::Plugin* fastffn_cuda_plugin();

using namespace fastffn;
using namespace fastffn::cuda;
using support::contains;
using support::Device;

namespace {

struct Kind {
    Format format;
    PackOptions options;
    bool has_minima = false;  // int4: codes with scales and minima of another library's
};

std::vector<Kind> kinds() {
    return {{Format::f32, {}},
            {Format::f16, {}},
            {Format::bf16, {}},
            {Format::int8, {}},
            {Format::sparse24, {}},
            {Format::sparse24, {{"values", "f16"}}},
            {Format::sparse24, {{"values", "f32"}}},
            {Format::sparse24, {{"values", "int8"}}},
            {Format::ternary, {}},
            {Format::ternary, {{"act", "int4"}}},
            {Format::ternary, {{"group", 64}}},
            {Format::ternary, {{"order", "rows"}}},
            {Format::int4, {}},
            {Format::int4, {{"group", 32}, {"zero_points", true}}},
            {Format::int4, {{"group", 128}, {"act", "int4"}}},
            {Format::int4, {{"group", 64}}, true},
            {Format::int4, {{"act", "bf16"}}},
            {Format::int4, {{"group", 32}, {"act", "bf16"}, {"zero_points", true}}},
            {Format::int4, {{"group", 32}, {"act", "bf16"}}, true}};
}

std::string name(const Kind& kind) {
    std::string text = format_name(kind.format);
    for (const auto& option : kind.options) text += " " + option.name + "=" + option.value.to_string();
    return text + (kind.has_minima ? " minima: " : ": ");
}

std::vector<float> random(std::int64_t count, std::mt19937& generator, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = normal(generator);
    return values;
}

std::vector<std::byte> bytes_as(const std::vector<float>& values, DType dtype) {
    const int element = reference::bytes_of(dtype);
    std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(element));
    for (std::size_t i = 0; i < values.size(); i++)
        reference::store(reinterpret_cast<unsigned char*>(bytes.data()) + i * static_cast<std::size_t>(element), dtype,
                         values[i]);
    return bytes;
}

double value(const std::vector<std::byte>& bytes, std::size_t i, DType dtype) {
    return reference::load(
        reinterpret_cast<const unsigned char*>(bytes.data()) + i * static_cast<std::size_t>(reference::bytes_of(dtype)),
        dtype);
}

// Weights that the format can hold: sparse24 wants two of every four in a row to be zero.
std::vector<float> values_for(const Kind& kind, std::int64_t out, std::int64_t in, std::mt19937& generator) {
    auto w = random(out * in, generator, 1 / std::sqrt(static_cast<float>(in)));
    if (kind.format != Format::sparse24) return w;
    std::vector<std::uint8_t> mask(w.size());
    mask24({w.data(), DType::f32, {out, in}}, Mask24::largest, {mask.data(), DType::u8, {out, in}}).value();
    for (std::size_t i = 0; i < w.size(); i++) w[i] = mask[i] ? w[i] : 0;
    return w;
}

std::vector<float> codes(std::int64_t count, std::mt19937& generator) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = static_cast<float>(generator() % 16);
    return values;
}

// Scales and minima, one per row and group, as options; the arrays live as long as the program.
Kind with_minima(Kind kind, std::int64_t out, std::int64_t in, std::mt19937& generator) {
    static std::deque<std::vector<float>> arrays;
    const std::int64_t group = kind.options[0].value.integer(), groups = (in + group - 1) / group;
    for (const char* name : {"scales", "minima"}) {
        arrays.push_back(random(out * groups, generator, 1 / std::sqrt(static_cast<float>(in)) / 8));
        kind.options.push_back({name, TensorView(arrays.back().data(), DType::f32, {out, groups})});
    }
    return kind;
}

// One matrix for both sides.
struct Weights {
    std::vector<std::byte> host;
    Device<std::byte> device;
    PackedHeader header;

    Weights(const Kind& kind, std::int64_t out, std::int64_t in, std::mt19937& generator)
        : Weights(kind, values_for(kind, out, in, generator), out, in) {}
    Weights(const Kind& kind, const std::vector<float>& w, std::int64_t out, std::int64_t in)
        : host(pack_host(kind, {w.data(), DType::f32, {out, in}})),
          device(pack_device(kind, {w.data(), DType::f32, {out, in}})) {
        cudaMemcpy(&header, device.data(), sizeof header, cudaMemcpyDeviceToHost);
    }
    static std::vector<std::byte> pack_host(const Kind& kind, const TensorView& w) {
        std::int64_t bytes = 0;
        packed_bytes(w, kind.format, kind.options, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack(w, kind.format, kind.options, packed.data(), bytes).value();
        return packed;
    }
    static std::vector<std::byte> pack_device(const Kind& kind, const TensorView& w) {
        std::int64_t bytes = 0;
        device_packed_bytes(w, kind.format, kind.options, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack_for_device(w, kind.format, kind.options, packed.data(), bytes).value();
        return packed;
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

// The largest difference over the largest result; rows of x begin `skew` elements into their memory.
double difference(const std::vector<std::byte>& host, const std::vector<std::byte>& device, DType dtype) {
    double largest = 0, apart = 0;
    for (std::size_t i = 0; i < host.size() / static_cast<std::size_t>(reference::bytes_of(dtype)); i++) {
        const double a = value(host, i, dtype), b = value(device, i, dtype);
        largest = std::fmax(largest, std::fabs(a));
        apart = std::fabs(a - b) <= apart ? apart : std::fabs(a - b);
    }
    return apart / largest;
}

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

TEST(what_devices_have_no_kernels_for) {
    std::mt19937 generator(1);
    const auto values = random(8 * 64, generator);
    const TensorView w(values.data(), DType::f32, {8, 64});
    std::int64_t bytes = 0;
    const Kind refused[] = {{Format::ternary, {{"hadamard", "pow2"}}}};
    for (const Kind& kind : refused) {
        const Status status = device_packed_bytes(w, kind.format, kind.options, &bytes);
        CHECK(status.code() == StatusCode::unsupported && contains(status.message(), "no "))
            << name(kind) << status.message();
    }
    // Forged flags come as far as the plugin.
    const Weights weights({Format::ternary, {}}, values, 8, 64);
    LinearCall call{};
    call.w = weights.matrix();
    call.w.flags |= 1u << 6;
    PluginError error;
    CHECK(fastffn_cuda_plugin()->linear.run(0, nullptr, {}, call, &error) != 0 && contains(error.message, "Hadamard"))
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
    CHECK(contains(error.message, "kernel") && contains(error.message, "sm_80")) << error.message;
    std::int32_t count = 0;
    DeviceInfo info;
    CHECK(fastffn_cuda_plugin()->device_count(&count, &error) == 0 && count == 1);
    CHECK(fastffn_cuda_plugin()->device_info(0, &info, &error) == 0 && info.major == 8 && info.has_code);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
