// few_tokens and many_tokens against plain loops: every product, gated and not, odd shapes, biases, activations, strides.
#include "dense_problem.hpp"
#include "launch/rows.hpp"

using namespace dense_problem;

namespace {

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

TEST(few_tokens_overlap_with_the_launch_that_makes_x) {
    // The race check says whether anything is touched too early.
    emulator::set_architecture(90);
    std::mt19937 random(8);
    for (std::int64_t depth : {40, 1500}) {
        const reference::Matrix x(5, depth, DType::f32, 0, random), w(37, depth, DType::i8, 0, random);
        const Device<unsigned char> source(x.data), weights(w.data);
        const Device<float> w_scales(std::vector<float>(37, 0.5f));
        std::vector<std::vector<float>> results;
        for (bool is_fresh : {false, true}) {
            Device<std::int8_t> rows(static_cast<std::size_t>(5 * w.row_bytes));
            Device<float> scales(5), y(5 * 37);
            fastffn::cuda::QuantizeArgs quantize = {};
            quantize.rows = {source.data(), DType::f32, x.stride / 4, 5, depth, rows.data(), w.row_bytes, w.row_bytes};
            quantize.scales = scales.data();
            DenseArgs args = {};
            args.x = rows.data();
            args.x_stride = args.row_bytes = args.w_stride = w.row_bytes;
            args.w = weights.data();
            args.x_scales = scales.data();
            args.w_scales = w_scales.data();
            args.y = y.data();
            args.y_stride = 37;
            args.y_dtype = DType::f32;
            args.tokens = 5;
            args.out_features = 37;
            args.x_is_fresh = is_fresh;
            CHECK(fastffn::cuda::launch_quantize_rows(quantize, nullptr) == cudaSuccess);
            CHECK(fastffn::cuda::launch_few_tokens(Product::int8, args, nullptr) == cudaSuccess)
                << emulator::last_failure();
            results.push_back(y.host());
        }
        CHECK(results[0] == results[1]);
    }
    emulator::set_architecture(80);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
