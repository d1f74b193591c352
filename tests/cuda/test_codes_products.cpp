// Products with codes of 2 and 4 bits and x of 8 bits or bf16, for few and for many tokens, of one matrix and of a stack, against plain
// loops.
#include "codes_problem.hpp"

using codes::Kernel;
using codes::Problem;
using codes::worst;
using fastffn::Activation;
using fastffn::DType;
using fastffn::cuda::CodesZeros;
using support::Device;

namespace {

struct Kind {
    int bits;
    bool is_bf16;
    std::vector<std::int64_t> groups;
};

const Kind kinds[] = {{2, false, {0, 32, 128, 512}}, {4, false, {32, 64, 128, 256}}, {4, true, {32, 64, 128, 256}}};

}  // namespace

TEST(few_tokens_of_every_shape) {
    unsigned seed = 0;
    for (const Kind& kind : kinds)
        for (bool is_gated : {false, true})
            for (std::int64_t tokens : {1, 13, 35})
                for (auto [out, depth] :
                     {std::pair<std::int64_t, std::int64_t>{1, 1}, {37, 300}, {20, 2100}, {16, 7000}}) {
                    if ((tokens == 35 && depth >= 2100) || (depth == 7000 && tokens > 1)) continue;
                    for (std::int64_t group : kind.groups) {
                        if (depth == 7000 && group % 128 != 0) continue;
                        Problem p = {kind.bits,
                                     kind.is_bf16,
                                     tokens,
                                     out,
                                     depth,
                                     group,
                                     kind.bits == 2 ? CodesZeros::fixed : static_cast<CodesZeros>(seed % 3),
                                     is_gated,
                                     Kernel::few};
                        p.activation = is_gated ? Activation::relu2 : Activation::identity;
                        p.y_dtype = seed % 2 ? DType::f32 : DType::bf16;
                        p.biases = seed % 5 < 2;
                        const double error = worst(p, ++seed);
                        CHECK(error <= 1) << p.name() << error;
                    }
                }
}

TEST(many_tokens_of_every_shape) {
    unsigned seed = 100;
    for (const Kind& kind : kinds)
        for (bool is_gated : {false, true})
            for (std::int64_t tokens : {1, 64, 130})
                for (auto [out, depth] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {70, 300}, {150, 1100}}) {
                    if ((tokens == 130) != (depth == 300)) continue;
                    for (std::int64_t group : kind.groups) {
                        Problem p = {kind.bits,
                                     kind.is_bf16,
                                     tokens,
                                     out,
                                     depth,
                                     group,
                                     kind.bits == 2 ? CodesZeros::fixed : static_cast<CodesZeros>(seed % 3),
                                     is_gated,
                                     Kernel::many};
                        p.activation = is_gated ? Activation::silu : Activation::identity;
                        p.y_dtype = seed % 2 ? DType::f32 : DType::bf16;
                        p.biases = seed % 5 < 2;
                        const double error = worst(p, ++seed);
                        CHECK(error <= 1) << p.name() << error;
                    }
                }
}

TEST(stacks) {
    unsigned seed = 200;
    for (const Kind& kind : kinds)
        for (bool is_gated : {false, true})
            for (int tile_tokens : {8, 16, 128})
                for (std::int64_t tokens : {3, 60}) {
                    Problem p = {kind.bits,
                                 kind.is_bf16,
                                 tokens,
                                 tile_tokens == 128 ? 70 : 37,
                                 300,
                                 kind.groups[seed % 4],
                                 kind.bits == 2 ? CodesZeros::fixed : static_cast<CodesZeros>(seed % 3),
                                 is_gated,
                                 Kernel::chosen,
                                 tile_tokens};
                    p.biases = seed % 2 == 0;
                    const double error = worst(p, ++seed);
                    CHECK(error <= 1) << p.name() << error;
                }
    // More than one tile of a matrix.
    Problem p = {4, false, 500, 70, 130, 64, CodesZeros::points, true, Kernel::chosen, 128};
    const double error = worst(p, 1);
    CHECK(error <= 1) << p.name() << error;
}

TEST(few_or_many) {
    for (std::int64_t tokens : {16, 17, 70}) {
        const Problem p = {2, false, tokens, 20, 300, 0, CodesZeros::fixed, true, Kernel::chosen};
        const double error = worst(p, 7);
        CHECK(error <= 1) << p.name() << error;
    }
}

TEST(same_bits_under_every_schedule) {
    for (const Problem& p : {Problem{4, false, 9, 20, 1500, 64, CodesZeros::points, true, Kernel::few},
                             Problem{2, false, 9, 20, 1500, 0, CodesZeros::fixed, false, Kernel::few},
                             Problem{4, true, 70, 40, 300, 128, CodesZeros::minima, true, Kernel::many},
                             Problem{2, false, 70, 40, 900, 0, CodesZeros::fixed, false, Kernel::many}}) {
        std::vector<unsigned char> first;
        for (unsigned seed = 0; seed < 6; seed++) {
            emulator::set_seed(seed);
            std::vector<unsigned char> bits;
            const double error = worst(p, 3, &bits);
            CHECK(error <= 1) << p.name() << error;
            if (seed == 0) first = bits;
            CHECK(bits == first) << p.name() << seed;
        }
    }
    emulator::set_seed(1);
}

TEST(sums_of_groups) {
    std::mt19937 random(4);
    for (auto [depth, group] : {std::pair<std::int64_t, std::int64_t>{1, 32}, {300, 64}, {700, 256}}) {
        const reference::Matrix x(5, depth, DType::bf16, 16, random);
        const std::int64_t groups = (depth + group - 1) / group;
        const Device<unsigned char> device_x(x.data);
        Device<float> sums(static_cast<std::size_t>(5 * groups));
        CHECK(fastffn::cuda::launch_group_sums(device_x.data(), x.stride, 5, depth, group, groups, sums.data(),
                                               nullptr) == cudaSuccess);
        const auto found = sums.host();
        for (std::int64_t i = 0; i < 5 * groups; i++) {
            double sum = 0, magnitude = 0;
            for (std::int64_t k = i % groups * group; k < std::min(depth, (i % groups + 1) * group); k++) {
                sum += x.value(i / groups, k);
                magnitude += std::fabs(x.value(i / groups, k));
            }
            CHECK(std::fabs(static_cast<double>(found[static_cast<std::size_t>(i)]) - sum) <=
                  magnitude * std::ldexp(13.0, -24))
                << i;
        }
    }
}

TEST(wrong_arguments_are_refused) {
    fastffn::cuda::CodesArgs args = {};
    args.tokens = args.out_features = 1;
    args.bits = 4;
    args.padded_depth = 128;
    const float scale = 1;
    const int sum = 0;
    args.x_scales = &scale;
    args.x_sums = &sum;
    for (std::int64_t group : {0, 16, 96, 2048}) {
        args.group = group;
        CHECK(launch_codes(args, nullptr, nullptr) == cudaErrorInvalidValue) << group;
    }
    args.group = 64;
    args.padded_depth = 100;
    CHECK(launch_codes(args, nullptr, nullptr) == cudaErrorInvalidValue);
    args.padded_depth = 128;
    args.is_bf16 = true;
    CHECK(launch_codes(args, nullptr, nullptr) == cudaErrorInvalidValue) << "scales of bf16 rows";
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
