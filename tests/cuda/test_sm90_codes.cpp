// Hopper's products with weights of 2 and 4 bits against plain loops, and when they are chosen.
#include "codes_problem.hpp"
#include "launch/sm90_dense.hpp"

using codes::Kernel;
using codes::Problem;
using codes::worst;
using fastffn::Activation;
using fastffn::DType;
using fastffn::cuda::CodesZeros;

namespace {

// An emulated Hopper for a test; the seeds' device afterwards.
struct Hopper {
    explicit Hopper(int multiprocessors = 3) {
        emulator::set_architecture(90);
        emulator::set_multiprocessors(multiprocessors);
    }
    ~Hopper() {
        emulator::set_architecture(80);
        emulator::set_multiprocessors(3);
        emulator::set_tensor_maps(true);
        fastffn::cuda::allow_sm90(true);
    }
};

Problem grouped(std::int64_t tokens, std::int64_t out, std::int64_t depth, std::int64_t group, CodesZeros zeros,
                bool is_gated) {
    return {4, false, tokens, out, depth, group, zeros, is_gated, Kernel::sm90};
}

Problem problem(std::int64_t tokens, std::int64_t out, std::int64_t depth, bool is_gated, Kernel kernel) {
    return {2, false, tokens, out, depth, 0, CodesZeros::fixed, is_gated, kernel};
}

}  // namespace

TEST(every_shape) {
    const Hopper hopper(2);
    if (!fastffn::cuda::sm90_available()) return check::skip("no Hopper");
    unsigned seed = 0;
    for (bool is_gated : {false, true})
        for (auto [tokens, out, depth] : {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1},
                                          {130, 70, 300},
                                          {17, 300, 1100},
                                          {300, 600, 512}}) {
            Problem p = problem(tokens, out, depth, is_gated, Kernel::sm90);
            p.activation = is_gated ? Activation::silu : Activation::identity;
            p.y_dtype = seed % 3 == 0 ? DType::f32 : seed % 3 == 1 ? DType::bf16 : DType::f16;
            p.biases = seed % 2 == 0;
            const double error = worst(p, ++seed);
            CHECK(error <= 1) << p.name() << error;
        }
}

TEST(groups_of_every_size) {
    const Hopper hopper(2);
    if (!fastffn::cuda::sm90_available()) return check::skip("no Hopper");
    unsigned seed = 50;
    for (std::int64_t group : {64, 128, 256})
        for (auto [tokens, out, depth] :
             {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {130, 150, 300}, {17, 40, 1200}}) {
            Problem p = grouped(tokens, out, depth, group, seed % 2 ? CodesZeros::points : CodesZeros::fixed,
                                seed / 3 % 2 == 0);
            p.activation = p.is_gated ? Activation::silu : Activation::identity;
            p.y_dtype = seed % 3 == 0 ? DType::f32 : seed % 3 == 1 ? DType::bf16 : DType::f16;
            p.biases = seed % 4 < 2;
            const double error = worst(p, ++seed);
            CHECK(error <= 1) << p.name() << error;
        }
    for (unsigned schedule = 0; schedule < 3; schedule++) {
        emulator::set_seed(schedule);
        const Problem p = grouped(140, 150, 700, 64, CodesZeros::points, schedule % 2 == 1);
        const double error = worst(p, 5);
        CHECK(error <= 1) << p.name() << error;
    }
    emulator::set_seed(1);
}

TEST(same_bits_as_the_other_kernel) {
    for (bool is_gated : {false, true}) {
        std::vector<unsigned char> first, other;
        for (unsigned seed = 0; seed < 4; seed++) {
            const Hopper hopper;
            if (!fastffn::cuda::sm90_available()) return check::skip("no Hopper");
            emulator::set_seed(seed);
            std::vector<unsigned char> bits;
            const Problem p = problem(140, 150, 700, is_gated, Kernel::sm90);
            const double error = worst(p, 5, &bits);
            CHECK(error <= 1) << p.name() << error;
            if (seed == 0) first = bits;
            CHECK(bits == first) << seed;
        }
        // Integers are exact, and what follows is the same arithmetic.
        worst(problem(140, 150, 700, is_gated, Kernel::many), 5, &other);
        CHECK(first == other);
    }
    emulator::set_seed(1);
}

#ifndef FASTFFN_ON_GPU  // says which device it runs on
TEST(chosen_where_it_is_possible_and_worth_it) {
    const auto launches_and_error = [](bool is_gated) {
        const auto before = emulator::launches();
        const double error = worst(problem(140, 300, 300, is_gated, Kernel::chosen), 3);
        CHECK(emulator::launches() == before + 1);
        return error;
    };
    fastffn::cuda::CodesArgs args = {};
    args.bits = 2;
    args.tokens = 140;
    args.out_features = 300;
    args.padded_depth = args.x_stride = 512;
    {
        const Hopper hopper;
        CHECK(sm90_codes_serves(args) && prefers_sm90_codes(args));
        CHECK(launches_and_error(false) <= 1 && launches_and_error(true) <= 1);
        args.group = 64;
        CHECK(!sm90_codes_serves(args));
        args.bits = 4;
        CHECK(sm90_codes_serves(args));
        args.group = 32;
        CHECK(!sm90_codes_serves(args));
        args.group = 64;
        args.zeros = CodesZeros::minima;
        CHECK(!sm90_codes_serves(args));
        args.zeros = CodesZeros::fixed;
        args.is_bf16 = true;
        CHECK(!sm90_codes_serves(args));
        args.is_bf16 = false;
        args.group = 0;
        args.bits = 2;
        fastffn::cuda::allow_sm90(false);
        CHECK(!sm90_codes_serves(args));
        fastffn::cuda::allow_sm90(true);
        emulator::set_tensor_maps(false);  // a driver without: the other kernel
        CHECK(launches_and_error(false) <= 1);
    }
    {
        const Hopper hopper(100);
        CHECK(!prefers_sm90_codes(args)) << "too few tiles";
    }
    CHECK(!sm90_codes_serves(args)) << "no Hopper";
}

#endif

int main(int argc, char** argv) { return check::run_all(argc, argv); }
