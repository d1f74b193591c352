// Products with codes of 2 and 4 bits and x of 8 bits or bf16, for few and for many tokens, of one matrix and of a stack, against plain
// loops.
#include "codes_problem.hpp"
#include "launch/rows.hpp"
#include "launch/sm90_dense.hpp"

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

#ifdef FASTFFN_RACE_CHECK
constexpr unsigned schedules = 2;  // one is enough for the race check
#else
constexpr unsigned schedules = 6;
#endif

const Kind kinds[] = {{2, false, {0, 32, 128, 512}}, {4, false, {32, 64, 128, 256}}, {4, true, {32, 64, 128, 256}}};

}  // namespace

TEST(few_tokens_of_every_shape) {
    unsigned seed = 0;
    for (const Kind& kind : kinds)
        for (int turn : {0, 1})
            for (std::int64_t tokens : {1, 13, 35})
                for (auto [out, depth] :
                     {std::pair<std::int64_t, std::int64_t>{1, 1}, {37, 300}, {20, 2100}, {16, 7000}}) {
                    if ((tokens == 35 && depth >= 2100) || (depth == 7000 && tokens > 1)) continue;
                    for (std::int64_t group : kind.groups) {
                        if (depth == 7000 && group % 128 != 0) continue;
                        // Half of the combinations; every kernel is among them.
                        const bool is_gated = turn == 1;
                        if ((group / 32 + out + turn) % 2 == 0 && depth > 1 && group != 0) continue;
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
        for (int turn : {0, 1})
            for (std::int64_t tokens : {64, 130})
                for (auto [out, depth] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {70, 300}, {150, 1100}}) {
                    if ((tokens == 130) != (depth == 300)) continue;
                    for (std::int64_t group : kind.groups) {
                        const bool is_gated = turn == 1;
                        if ((group / 64 + out / 10 + tokens / 64 + turn) % 2 == 0 && depth > 1 && group != 0) continue;
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
        for (unsigned seed = 0; seed < schedules; seed++) {
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

TEST(products_overlap_with_the_launch_that_makes_x) {
    // The race check says whether anything is touched too early.
    emulator::set_architecture(90);
    for (Kernel kernel : {Kernel::few, Kernel::many, Kernel::sm90})
        for (std::int64_t group : {0, 64}) {
            if (kernel == Kernel::sm90 && (group != 0 || !fastffn::cuda::sm90_available())) continue;
            const Problem p = {2, false, 5, 20, 700, group, CodesZeros::fixed, true, kernel};
            std::mt19937 random(9);
            codes::Weights w(p, random);
            const reference::Matrix x(p.tokens, p.depth, DType::f32, 0, random);
            const Device<unsigned char> payload(w.payload), source(x.data);
            std::vector<std::vector<float>> results;
            for (bool is_fresh : {false, true}) {
                Device<std::int8_t> rows(static_cast<std::size_t>(p.tokens * w.layout.padded_depth));
                Device<float> scales(static_cast<std::size_t>(p.tokens)), y(static_cast<std::size_t>(p.tokens * p.out));
                Device<std::int32_t> sums(static_cast<std::size_t>(p.tokens * p.groups()));
                fastffn::cuda::QuantizeArgs quantize = {};
                quantize.rows = {source.data(), DType::f32,  x.stride / 4,          p.tokens,
                                 p.depth,       rows.data(), w.layout.padded_depth, w.layout.padded_depth};
                quantize.scales = scales.data();
                quantize.sums = sums.data();
                quantize.group = p.group;
                quantize.groups = p.groups();
                quantize.rule = fastffn::cuda::RowRule::ternary;
                quantize.interleaved = true;
                fastffn::cuda::CodesArgs args = {};
                args.x = rows.data();
                args.x_stride = w.layout.padded_depth;
                args.x_scales = scales.data();
                args.x_sums = sums.data();
                args.w = {payload.data(), payload.data() + w.layout.scales_offset, nullptr};
                args.w_gate = args.w;
                args.bits = p.bits;
                args.padded_depth = w.layout.padded_depth;
                args.group = p.group;
                args.groups = p.groups();
                args.y = y.data();
                args.y_stride = p.out;
                args.y_dtype = DType::f32;
                args.tokens = p.tokens;
                args.out_features = p.out;
                args.activation = Activation::relu2;
                args.x_is_fresh = is_fresh;
                CHECK(fastffn::cuda::launch_quantize_rows(quantize, nullptr) == cudaSuccess);
                const cudaError_t status = kernel == Kernel::few    ? launch_codes_few_tokens(args, nullptr, nullptr)
                                           : kernel == Kernel::many ? launch_codes_many_tokens(args, nullptr, nullptr)
                                                                    : launch_sm90_codes(args, nullptr);
                CHECK(status == cudaSuccess) << p.name();
                results.push_back(y.host());
            }
            CHECK(results[0] == results[1]);
        }
    emulator::set_architecture(80);
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
