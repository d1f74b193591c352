// few_tokens and many_tokens against plain loops: every product, gated and not, odd shapes, biases, activations, strides.
#include <optional>

#include "launch/dense.hpp"
#include "reference.hpp"
#include "support.hpp"

using fastffn::Activation;
using fastffn::DType;
using fastffn::cuda::DenseArgs;
using fastffn::cuda::Product;
using reference::Matrix;
using support::Device;

namespace {

struct Problem {
    Product product;
    std::int64_t tokens, out, depth;
    bool is_gated;
    Activation activation;
    DType y_dtype;
    bool biases;
    std::int64_t x_gap = 0, w_gap = 0, y_gap = 0;
};

DType dtype_of(Product product) {
    return product == Product::bf16 ? DType::bf16 : product == Product::f16 ? DType::f16 : DType::i8;
}

std::vector<float> random_floats(std::int64_t count, std::mt19937& random, float low, float high) {
    std::uniform_real_distribution<float> uniform(low, high);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = uniform(random);
    return values;
}

using Launcher = cudaError_t (*)(Product, const DenseArgs&, cudaStream_t);

// The largest error over its bound; more than 1 is wrong.
double worst(const Problem& p, Launcher launcher, unsigned seed, std::vector<unsigned char>* bits = nullptr,
             double poison = 0) {
    std::mt19937 random(seed);
    const DType dtype = dtype_of(p.product);
    const float w_scale = 1 / std::sqrt(static_cast<float>(p.depth));
    Matrix x(p.tokens, p.depth, dtype, p.x_gap, random), w(p.out, p.depth, dtype, p.w_gap, random, w_scale),
        gate(p.out, p.depth, dtype, p.w_gap, random, w_scale);
    if (poison != 0 && p.tokens > 1) reference::store(x.at(1, p.depth / 2), dtype, static_cast<float>(poison));
    const bool scales = p.product == Product::int8;
    const auto x_scales = random_floats(p.tokens, random, 0.01f, 0.02f),
               w_scales = random_floats(p.out, random, 0.0005f, 0.002f),
               gate_scales = random_floats(p.out, random, 0.0005f, 0.002f);
    Matrix bias(1, p.out, DType::f32, 0, random), gate_bias(1, p.out, DType::bf16, 0, random);
    const std::int64_t y_stride = p.out + p.y_gap;
    const int y_bytes = reference::bytes_of(p.y_dtype);
    const std::vector<unsigned char> untouched(
        static_cast<std::size_t>(p.tokens ? ((p.tokens - 1) * y_stride + p.out) * y_bytes : 0), 0xA5);

    const Device<unsigned char> device_x(x.data), device_w(w.data), device_gate(gate.data), device_bias(bias.data),
        device_gate_bias(gate_bias.data);
    const Device<float> device_x_scales(x_scales), device_w_scales(w_scales), device_gate_scales(gate_scales);
    Device<unsigned char> y(untouched);
    DenseArgs args = {};
    args.x = device_x.data();
    args.x_stride = x.stride;
    args.w = device_w.data();
    args.w_gate = p.is_gated ? device_gate.data() : nullptr;
    args.row_bytes = w.row_bytes;
    args.w_stride = w.stride;
    if (scales) {
        args.x_scales = device_x_scales.data();
        args.w_scales = device_w_scales.data();
        args.w_gate_scales = device_gate_scales.data();
    }
    if (p.biases) {
        args.bias = device_bias.data();
        args.gate_bias = device_gate_bias.data();
        args.bias_dtype = DType::f32;
        args.gate_bias_dtype = DType::bf16;
    }
    args.y = y.data();
    args.y_stride = y_stride;
    args.y_dtype = p.y_dtype;
    args.tokens = p.tokens;
    args.out_features = p.out;
    args.activation = p.activation;
    if (launcher(p.product, args, nullptr) != cudaSuccess) return 1e300;
    const auto found = y.host();
    if (bits) *bits = found;
    double largest = 0;
    for (std::int64_t token = 0; token < p.tokens; token++)
        for (std::int64_t column = 0; column < (token + 1 < p.tokens ? y_stride : p.out); column++) {
            const unsigned char* const at = found.data() + (token * y_stride + column) * y_bytes;
            if (column >= p.out) {
                if (std::memcmp(at, untouched.data(), static_cast<std::size_t>(y_bytes)) != 0) return 1e299;
                continue;
            }
            const auto sum = [&](const Matrix& m, const std::vector<float>& m_scales, const Matrix& b) {
                reference::Value v = reference::dot(x, token, m, column);
                if (scales)
                    v = reference::scaled(v, static_cast<double>(x_scales[static_cast<std::size_t>(token)]) *
                                                 static_cast<double>(m_scales[static_cast<std::size_t>(column)]));
                return p.biases ? reference::plus(v, b.value(0, column)) : v;
            };
            const reference::Value up = sum(w, w_scales, bias);
            const reference::Value expected =
                p.is_gated ? reference::through_gated(p.activation, sum(gate, gate_scales, gate_bias), up)
                           : reference::through(p.activation, up);
            const double value = reference::load(at, p.y_dtype);
            if (std::isnan(expected.value) || std::isnan(value)) {
                if (std::isnan(expected.value) != std::isnan(value)) return 1e298;
                continue;
            }
            if (std::isinf(expected.value) || std::isinf(value)) {
                if (expected.value != value) return 1e297;
                continue;
            }
            largest = std::fmax(largest, std::fabs(value - expected.value) /
                                             (expected.error + reference::rounding(p.y_dtype, expected.value)));
        }
    return largest;
}

std::string name(const Problem& p) {
    return "product " + std::to_string(static_cast<int>(p.product)) + ", " + std::to_string(p.tokens) + " x " +
           std::to_string(p.depth) + " -> " + std::to_string(p.out) + (p.is_gated ? " gated" : "") + ", activation " +
           std::to_string(static_cast<int>(p.activation)) + ", y " + std::to_string(static_cast<int>(p.y_dtype)) +
           ": " + emulator::last_failure() + " ";
}

// Both kinds of tiles, chosen as launch_many_tokens does it: by what a device of few or many multiprocessors runs at once.
cudaError_t large_tiles(Product product, const DenseArgs& args, cudaStream_t stream) {
    emulator::set_multiprocessors(1);
    return fastffn::cuda::launch_many_tokens(product, args, stream);
}
cudaError_t small_tiles(Product product, const DenseArgs& args, cudaStream_t stream) {
    emulator::set_multiprocessors(1000);
    return fastffn::cuda::launch_many_tokens(product, args, stream);
}

constexpr Product products[] = {Product::bf16, Product::f16, Product::int8};

}  // namespace

TEST(few_tokens_of_every_shape) {
    unsigned seed = 0;
    for (Product product : products)
        for (bool is_gated : {false, true})
            for (std::int64_t tokens : {1, 8, 13})
                for (auto [out, depth] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {17, 40}, {33, 1100}}) {
                    const Problem p = {product,
                                       tokens,
                                       out,
                                       depth,
                                       is_gated,
                                       is_gated ? Activation::silu : Activation::identity,
                                       seed % 3 == 0   ? DType::f32
                                       : seed % 3 == 1 ? DType::bf16
                                                       : DType::f16,
                                       seed % 2 == 0,
                                       16,
                                       32,
                                       3};
                    const double error = worst(p, fastffn::cuda::launch_few_tokens, ++seed);
                    CHECK(error <= 1) << name(p) << error;
                }
}

TEST(many_tokens_of_every_shape) {
    unsigned seed = 100;
    for (Product product : products)
        for (bool is_gated : {false, true})
            for (auto [tokens, out, depth] :
                 {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {17, 70, 40}, {130, 129, 300}}) {
                const Problem p = {product,
                                   tokens,
                                   out,
                                   depth,
                                   is_gated,
                                   is_gated ? Activation::gelu : Activation::identity,
                                   seed % 3 == 0   ? DType::f32
                                   : seed % 3 == 1 ? DType::bf16
                                                   : DType::f16,
                                   seed % 2 == 0,
                                   16,
                                   32,
                                   3};
                seed++;
                std::vector<unsigned char> large, small;
                for (const bool is_large : {true, false}) {
                    const double error =
                        worst(p, is_large ? large_tiles : small_tiles, seed, is_large ? &large : &small);
                    CHECK(error <= 1) << name(p) << error;
                }
                CHECK(large == small) << name(p);
            }
}

TEST(every_activation) {
    for (Launcher launcher : {fastffn::cuda::launch_few_tokens, large_tiles, small_tiles})
        for (int activation = 0; activation < fastffn::activation_count; activation++)
            for (bool is_gated : {false, true}) {
                if (!is_gated && fastffn::needs_gate(static_cast<Activation>(activation))) continue;
                const Problem p = {Product::f16, 5,   20, 50, is_gated, static_cast<Activation>(activation),
                                   DType::f32,   true};
                const double error = worst(p, launcher, 7);
                CHECK(error <= 1) << name(p) << error;
            }
}

TEST(many_bands_of_tiles) {
    // 3 tiles of tokens, 17 of rows: two whole bands and a rest.
    const Problem p = {Product::int8, 260, 17 * 64 - 5, 20, true, Activation::relu2, DType::f32, true};
    for (const Launcher launcher : {large_tiles, small_tiles}) {
        const double error = worst(p, launcher, 9);
        CHECK(error <= 1) << name(p) << error;
    }
}

TEST(nan_and_infinity_stay_in_their_token) {
    for (double poison : {static_cast<double>(NAN), static_cast<double>(INFINITY)})
        for (Launcher launcher : {fastffn::cuda::launch_few_tokens, large_tiles, small_tiles}) {
            const Problem p = {Product::bf16, 4, 30, 100, false, Activation::identity, DType::f32, true};
            const double error = worst(p, launcher, 11, nullptr, poison);
            CHECK(error <= 1) << name(p) << error;
        }
}

TEST(same_bits_under_every_schedule) {
    for (Launcher launcher : {fastffn::cuda::launch_few_tokens, large_tiles, small_tiles}) {
        const Problem p = {Product::bf16, 9, 70, 600, true, Activation::silu, DType::f32, true};
        std::vector<unsigned char> first;
        for (unsigned seed = 0; seed < 12; seed++) {
            emulator::set_seed(seed);
            std::vector<unsigned char> bits;
            const double error = worst(p, launcher, 3, &bits);
            CHECK(error <= 1) << name(p) << error;
            if (seed == 0) first = bits;
            CHECK(bits == first) << seed;
        }
    }
    emulator::set_seed(1);
}

TEST(nothing_and_nonsense) {
    for (Launcher launcher :
         {fastffn::cuda::launch_few_tokens, large_tiles, small_tiles, fastffn::cuda::launch_dense}) {
        CHECK(worst({Product::bf16, 0, 5, 8, false, Activation::identity, DType::f32, false}, launcher, 1) == 0);
        DenseArgs args = {};
        args.tokens = args.out_features = 1;
        args.row_bytes = 8;
        CHECK(launcher(Product::bf16, args, nullptr) == cudaErrorInvalidValue);
    }
    DenseArgs args = {};
    args.tokens = 17;
    args.out_features = 1;
    CHECK(fastffn::cuda::launch_few_tokens(Product::bf16, args, nullptr) == cudaErrorInvalidValue);
    cudaGetLastError();
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
