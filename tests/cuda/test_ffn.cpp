// What an ffn does between its products, on the emulated device beside the CPU library: norms, Hadamard transforms, segments, gate first.
// The plugin is loaded as a user's program loads the real one; the device's memory is the host's.
#include <cmath>
#include <cstring>
#include <random>

#include "../cpp/check.hpp"
#include "core/convert.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/fastffn.hpp"

using namespace fastffn;

namespace {

struct Kind {
    Format format;
    PackOptions options;
};

std::string name(const Kind& kind) {
    std::string text = format_name(kind.format);
    for (const auto& option : kind.options) text += " " + option.name + "=" + option.value.to_string();
    return text;
}

std::vector<float> random(std::int64_t count, unsigned seed, float scale = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = normal(generator);
    return values;
}

std::vector<std::byte> as(const std::vector<float>& values, DType dtype) {
    const std::int64_t bytes = element_bytes(dtype);
    std::vector<std::byte> result(values.size() * static_cast<std::size_t>(bytes));
    for (std::size_t i = 0; i < values.size(); i++)
        store_f32(result.data() + static_cast<std::int64_t>(i) * bytes, dtype, values[i]);
    return result;
}

// One matrix on both sides.
struct Weights {
    std::vector<std::byte> host, device;
    PackedHeader header;

    Weights(const Kind& kind, std::vector<float> w, std::int64_t out, std::int64_t in) {
        if (kind.format == Format::sparse24)
            for (std::size_t i = 0; i < w.size(); i++)
                if (i % 4 < 2) w[i] = 0;
        const TensorView view(w.data(), DType::f32, {out, in});
        std::int64_t bytes = 0;
        packed_bytes(view, kind.format, kind.options, &bytes).value();
        host.resize(static_cast<std::size_t>(bytes));
        pack(view, kind.format, kind.options, host.data(), bytes).value();
        device_packed_bytes(view, kind.format, kind.options, &bytes).value();
        device.resize(static_cast<std::size_t>(bytes));
        pack_for_device(view, kind.format, kind.options, device.data(), bytes).value();
        std::memcpy(&header, device.data(), sizeof header);
    }
    PackedView on_host() const { return {host.data(), static_cast<std::int64_t>(host.size())}; }
    PackedView on_device() const { return {device.data(), static_cast<std::int64_t>(device.size()), &header}; }
};

struct Layer {
    Kind up = {Format::f32, {}}, down = {Format::f32, {}}, gate = {Format::f32, {}};
    std::int64_t tokens = 3, d_model = 64, d_ff = 96;
    DType dtype = DType::f32;
    bool is_gated = true, has_biases = true;
    Activation activation = Activation::relu2;
    bool has_norm = false;
    std::vector<Segment> segments = {};
    GateFirst gate_first = GateFirst::never;
    float dead_gates = 0;  // subtracted from gates' biases: most of them become zero
    float size = 1;        // of x
};

struct Compared {
    Status host, device;
    double apart = 0;  // largest difference over the largest result
    bool both_finite = true, nan_alike = true;
};

Compared compare(const Layer& l) {
    const auto scale = [](std::int64_t in) { return 1 / std::sqrt(static_cast<float>(in)); };
    const Weights up(l.up, random(l.d_ff * l.d_model, 1, scale(l.d_model)), l.d_ff, l.d_model),
        gate(l.gate, random(l.d_ff * l.d_model, 2, scale(l.d_model)), l.d_ff, l.d_model),
        down(l.down, random(l.d_model * l.d_ff, 3, scale(l.d_ff)), l.d_model, l.d_ff);
    const auto x = as(random(l.tokens * l.d_model, 4, l.size), l.dtype);
    const auto b_up = random(l.d_ff, 5), b_down = random(l.d_model, 6);
    auto b_gate = random(l.d_ff, 7, 0.1f), gamma = random(l.d_ff, 8);
    for (float& b : b_gate) b -= l.dead_gates;
    // γ where no segment is may be anything.
    if (!l.segments.empty()) {
        std::vector<float> outside(gamma.size(), NAN);
        for (const Segment& s : l.segments)
            for (std::int64_t c = s.start; c < s.start + s.length && c < l.d_ff; c++)
                outside[static_cast<std::size_t>(c)] = gamma[static_cast<std::size_t>(c)];
        gamma = outside;
    }
    const TensorView up_view(b_up.data(), DType::f32, {l.d_ff}), gate_view(b_gate.data(), DType::f32, {l.d_ff}),
        down_view(b_down.data(), DType::f32, {l.d_model}), gamma_view(gamma.data(), DType::f32, {l.d_ff});
    FfnWeights weights;
    weights.w_up = up.on_host();
    weights.w_down = down.on_host();
    if (l.is_gated) weights.w_gate = gate.on_host();
    if (l.has_biases) {
        weights.b_up = &up_view;
        weights.b_down = &down_view;
        if (l.is_gated) weights.b_gate = &gate_view;
    }
    weights.activation = l.activation;
    if (l.has_norm) weights.sub_norm = &gamma_view;
    weights.segments = l.segments.empty() ? nullptr : l.segments.data();
    weights.segment_count = static_cast<std::int64_t>(l.segments.size());
    weights.gate_first = l.gate_first;
    std::vector<std::byte> y(x.size()), wanted(x.size());
    const TensorView x_view(x.data(), l.dtype, {l.tokens, l.d_model});
    Context context;
    Compared result;
    result.host = ffn(context, x_view, weights, TensorView(wanted.data(), l.dtype, {l.tokens, l.d_model}));
    weights.w_up = up.on_device();
    weights.w_down = down.on_device();
    if (l.is_gated) weights.w_gate = gate.on_device();
    result.device = cuda_ffn({0, nullptr}, x_view, weights, TensorView(y.data(), l.dtype, {l.tokens, l.d_model}));
    double largest = 0;
    for (std::int64_t i = 0; i < l.tokens * l.d_model; i++) {
        const double a = load_f32(y.data() + i * element_bytes(l.dtype), l.dtype),
                     b = load_f32(wanted.data() + i * element_bytes(l.dtype), l.dtype);
        result.nan_alike = result.nan_alike && std::isnan(a) == std::isnan(b);
        result.both_finite = result.both_finite && std::isfinite(a) && std::isfinite(b);
        if (!std::isfinite(a) || !std::isfinite(b)) continue;
        largest = std::fmax(largest, std::fabs(b));
        result.apart = std::fmax(result.apart, std::fabs(a - b));
    }
    result.apart /= largest;
    return result;
}

// Of the result's type, of f32 sums in another order, and where an activation on the edge of two codes falls the other way: a
// step of 1/127 of the largest activation times one weight, or 1/√7 of the mean one.
double tolerance(const Layer& l) {
    double slack = l.dtype == DType::bf16 ? 1.0 / 128 : l.dtype == DType::f16 ? 1.0 / 1024 : 6e-6;
    for (const Kind* kind : {&l.up, &l.down}) {
        bool has_mean = false;
        for (const auto& option : kind->options)
            has_mean = has_mean || (option.name == "act" && option.value.to_string() == "'int4'");
        if (has_mean) slack += 0.1;
        else if (kind->format != Format::f32 && kind->format != Format::f16) slack += 0.01;
    }
    return slack;
}

void agrees(const Layer& l, const char* what) {
    const Compared c = compare(l);
    CHECK(c.host.ok() && c.device.ok()) << what << " " << c.host.message() << " | " << c.device.message();
    CHECK(c.both_finite && c.apart <= tolerance(l))
        << what << ": " << name(l.up) << " / " << name(l.down) << ", " << l.tokens << " tokens: " << c.apart;
}

const Kind f32 = {Format::f32, {}}, f16 = {Format::f16, {}}, bf16 = {Format::bf16, {}}, int8 = {Format::int8, {}},
           ternary = {Format::ternary, {}}, ternary_rows = {Format::ternary, {{"order", "rows"}}},
           int4_rows = {Format::int4, {{"order", "rows"}, {"group", 32}, {"zero_points", true}}};

}  // namespace

TEST(hadamard_formats) {
    for (const char* mode : {"pow2", "kron", "block"})
        for (Format format : {Format::ternary, Format::int4})
            for (bool rotated : {false, true}) {
                Layer l;
                const bool is_kron = mode[0] == 'k';
                l.d_model = 64;
                l.d_ff = mode[0] == 'p' ? 256 : is_kron ? 144 : 96;
                l.up = l.gate = {format, {{"hadamard", mode}, {"rotated", rotated}}};
                l.down = l.up;
                l.activation = Activation::silu;
                agrees(l, mode);
                l.down.options.push_back({"group", 64});
                l.dtype = DType::bf16;
                l.tokens = 20;
                agrees(l, mode);
            }
    Layer l;
    l.down = {Format::ternary, {{"hadamard", "block"}, {"block", 8}, {"act", "int4"}}};
    agrees(l, "blocks of 8, 4 bits");
}

TEST(sub_norm) {
    for (const Kind& kind : {f32, f16, bf16, int8, ternary})
        for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
            Layer l;
            l.up = l.gate = l.down = kind;
            l.has_norm = true;
            l.dtype = dtype;
            agrees(l, "sub_norm");
        }
    Layer l;
    l.has_norm = true;
    l.up = l.gate = ternary;
    l.down = {Format::ternary, {{"hadamard", "kron"}}};
    l.d_ff = 240;
    agrees(l, "BitNet's and a transform");
    l.dtype = DType::f16;
    l.size = 300;  // relu² · up reaches 1e7
    l.down = f16;
    agrees(l, "beyond f16");
    l.dtype = DType::f32;
    l.size = 1;
    l.down = {Format::sparse24, {{"values", "f32"}}};
    l.up = l.gate = f32;
    l.is_gated = false;
    agrees(l, "not gated, sparse24");
}

TEST(gate_and_up_of_different_formats) {
    Layer l;
    l.activation = Activation::silu;
    l.up = bf16;
    l.gate = ternary;
    l.has_norm = true;
    agrees(l, "bf16 and ternary");
    l.up = {Format::ternary, {{"hadamard", "pow2"}}};
    agrees(l, "one of them transformed");
    l.segments = {{3, 20}, {40, 30}};
    agrees(l, "with segments");
}

TEST(segments) {
    const std::vector<std::vector<Segment>> lists = {{{0, 96}},
                                                     {{0, 1}},
                                                     {{0, 50}},
                                                     {{95, 1}},
                                                     {{17, 40}},
                                                     {{0, 16}, {16, 16}, {70, 26}},
                                                     {{1, 3}, {64, 2}, {90, 6}}};
    for (const auto& list : lists)
        for (const Kind& kind : {f32, f16, bf16, int8, ternary, int4_rows, Kind{Format::sparse24, {}}})
            for (bool has_norm : {false, true})
                for (std::int64_t tokens : {1, 20}) {
                    Layer l;
                    l.up = l.gate = l.down = kind;
                    l.segments = list;
                    l.has_norm = has_norm;
                    l.tokens = tokens;
                    l.is_gated = tokens == 1;
                    agrees(l, "segments");
                }
    Layer l;
    l.d_ff = 1024;
    l.segments = {{130, 300}};
    for (const Kind& kind : {f32, bf16, int8}) {
        l.up = l.gate = l.down = kind;
        agrees(l, "a slice of w_down");
    }
    l.up = l.gate = ternary;
    l.down = {Format::ternary, {{"hadamard", "pow2"}}};
    agrees(l, "transformed after what lies between is zero");
}

TEST(gate_first_gives_the_dense_result) {
    for (const Kind& kind : {ternary_rows, int4_rows, Kind{Format::int4, {{"order", "rows"}}},

                             Kind{Format::ternary, {{"order", "rows"}, {"act", "int4"}}},
                             Kind{Format::ternary, {{"order", "rows"}, {"group", 128}}}})
        for (std::int64_t tokens : {1, 4, 8, 9, 20})
            for (float dead : {0.0f, 0.5f, 50.0f}) {
                Layer l;
                l.up = l.gate = kind;
                l.down = bf16;
                l.d_model = 320;
                l.d_ff = 150;
                l.tokens = tokens;
                l.gate_first = GateFirst::always;
                l.dead_gates = dead;
                l.activation = tokens == 4 ? Activation::relu : Activation::relu2;
                agrees(l, "gate first");
            }
    Layer l;
    l.up = ternary_rows;
    l.gate = bf16;
    l.down = {Format::ternary, {{"hadamard", "block"}}};
    l.has_norm = true;
    l.gate_first = GateFirst::always;
    l.dead_gates = 1;
    agrees(l, "a gate of another format, and a norm");
    l.gate_first = GateFirst::automatic;
    agrees(l, "automatic");
}

TEST(gate_first_needs_what_the_cpus_needs) {
    Layer l;
    l.gate_first = GateFirst::always;
    l.up = l.gate = ternary;
    const Compared order = compare(l);
    CHECK(!order.device.ok() && order.host.message() == order.device.message()) << order.device.message();
    l.up = l.gate = ternary_rows;
    l.activation = Activation::silu;
    const Compared activation = compare(l);
    CHECK(!activation.device.ok() && activation.host.message() == activation.device.message())
        << activation.device.message();
    l.activation = Activation::relu2;
    l.segments = {{0, 8}};
    const Compared segments = compare(l);
    CHECK(!segments.device.ok() && segments.host.message() == segments.device.message()) << segments.device.message();
}

TEST(wrong_norms_and_segments) {
    Layer l;
    l.has_norm = true;
    l.segments = {{90, 10}};
    const Compared c = compare(l);
    CHECK(!c.device.ok() && c.host.message() == c.device.message()) << c.device.message();
}

TEST(hadamard_and_quantize_have_the_cpus_bits) {
    for (DType dtype : {DType::f32, DType::f16, DType::bf16})
        for (std::int64_t n : {64, 96, 1536}) {
            const auto x = as(random(2 * 3 * n, 9), dtype);
            std::vector<std::byte> y(x.size()), wanted(x.size());
            const TensorView x_view(x.data(), dtype, {2, 3, n}), y_view(y.data(), dtype, {2, 3, n}),
                wanted_view(wanted.data(), dtype, {2, 3, n});
            HadamardOptions options;
            options.mode = Hadamard::block;
            Context context;
            hadamard(context, x_view, options, wanted_view).value();
            cuda_hadamard({0, nullptr}, x_view, options, y_view).value();
            CHECK(y == wanted) << n;
            std::vector<std::int8_t> codes(static_cast<std::size_t>(6 * n)), wanted_codes(codes.size());
            std::vector<float> scale(6), wanted_scale(6);
            quantize(context, x_view, ActivationCodes::int8, TensorView(wanted_codes.data(), DType::i8, {2, 3, n}),
                     TensorView(wanted_scale.data(), DType::f32, {2, 3}))
                .value();
            cuda_quantize({0, nullptr}, x_view, ActivationCodes::int8, TensorView(codes.data(), DType::i8, {2, 3, n}),
                          TensorView(scale.data(), DType::f32, {2, 3}))
                .value();
            CHECK(codes == wanted_codes && scale == wanted_scale) << n;
        }
    const std::vector<float> x(24);
    std::vector<float> y(24);
    HadamardOptions pow2;
    const TensorView x_view(x.data(), DType::f32, {24});
    Context context;
    const Status host = hadamard(context, x_view, pow2, TensorView(y.data(), DType::f32, {24})),
                 device = cuda_hadamard({0, nullptr}, x_view, pow2, TensorView(y.data(), DType::f32, {24}));
    CHECK(!device.ok() && device.message() == host.message()) << device.message();
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
