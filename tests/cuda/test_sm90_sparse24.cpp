// sparse24 on Hopper's wgmma.sp against plain loops, and when it is chosen.
#include "launch/sm90_dense.hpp"
#include "launch/sm90_sparse24.hpp"
#include "sparse24_problem.hpp"

using namespace sparse24_problem;

namespace {

cudaError_t hopper(Sparse24Product product, const Sparse24Args& args, const TokenGroups*, cudaStream_t stream) {
    return fastffn::cuda::launch_sm90_sparse24(product, args, stream);
}

// An emulated Hopper for a test; the seeds' device afterwards.
struct Hopper {
    explicit Hopper(int multiprocessors = 2) {
        emulator::set_architecture(90);
        emulator::set_multiprocessors(multiprocessors);
    }
    ~Hopper() {
        emulator::set_architecture(80);
        emulator::set_multiprocessors(3);
        emulator::set_tensor_maps(true);
        fastffn::cuda::allow_sm90(true);
    }
    // On a GPU of another kind there is nothing to test.
    bool is_missing() const {
        if (emulator::architecture() != 90) check::skip("the device is no Hopper");
        return emulator::architecture() != 90;
    }
};

}  // namespace

TEST(every_product_and_shape) {
    const Hopper device;
    if (device.is_missing()) return;
    unsigned seed = 0;
    for (Sparse24Product product : on_tensor_cores)
        for (bool is_gated : {false, true})
            for (auto [tokens, out, depth] :
                 {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {200, 210, 170}, {30, 100, 1100}})
                holds({product, tokens, out, depth, is_gated}, hopper, ++seed);
}

TEST(many_tiles_of_one_block) {
    // One multiprocessor has no clusters; with two, blocks side by side share tokens, the last alone.
    for (int multiprocessors : {1, 2})
        for (bool is_gated : {false, true}) {
            const Hopper device(multiprocessors);
            if (device.is_missing()) return;
            const Problem p = {
                Sparse24Product::int8, 390, 400, 200, is_gated, is_gated ? Activation::silu : Activation::relu};
            const double error = worst(p, hopper, 9);
            CHECK(error <= 1) << name(p) << error;
        }
}

TEST(nan_and_infinity_reach_what_keeps_their_column_alone) {
    const Hopper device;
    if (device.is_missing()) return;
    for (double poison : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
        const Problem p = {Sparse24Product::bf16, 18, 30, 10};
        const double error = worst(p, hopper, 11, nullptr, poison);
        CHECK(error <= 1) << name(p) << error;
    }
}

TEST(same_bits_under_every_schedule) {
    const Hopper device;
    if (device.is_missing()) return;
    const Problem p = {Sparse24Product::bf16, 200, 70, 600, true, Activation::silu};
    std::vector<unsigned char> first;
    for (unsigned seed = 0; seed < 6; seed++) {
        emulator::set_seed(seed);
        std::vector<unsigned char> bits;
        const double error = worst(p, hopper, 3, &bits);
        CHECK(error <= 1) << name(p) << error;
        if (seed == 0) first = bits;
        CHECK(bits == first) << seed;
    }
    emulator::set_seed(1);
}

#ifndef FASTFFN_ON_GPU
TEST(chosen_where_it_serves) {
    const Hopper device;
    // Which kernel ran: Hopper's blocks have 512 threads.
    const auto threads = [](std::int64_t tokens, Sparse24Product product = Sparse24Product::bf16, int tile_tokens = 0) {
        Problem p = {product, tokens, 40, 64};
        p.tile_tokens = tile_tokens;
        CHECK(worst(p, fastffn::cuda::launch_sparse24, 5) <= 1) << name(p);
        return emulator::threads_of_last_block();
    };
    CHECK(threads(16) != 512);
    CHECK(threads(17) == 512);
    CHECK(threads(17, Sparse24Product::int8) == 512);
    CHECK(threads(17, Sparse24Product::f32) != 512);
    CHECK(threads(17, Sparse24Product::bf16, 128) != 512);
    emulator::set_multiprocessors(5);  // more than two for its only tile
    CHECK(threads(17) != 512);
    emulator::set_multiprocessors(2);
    fastffn::cuda::allow_sm90(false);
    CHECK(threads(17) != 512);
    fastffn::cuda::allow_sm90(true);
    emulator::set_tensor_maps(false);
    CHECK(threads(17) != 512);
    emulator::set_tensor_maps(true);
    for (const int other : {80, 100}) {
        emulator::set_architecture(other);
        CHECK(threads(17) != 512) << other;
    }
    cudaGetLastError();
}
#endif

int main(int argc, char** argv) { return check::run_all(argc, argv); }
