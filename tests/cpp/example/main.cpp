// Packs the weights of a gated layer and runs it on two tokens.
#include <fastffn/fastffn.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
    constexpr std::int64_t tokens = 2, d_model = 4, d_ff = 8;

    // Weights as torch.nn.Linear holds them: [out_features, in_features].
    const std::vector<float> w_up(d_ff * d_model, 0.5f), w_gate(d_ff * d_model, 0.25f), w_down(d_model * d_ff, 0.125f);
    auto pack = [](const std::vector<float>& weights, std::int64_t out, std::int64_t in) {
        const fastffn::TensorView w(weights.data(), fastffn::DType::f32, {out, in});
        std::int64_t bytes = 0;
        fastffn::packed_bytes(w, fastffn::Format::bf16, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        fastffn::pack(w, fastffn::Format::bf16, packed.data(), bytes).value();
        return packed;
    };
    const auto up = pack(w_up, d_ff, d_model), gate = pack(w_gate, d_ff, d_model), down = pack(w_down, d_model, d_ff);
    auto view = [](const std::vector<std::byte>& packed) {
        return fastffn::PackedView{packed.data(), static_cast<std::int64_t>(packed.size())};
    };

    fastffn::FfnWeights weights;
    weights.w_up = view(up);
    weights.w_gate = view(gate);
    weights.w_down = view(down);
    weights.activation = fastffn::Activation::silu;

    const std::vector<float> x(tokens * d_model, 1.0f);
    std::vector<float> y(tokens * d_model);
    fastffn::Context context;  // threads and workspace, kept from call to call
    fastffn::ffn(context, {x.data(), fastffn::DType::f32, {tokens, d_model}}, weights,
                 {y.data(), fastffn::DType::f32, {tokens, d_model}})
        .value();

    // silu(4 · 0.25) · (4 · 0.5), summed over 8 hidden units times 0.125, with the hidden value rounded to bf16.
    const float expected = 1.0f / (1.0f + std::exp(-1.0f)) * 2.0f;
    std::printf("fastffn %s, %s: y = %f, expected %f\n", fastffn::version(), context.last_kernel(), y[0], expected);
    for (float value : y)
        if (std::fabs(value - expected) > 0.01f) return 1;

    // The same weights in the order of CUDA devices, in the host's memory. Without a device calls there say why.
    std::int64_t bytes = 0;
    fastffn::device_packed_bytes(weights.w_up, &bytes).value();
    std::vector<std::byte> for_device(static_cast<std::size_t>(bytes));
    fastffn::pack_for_device(weights.w_up, for_device.data(), bytes).value();
    const fastffn::CudaReport& cuda = fastffn::cuda_report();
    std::printf("CUDA: %s\n", cuda.available ? cuda.devices[0].name.c_str() : cuda.reason.c_str());
    if (cuda.available) return 0;
    const fastffn::TensorView x_rows(x.data(), fastffn::DType::f32, {tokens, d_model});
    const auto refused = [&](fastffn::CudaStream stream) { return fastffn::cuda_hadamard(stream, x_rows, {}, x_rows); };
    const fastffn::Status status = fastffn::cuda_workspace({}, refused, &bytes);
    return status.message().find("hadamard: CUDA is unavailable: ") == 0 ? 0 : 1;
}
