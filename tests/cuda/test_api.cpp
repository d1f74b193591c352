// The public C++ API on a device: the emulated plugin, loaded as a user's program loads the real one.
#include <cmath>
#include <cstring>
#include <vector>

#include "../cpp/check.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/fastffn.hpp"

using namespace fastffn;

TEST(linear_and_ffn_where_the_weights_are) {
    const CudaReport& report = cuda_report();
    CHECK(report.available && report.devices.size() == 1) << report.reason;
    constexpr std::int64_t tokens = 3, d_model = 130, d_ff = 24;
    std::vector<float> w(d_ff * d_model), x(tokens * d_model);
    for (std::size_t i = 0; i < w.size(); i++) w[i] = std::sin(0.37f * static_cast<float>(i));
    for (std::size_t i = 0; i < x.size(); i++) x[i] = std::cos(0.11f * static_cast<float>(i));
    const TensorView x_view(x.data(), DType::f32, {tokens, d_model});
    // The emulated device's memory is the host's.
    const auto device_pack = [](const TensorView& view, Format format, PackedHeader* header) {
        std::int64_t bytes = 0;
        device_packed_bytes(view, format, {}, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack_for_device(view, format, {}, packed.data(), bytes).value();
        read_device_header({0, nullptr}, packed.data(), bytes, header).value();
        return packed;
    };
    const auto host_pack = [](const TensorView& view, Format format) {
        std::int64_t bytes = 0;
        packed_bytes(view, format, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack(view, format, packed.data(), bytes).value();
        return packed;
    };
    const auto size = [](const std::vector<std::byte>& packed) { return static_cast<std::int64_t>(packed.size()); };
    for (Format format : {Format::f32, Format::f16, Format::bf16, Format::int8, Format::ternary, Format::int4}) {
        const TensorView up_view(w.data(), DType::f32, {d_ff, d_model}),
            down_view(w.data(), DType::f32, {d_model, d_ff});
        PackedHeader up_header, down_header;
        const auto up = device_pack(up_view, format, &up_header), down = device_pack(down_view, format, &down_header);
        const auto host_up = host_pack(up_view, format), host_down = host_pack(down_view, format);
        const PackedView up_packed{up.data(), size(up), &up_header}, down_packed{down.data(), size(down), &down_header};
        std::vector<float> y(tokens * d_model), wanted(tokens * d_model);
        const auto differs = [&](std::size_t count) {
            double largest = 0, apart = 0;
            for (std::size_t i = 0; i < count; i++) {
                largest = std::fmax(largest, std::fabs(static_cast<double>(wanted[i])));
                apart = std::fmax(apart, std::fabs(static_cast<double>(y[i]) - static_cast<double>(wanted[i])));
            }
            return apart / largest;
        };
        Context context;
        const TensorView hidden(y.data(), DType::f32, {tokens, d_ff}),
            hidden_wanted(wanted.data(), DType::f32, {tokens, d_ff});
        cuda_linear({0, nullptr}, x_view, up_packed, nullptr, hidden).value();
        linear(context, x_view, {host_up.data(), size(host_up)}, nullptr, hidden_wanted).value();
        CHECK(differs(tokens * d_ff) < 3e-6) << format_name(format) << " linear: " << differs(tokens * d_ff);

        FfnWeights weights, host_weights;
        weights.w_up = weights.w_gate = up_packed;
        weights.w_down = down_packed;
        host_weights.w_up = host_weights.w_gate = {host_up.data(), size(host_up)};
        host_weights.w_down = {host_down.data(), size(host_down)};
        cuda_ffn({0, nullptr}, x_view, weights, TensorView(y.data(), DType::f32, {tokens, d_model})).value();
        ffn(context, x_view, host_weights, TensorView(wanted.data(), DType::f32, {tokens, d_model})).value();
        CHECK(differs(y.size()) < 0.01) << format_name(format) << " ffn: " << differs(y.size());
    }
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
