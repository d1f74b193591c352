// Hopper's dense products against plain loops, and when they are chosen.
#include "launch/sm90_dense.hpp"

#include "dense_problem.hpp"

using namespace dense_problem;
using fastffn::cuda::launch_sm90_dense;

namespace {

constexpr Product products[] = {Product::bf16, Product::f16, Product::int8};

// An emulated Hopper for a test; the seeds' device afterwards.
struct Hopper {
    explicit Hopper(int multiprocessors = 3) {
        emulator::set_architecture(90);
        emulator::set_multiprocessors(multiprocessors);
    }
    // Where the tests run on another GPU.
    static bool is_missing() {
        if (emulator::architecture() == 90) return false;
        check::skip("no device of compute capability 9.0");
        return true;
    }
    ~Hopper() {
        emulator::set_architecture(80);
        emulator::set_multiprocessors(3);
        emulator::set_tensor_maps(true);
        fastffn::cuda::allow_sm90(true);
    }
};

}  // namespace

TEST(every_product_and_shape) {
    const Hopper hopper;
    if (Hopper::is_missing()) return;
    unsigned seed = 0;
    for (Product product : products)
        for (bool is_gated : {false, true})
            for (auto [tokens, out, depth] :
                 {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {130, 70, 200}, {17, 130, 900}}) {
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
                                   static_cast<std::int64_t>(seed % 4)};
                const double error = worst(p, launch_sm90_dense, ++seed);
                CHECK(error <= 1) << name(p) << error;
            }
}

TEST(both_sizes_of_tiles) {
    // Few multiprocessors: large tiles in clusters of two, one after another; many: small tiles, so that all have something to do.
    // Three tiles of tokens: the last cluster's second block has none.
    unsigned seed = 20;
    for (const int multiprocessors : {2, 64})
        for (const Product product : products)
            for (bool is_gated : {false, true}) {
                const Hopper hopper(multiprocessors);
                if (Hopper::is_missing()) return;
                const bool is_odd = product == Product::bf16;
                const Problem p = {product,
                                   is_odd ? 257 : 200,
                                   is_gated ? 135 : 265,
                                   is_odd ? 520 : 200,
                                   is_gated,
                                   is_gated ? Activation::silu : Activation::relu,
                                   DType::bf16,
                                   true};
                const double error = worst(p, launch_sm90_dense, ++seed);
                CHECK(error <= 1) << name(p) << error;
#ifndef FASTFFN_ON_GPU
                CHECK(emulator::blocks_of_last_cluster() == (multiprocessors == 2 ? 2 : 1));
#endif
            }
}

#ifdef FASTFFN_ON_GPU
TEST(clusters_of_a_whole_device) {
    // Large tiles pay from about a wave of them on.
    const Hopper hopper;
    if (Hopper::is_missing()) return;
    for (bool is_gated : {false, true}) {
        const Problem p = {
            Product::bf16, 2100, is_gated ? 1100 : 2200, 70, is_gated, is_gated ? Activation::silu : Activation::relu,
            DType::bf16,   true};
        const double error = worst(p, launch_sm90_dense, 31);
        CHECK(error <= 1) << name(p) << error;
    }
}
#endif

TEST(every_activation) {
    const Hopper hopper;
    if (Hopper::is_missing()) return;
    for (int activation = 0; activation < fastffn::activation_count; activation++)
        for (bool is_gated : {false, true}) {
            if (!is_gated && fastffn::needs_gate(static_cast<Activation>(activation))) continue;
            const Problem p = {Product::f16, 18,  20, 50, is_gated, static_cast<Activation>(activation),
                               DType::f32,   true};
            const double error = worst(p, launch_sm90_dense, 7);
            CHECK(error <= 1) << name(p) << error;
        }
}

TEST(many_bands_of_tiles) {
    // 3 tiles of tokens, more than a band of rows and a rest; depth of less than one stage.
    const Hopper hopper;
    if (Hopper::is_missing()) return;
    const Problem p = {Product::int8, 260, 9 * 128 - 5, 20, true, Activation::relu2, DType::f32, true};
    const double error = worst(p, launch_sm90_dense, 9);
    CHECK(error <= 1) << name(p) << error;
}

TEST(nan_and_infinity_stay_in_their_token) {
    const Hopper hopper;
    if (Hopper::is_missing()) return;
    for (double poison : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
        const Problem p = {Product::bf16, 18, 30, 100, false, Activation::identity, DType::f32, true};
        const double error = worst(p, launch_sm90_dense, 11, nullptr, poison);
        CHECK(error <= 1) << name(p) << error;
    }
}

TEST(same_bits_under_every_schedule) {
    // Nor do clusters and small tiles differ.
    const Problem p = {Product::bf16, 140, 150, 600, true, Activation::silu, DType::f32, true};
    std::vector<unsigned char> first;
    for (unsigned seed = 0; seed < 6; seed++) {
        const Hopper hopper(seed % 3 == 2 ? 64 : 2);
        if (Hopper::is_missing()) return;
        emulator::set_seed(seed);
        std::vector<unsigned char> bits;
        const double error = worst(p, launch_sm90_dense, 3, &bits);
        CHECK(error <= 1) << name(p) << error;
#ifndef FASTFFN_ON_GPU
        CHECK(emulator::blocks_of_last_cluster() == (seed % 3 == 2 ? 1 : 2));
#endif
        if (seed == 0) first = bits;
        CHECK(bits == first) << seed;
    }
    emulator::set_seed(1);
}

TEST(chosen_where_it_serves) {
    if (support::on_gpu) return check::skip("a GPU is what it is");
    const Hopper hopper;
    // Which kernel ran: Hopper's blocks have 384 threads.
    const auto threads = [](std::int64_t tokens) {
        const Problem p = {Product::bf16, tokens, 40, 64, false, Activation::identity, DType::f32, false};
        CHECK(worst(p, fastffn::cuda::launch_dense, 5) <= 1) << name(p);
        return emulator::threads_of_last_block();
    };
    CHECK(threads(16) != 384);
    CHECK(threads(17) == 384);
    emulator::set_multiprocessors(5);  // more than four for its only tile
    CHECK(threads(17) != 384);
    emulator::set_multiprocessors(3);
    fastffn::cuda::allow_sm90(false);
    CHECK(threads(17) != 384);
    fastffn::cuda::allow_sm90(true);
    emulator::set_tensor_maps(false);
    CHECK(threads(17) != 384);
    emulator::set_tensor_maps(true);
    for (const int other : {80, 89, 100}) {
        emulator::set_architecture(other);
        CHECK(threads(17) != 384) << other;
    }
}

TEST(nothing_and_nonsense) {
#ifndef FASTFFN_ON_GPU
    CHECK(worst({Product::bf16, 20, 5, 8, false, Activation::identity, DType::f32, false}, launch_sm90_dense, 1) > 1)
        << "sm_80 has none";
#endif
    const Hopper hopper;
    if (Hopper::is_missing()) return;
    CHECK(worst({Product::bf16, 0, 5, 8, false, Activation::identity, DType::f32, false}, launch_sm90_dense, 1) == 0);
    alignas(16) static unsigned char some[64] = {};
    DenseArgs args = {};
    args.x = args.w = some;
    args.tokens = args.out_features = 1;
    args.row_bytes = args.x_stride = args.w_stride = 16;
    CHECK(fastffn::cuda::sm90_dense_serves(args));
    const auto refused = [&](auto change) {
        DenseArgs other = args;
        change(other);
        return !fastffn::cuda::sm90_dense_serves(other) &&
               launch_sm90_dense(Product::bf16, other, nullptr) == cudaErrorNotSupported;
    };
    CHECK(refused([](DenseArgs& a) { a.x = some + 8; }));
    CHECK(refused([](DenseArgs& a) { a.w = some + 4; }));
    CHECK(refused([](DenseArgs& a) { a.w_gate = some + 4; }));
    CHECK(refused([](DenseArgs& a) { a.row_bytes = 8; }));
    CHECK(refused([](DenseArgs& a) { a.row_bytes = 0; }));
    CHECK(refused([](DenseArgs& a) { a.x_stride = 24; }));
    CHECK(refused([](DenseArgs& a) { a.w_stride = std::int64_t{1} << 40; }));
    CHECK(refused([](DenseArgs& a) { a.tokens = std::int64_t{1} << 31; }));
    cudaGetLastError();
}

int main(int argc, char** argv) {
    if (support::on_gpu && emulator::architecture() != 90) return 77;
    return check::run_all(argc, argv);
}
