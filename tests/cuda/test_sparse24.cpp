// The sparse24 kernels against plain loops: every kind of values, gated, groups of a stack, odd shapes, every pattern of a group of
// four, NaN and infinity where a weight is kept and where none is.
#include "launch/rows.hpp"
#include "sparse24_problem.hpp"

using namespace sparse24_problem;

namespace {

constexpr Launcher few = fastffn::cuda::launch_sparse24_few, f32 = fastffn::cuda::launch_sparse24_f32;

// Both kinds of tiles, as launch_sparse24_many chooses them: by the multiprocessors that large ones would leave idle.
template <int multiprocessors>
cudaError_t launch_many(Sparse24Product product, const Sparse24Args& args, const TokenGroups* groups,
                        cudaStream_t stream) {
    emulator::set_multiprocessors(multiprocessors);
    return fastffn::cuda::launch_sparse24_many(product, args, groups, stream);
}
constexpr Launcher large = launch_many<1>, small = launch_many<1000>;

constexpr Sparse24Product by_f32[] = {Sparse24Product::f32, Sparse24Product::f32_f16};

}  // namespace

TEST(the_layout_keeps_every_weight_in_its_place) {
    // What lane and register mean is mma.sp's to say (test_fragments); here no two weights and no two positions share a place.
    namespace layout = fastffn::cuda;
    for (std::uint32_t values :
         {layout::sparse24_bf16, layout::sparse24_f16, layout::sparse24_f32, layout::sparse24_int8}) {
        const int bytes = values == layout::sparse24_f32 ? 4 : values == layout::sparse24_int8 ? 1 : 2;
        std::vector<int> uses(static_cast<std::size_t>(layout::sparse24_piece_bytes(values) * 2));  // half bytes
        for (int row = 0; row < 16; row++)
            for (int group = 0; group < layout::sparse24_piece_columns(values) / 4; group++) {
                for (int i = 0; i < 4 * bytes; i++)
                    uses[static_cast<std::size_t>(layout::sparse24_value(values, row, group) * 2 + i)]++;
                uses[static_cast<std::size_t>(layout::sparse24_position_byte(values, row, group) * 2 +
                                              layout::sparse24_position_shift(group) / 4)]++;
            }
        CHECK(std::count(uses.begin(), uses.end(), 1) == static_cast<std::int64_t>(uses.size())) << values;
    }
}

TEST(few_tokens_of_every_shape) {
    unsigned seed = 0;
    for (Sparse24Product product : on_tensor_cores)
        for (bool is_gated : {false, true})
            for (std::int64_t tokens : {1, 13, 37})
                for (auto [out, depth] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {17, 42}, {35, 1100}, {300, 64}})
                    holds({product, tokens, out, depth, is_gated}, few, ++seed);
}

TEST(many_warps_where_rows_are_few) {
    for (Sparse24Product product : on_tensor_cores) holds({product, 3, 20, 4200}, few, 50);
}

TEST(many_tokens_of_every_shape) {
    unsigned seed = 100;
    for (Sparse24Product product : on_tensor_cores)
        for (bool is_gated : {false, true})
            for (auto [tokens, out, depth] :
                 {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {17, 70, 42}, {130, 290, 330}})
                for (Launcher launcher : {large, small})
                    holds({product, tokens, out, depth, is_gated}, launcher, ++seed);
}

TEST(many_bands_of_tiles) {
    // 2 tiles of tokens, 5 of rows; 3 of tokens, 20 of rows: a whole band and a rest.
    const Problem p = {Sparse24Product::int8, 140, 5 * 256 - 9, 20};
    for (Launcher launcher : {large, small}) CHECK(worst(p, launcher, 9) <= 1) << name(p);
}

TEST(f32_rows_of_every_shape) {
    unsigned seed = 200;
    for (Sparse24Product product : by_f32)
        for (bool is_gated : {false, true})
            for (auto [tokens, out, depth] :
                 {std::tuple<std::int64_t, std::int64_t, std::int64_t>{1, 1, 1}, {7, 70, 42}, {19, 33, 330}})
                holds({product, tokens, out, depth, is_gated}, f32, ++seed);
}

TEST(groups_of_a_stack) {
    unsigned seed = 300;
    for (Sparse24Product product : on_tensor_cores)
        for (bool is_gated : {false, true}) {
            for (int tile_tokens : {8, 16}) {
                Problem p = {product, 15, 37, 100, is_gated};
                p.tile_tokens = tile_tokens;
                holds(p, few, ++seed);
            }
            Problem p = {product, 90, 37, 100, is_gated};
            p.tile_tokens = 128;
            holds(p, large, ++seed);
        }
    for (Sparse24Product product : by_f32)
        for (int tile_tokens : {8, 16, 128}) {
            Problem p = {product, 15, 37, 100, tile_tokens == 16};
            p.tile_tokens = tile_tokens;
            holds(p, f32, ++seed);
        }
}

TEST(every_activation) {
    for (auto [launcher, product] : {std::pair{few, Sparse24Product::f16},
                                     {large, Sparse24Product::f16},
                                     {small, Sparse24Product::f16},
                                     {f32, Sparse24Product::f32}})
        for (int activation = 0; activation < fastffn::activation_count; activation++)
            for (bool is_gated : {false, true}) {
                if (!is_gated && fastffn::needs_gate(static_cast<Activation>(activation))) continue;
                const Problem p = {product, 5, 20, 50, is_gated, static_cast<Activation>(activation), DType::f32, true};
                const double error = worst(p, launcher, 7);
                CHECK(error <= 1) << name(p) << error;
            }
}

TEST(nan_and_infinity_reach_what_keeps_their_column_alone) {
    for (double poison : {static_cast<double>(NAN), static_cast<double>(INFINITY)})
        for (auto [launcher, product] : {std::pair{few, Sparse24Product::bf16},
                                         {large, Sparse24Product::f16},
                                         {small, Sparse24Product::f16},
                                         {f32, Sparse24Product::f32},
                                         {f32, Sparse24Product::f32_f16}}) {
            // Short rows, so that some keep none of the poisoned columns.
            const Problem p = {product, 4, 200, 6};
            std::vector<unsigned char> bits;
            const double error = worst(p, launcher, 11, &bits, poison);
            CHECK(error <= 1) << name(p) << error;
            int finite = 0;
            for (std::int64_t column = 0; column < p.out && !bits.empty(); column++)
                finite += std::isfinite(reference::load(bits.data() + (p.out + 3 + column) * 4, DType::f32));
            CHECK(finite > 20 && finite < 180) << finite;
        }
}

TEST(same_bits_under_every_schedule) {
    for (auto [launcher, product] : {std::pair{few, Sparse24Product::bf16},
                                     {large, Sparse24Product::bf16},
                                     {small, Sparse24Product::bf16},
                                     {f32, Sparse24Product::f32}}) {
        const Problem p = {product, 9, 70, 600, true, Activation::silu, DType::f32, true};
        std::vector<unsigned char> first;
        for (unsigned seed = 0; seed < 5; seed++) {
            emulator::set_seed(seed);
            std::vector<unsigned char> bits;
            CHECK(worst(p, launcher, 13, &bits) <= 1) << name(p);
            if (seed == 0) first = bits;
            CHECK(bits == first) << "seed " << seed;
        }
    }
    emulator::set_seed(1);
}

TEST(both_kinds_of_tiles_give_the_same_bits) {
    const Problem p = {Sparse24Product::bf16, 70, 140, 300, true, Activation::gelu, DType::f32, true};
    std::vector<unsigned char> of_large, of_small;
    CHECK(worst(p, large, 17, &of_large) <= 1 && worst(p, small, 17, &of_small) <= 1);
    CHECK(of_large == of_small);
}

TEST(products_may_begin_while_rows_are_quantised) {
    std::mt19937 random(23);
    emulator::set_architecture(90);
    for (auto [launcher, depth] : {std::pair{few, 900}, {few, 30}, {large, 200}, {small, 200}}) {
        const Problem p = {Sparse24Product::int8, 5, 40, depth};
        const Matrix x(p.tokens, p.depth, DType::f32, 0, random);
        const Weights w(p, 1, random);
        const fastffn::cuda::DeviceLayout layout =
            fastffn::cuda::device_layout(w.header.format, w.header.flags, 0, p.out, p.depth);
        const Device<unsigned char> source(x.data);
        const Device<std::byte> payload(std::vector<std::byte>(w.payload(), w.bytes.data() + w.bytes.size()));
        std::vector<std::vector<float>> results;
        for (bool is_fresh : {false, true}) {
            const std::int64_t row_bytes = (p.depth + 15) / 16 * 16;
            Device<std::int8_t> rows(static_cast<std::size_t>(p.tokens * row_bytes));
            Device<float> scales(static_cast<std::size_t>(p.tokens)), y(static_cast<std::size_t>(p.tokens * p.out));
            fastffn::cuda::QuantizeArgs quantize = {};
            quantize.rows = {source.data(), DType::f32,  x.stride / 4, p.tokens,
                             p.depth,       rows.data(), row_bytes,    row_bytes};
            quantize.scales = scales.data();
            quantize.groups = 1;
            quantize.rule = fastffn::cuda::RowRule::int8;
            Sparse24Args args = {};
            args.x = rows.data();
            args.x_stride = args.row_bytes = row_bytes;
            args.w = payload.data();
            args.tile_bytes = layout.tile_bytes;
            args.pieces = fastffn::cuda::sparse24_pieces(w.header.flags, p.depth);
            args.x_scales = scales.data();
            args.w_scales = reinterpret_cast<const float*>(payload.data() + layout.scales_offset);
            args.y = y.data();
            args.y_stride = p.out;
            args.y_dtype = DType::f32;
            args.tokens = p.tokens;
            args.out_features = p.out;
            args.activation = Activation::relu2;
            args.x_is_fresh = is_fresh;
            CHECK(launch_quantize_rows(quantize, nullptr) == cudaSuccess) << emulator::last_failure();
            CHECK(launcher(p.product, args, nullptr, nullptr) == cudaSuccess) << emulator::last_failure();
            results.push_back(y.host());
        }
        CHECK(results[0] == results[1]);
    }
    emulator::set_architecture(80);
}

TEST(bad_arguments_are_refused) {
    Sparse24Args args = {};
    args.tokens = args.out_features = 1;
    for (Launcher launcher : {few, large, f32}) {
        args.row_bytes = 8;
        CHECK(launcher(Sparse24Product::bf16, args, nullptr, nullptr) == cudaErrorInvalidValue);
        args.row_bytes = 16;
        args.tile_bytes = 100;
        CHECK(launcher(Sparse24Product::f32, args, nullptr, nullptr) == cudaErrorInvalidValue);
        args.tile_bytes = 0;
        args.tokens = 0;
        CHECK(launcher(launcher == f32 ? Sparse24Product::f32 : Sparse24Product::bf16, args, nullptr, nullptr) ==
              cudaSuccess);
        args.tokens = 1;
    }
    CHECK(few(Sparse24Product::f32, args, nullptr, nullptr) == cudaErrorInvalidValue);
    CHECK(large(Sparse24Product::f32, args, nullptr, nullptr) == cudaErrorInvalidValue);
    CHECK(f32(Sparse24Product::bf16, args, nullptr, nullptr) == cudaErrorInvalidValue);
    TokenGroups groups = {};
    groups.tile_tokens = 128;
    CHECK(few(Sparse24Product::bf16, args, &groups, nullptr) == cudaErrorInvalidValue);
    groups.tile_tokens = 16;
    CHECK(large(Sparse24Product::bf16, args, &groups, nullptr) == cudaErrorInvalidValue);
    cudaGetLastError();
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
