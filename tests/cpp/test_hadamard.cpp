// Hadamard transforms, quantisers and sub-norms from C++: no byte outside an array is read or written, workspace is exactly what
// the query says, and threads change no bit.
#include "check.hpp"
#include "guarded.hpp"
#include "support.hpp"

namespace {
using namespace support;
using fastffn::ActivationCodes;
using fastffn::Hadamard;
using fastffn::HadamardOptions;

struct Case {
    Hadamard mode;
    std::int64_t n, block;
};
const Case cases[] = {
    {Hadamard::none, 7, 0},    {Hadamard::pow2, 1, 0},    {Hadamard::pow2, 2, 0},    {Hadamard::pow2, 4, 0},
    {Hadamard::pow2, 8, 0},    {Hadamard::pow2, 16, 0},   {Hadamard::pow2, 32, 0},   {Hadamard::pow2, 64, 0},
    {Hadamard::pow2, 128, 0},  {Hadamard::pow2, 256, 0},  {Hadamard::pow2, 512, 0},  {Hadamard::pow2, 2048, 0},
    {Hadamard::pow2, 8192, 0}, {Hadamard::kron, 12, 0},   {Hadamard::kron, 40, 0},   {Hadamard::kron, 172, 0},
    {Hadamard::kron, 312, 0},  {Hadamard::kron, 864, 0},  {Hadamard::kron, 3456, 0}, {Hadamard::block, 6, 0},
    {Hadamard::block, 100, 0}, {Hadamard::block, 608, 0}, {Hadamard::block, 96, 4},  {Hadamard::block, 96, 16},
};

HadamardOptions options_of(const Case& c, bool inverse = false) { return {c.mode, c.block, inverse}; }

TEST(hadamard_against_guard_pages) {
    for (const Case& c : cases)
        for (Side side : {Side::end, Side::begin})
            for (DType dtype : float_dtypes)
                for (DType out : float_dtypes) {
                    const std::int64_t rows = 3;
                    const auto plain = random_array(dtype, rows * c.n, 1);
                    const Guarded x(plain, side);
                    const Guarded y(static_cast<std::size_t>(rows * c.n * fastffn::dtype_bytes(out)), side);
                    std::vector<std::byte> expected(static_cast<std::size_t>(y.size()));
                    fastffn::Context context(2);
                    const Status status =
                        fastffn::hadamard(context, TensorView(x.data(), dtype, {rows, c.n}), options_of(c, true),
                                          TensorView(y.data(), out, {rows, c.n}));
                    CHECK(status.ok()) << status.message();
                    fastffn::hadamard(context, TensorView(plain.data(), dtype, {rows, c.n}), options_of(c, true),
                                      TensorView(expected.data(), out, {rows, c.n}))
                        .value();
                    CHECK(std::memcmp(y.data(), expected.data(), expected.size()) == 0)
                        << fastffn::hadamard_name(c.mode) << " " << c.n;
                }
}

TEST(hadamard_in_place_against_guard_pages) {
    for (const Case& c : cases)
        for (Side side : {Side::end, Side::begin})
            for (DType dtype : float_dtypes) {
                const auto plain = random_array(dtype, 2 * c.n, 2);
                const Guarded x(plain.size(), side);
                std::memcpy(x.data(), plain.data(), plain.size());
                auto expected = plain;
                fastffn::Context context(1);
                const TensorView view(x.data(), dtype, {2, c.n});
                fastffn::hadamard(context, TensorView(plain.data(), dtype, {2, c.n}), options_of(c),
                                  TensorView(expected.data(), dtype, {2, c.n}))
                    .value();
                fastffn::hadamard(context, view, options_of(c), view).value();
                CHECK(std::memcmp(x.data(), expected.data(), expected.size()) == 0) << c.n;
            }
}

TEST(quantize_against_guard_pages) {
    for (std::int64_t n : {1, 15, 16, 17, 64, 100, 257})
        for (std::int64_t rows : {1, 5, 40})
            for (Side side : {Side::end, Side::begin})
                for (DType dtype : float_dtypes)
                    for (ActivationCodes kind : {ActivationCodes::int8, ActivationCodes::int4}) {
                        const Guarded x(random_array(dtype, rows * n, 3), side);
                        const Guarded codes(static_cast<std::size_t>(rows * n), side),
                            scale(static_cast<std::size_t>(rows * 4), side);
                        fastffn::Context context(2);
                        const Status status = fastffn::quantize(context, TensorView(x.data(), dtype, {rows, n}), kind,
                                                                TensorView(codes.data(), DType::i8, {rows, n}),
                                                                TensorView(scale.data(), DType::f32, {rows}));
                        CHECK(status.ok()) << status.message();
                    }
}

// Weights whose rows are transformed, alone and as w_down behind a sub-norm.
std::vector<Kind> transformed_kinds(std::int64_t n) {
    std::vector<Kind> kinds;
    for (Format format : {Format::ternary, Format::int4})
        for (const char* mode : {"pow2", "kron", "block"})
            for (const char* act : {"int8", "int4"}) {
                const bool power = (n & (n - 1)) == 0;
                if (std::string(mode) == "pow2" ? power : std::string(mode) == "kron" ? n % 12 == 0 : n % 2 == 0)
                    kinds.push_back(Kind(format, {{"hadamard", mode}, {"act", act}}));
            }
    return kinds;
}

// 8704 does not fit the stack's place for a row.
TEST(linear_and_packing_against_guard_pages) {
    for (std::int64_t n : {2, 12, 16, 64, 96, 100, 8704})
        for (const Kind& kind : transformed_kinds(n))
            for (std::int64_t tokens : {1, 7, 33})
                for (Side side : {Side::end, Side::begin}) {
                    const DType dtype = float_dtypes[tokens % 3];
                    const Guarded plain(random_array(dtype, 37 * n, 1), side);
                    const TensorView weights(plain.data(), dtype, {37, n});
                    std::int64_t bytes = 0;
                    fastffn::packed_bytes(weights, kind.format, kind.options, &bytes).value();
                    const Guarded w(static_cast<std::size_t>(bytes), side);
                    fastffn::pack(weights, kind.format, kind.options, w.data(), bytes).value();
                    const Guarded back(static_cast<std::size_t>(37 * n * fastffn::dtype_bytes(dtype)), side);
                    fastffn::unpack({w.data(), bytes}, TensorView(back.data(), dtype, {37, n})).value();
                    const Guarded x(random_array(dtype, tokens * n, 2), side);
                    const Guarded y(static_cast<std::size_t>(tokens * 37 * 4), side);
                    fastffn::Context context(2);
                    const Status status =
                        fastffn::linear(context, TensorView(x.data(), dtype, {tokens, n}), {w.data(), bytes}, nullptr,
                                        TensorView(y.data(), DType::f32, {tokens, 37}));
                    CHECK(status.ok()) << kind.name() << ": " << status.message();
                    std::int64_t workspace = -1;
                    fastffn::linear_workspace(TensorView(x.data(), dtype, {tokens, n}), {w.data(), bytes}, 2,
                                              &workspace)
                        .value();
                    CHECK(workspace == context.workspace_bytes()) << kind.name() << " " << n << ", " << tokens;
                }
}

struct SubNormed {
    Problem problem;
    std::vector<std::byte> gamma;
    DType gamma_dtype;

    SubNormed(const Kind& down, std::int64_t tokens, std::int64_t d_ff, DType dtype, DType gamma_dtype_, bool gated)
        : problem(Format::f32, dtype, tokens, 33, d_ff, gated),
          gamma(random_array(gamma_dtype_, d_ff, 8)),
          gamma_dtype(gamma_dtype_) {
        problem.w_down = pack_random(down, 33, d_ff, 2);
    }
    fastffn::FfnWeights weights(const TensorView& view) const {
        fastffn::FfnWeights w;
        w.w_up = support::view(problem.w_up);
        w.w_down = support::view(problem.w_down);
        if (problem.gated) w.w_gate = support::view(problem.w_gate);
        w.activation = fastffn::Activation::relu2;
        w.sub_norm = &view;
        problem.set_segments(w);
        return w;
    }
    std::vector<std::byte> run(fastffn::Context& context, const std::byte* gamma_data) const {
        const TensorView view(gamma_data, gamma_dtype, {problem.d_ff});
        auto y = problem.output();
        fastffn::ffn(context, TensorView(problem.x.data(), problem.dtype, {problem.tokens, 33}), weights(view),
                     TensorView(y.data(), problem.dtype, {problem.tokens, 33}))
            .value();
        return y;
    }
    std::int64_t workspace(int threads) const {
        const TensorView view(gamma.data(), gamma_dtype, {problem.d_ff});
        std::int64_t bytes = 0;
        fastffn::ffn_workspace(TensorView(problem.x.data(), problem.dtype, {problem.tokens, 33}), weights(view),
                               threads, &bytes)
            .value();
        return bytes;
    }
};

// γ against a guard page, the query against what a call takes, and every number of threads.
void check_sub_norm(const SubNormed& layer, const std::string& name) {
    fastffn::Context one(1);
    const auto expected = layer.run(one, layer.gamma.data());
    for (Side side : {Side::end, Side::begin}) {
        const Guarded gamma(layer.gamma, side);
        CHECK(layer.run(one, gamma.data()) == expected) << name;
    }
    for (int threads = 1; threads <= 5; threads += 2) {
        fastffn::Context context(threads);
        CHECK(layer.run(context, layer.gamma.data()) == expected) << name << ", " << threads << " threads";
        CHECK(context.workspace_bytes() == (layer.workspace(threads) + 63) / 64 * 64) << name;
    }
}

TEST(sub_norm_in_every_format) {
    int which = 0;
    for (const Kind& down : all_kinds())
        for (std::int64_t tokens : {1, 7, 40})
            for (std::int64_t d_ff : {1, 17, 64, 301}) {
                ++which;
                SubNormed layer(down, tokens, d_ff, float_dtypes[which % 3], float_dtypes[which / 3 % 3],
                                which % 2 == 0);
                check_sub_norm(layer, down.name());
                if (d_ff < 301) continue;
                layer.problem.segments = {{1, 2}, {64, 1}, {131, 60}, {299, 2}};
                check_sub_norm(layer, "segments of " + down.name());
            }
    for (std::int64_t n : {96, 256})
        for (const Kind& down : transformed_kinds(n))
            for (std::int64_t tokens : {1, 40})
                check_sub_norm(SubNormed(down, tokens, n, DType::f32, DType::f32, true), down.name());
}

TEST(sub_norm_before_pairs) {
    for (Format factors : factor_formats)
        for (std::int64_t tokens : {1, 40, 600}) {
            SubNormed layer(Format::f32, tokens, 301, DType::f32, DType::bf16, true);
            layer.problem.w_down = pack_random_pair(factors, 33, 301, 20, 12);
            check_sub_norm(layer, "pair");
            layer.problem.segments = {{3, 5}, {250, 40}};
            check_sub_norm(layer, "segments of a pair");
        }
}

TEST(same_bits_for_any_number_of_threads) {
    for (const Case& c : cases) {
        const std::int64_t rows = 2 * 65536 / c.n + 3;
        for (DType dtype : float_dtypes) {
            const auto x = random_array(dtype, rows * c.n, 5);
            const TensorView view(x.data(), dtype, {rows, c.n});
            std::vector<std::byte> expected, codes;
            for (int threads = 1; threads <= 6; threads++) {
                fastffn::Context context(threads);
                std::vector<std::byte> y(x.size());
                fastffn::hadamard(context, view, options_of(c), TensorView(y.data(), dtype, {rows, c.n})).value();
                std::int64_t bytes = 0;
                fastffn::hadamard_workspace(view, options_of(c), threads, &bytes).value();
                CHECK(context.workspace_bytes() == (bytes + 63) / 64 * 64);
                if (threads == 1) expected = y;
                CHECK(y == expected) << fastffn::hadamard_name(c.mode) << " " << c.n << ", " << threads << " threads";

                fastffn::Context other(threads);
                std::vector<std::byte> q(static_cast<std::size_t>(rows * c.n + rows * 4));
                fastffn::quantize(other, view, ActivationCodes::int4, TensorView(q.data(), DType::i8, {rows, c.n}),
                                  TensorView(q.data() + rows * c.n, DType::f32, {rows}))
                    .value();
                fastffn::quantize_workspace(view, ActivationCodes::int4, threads, &bytes).value();
                CHECK(other.workspace_bytes() == (bytes + 63) / 64 * 64);
                if (threads == 1) codes = q;
                CHECK(q == codes) << c.n << ", " << threads << " threads";
            }
        }
    }
}

TEST(errors) {
    std::vector<float> x(96), y(96), scale(2);
    std::vector<std::int8_t> codes(96);
    const TensorView view(x.data(), DType::f32, {1, 96}), out(y.data(), DType::f32, {1, 96});
    fastffn::Context context(1);
    const auto message = [&](const HadamardOptions& options, const TensorView& to) {
        const Status status = fastffn::hadamard(context, view, options, to);
        CHECK(status.code() == StatusCode::invalid_argument);
        return status.message();
    };
    CHECK(message({}, out) ==
          "hadamard: hadamard mode 'pow2' does not fit: x's last dimension 96 is no power of two; what works: "
          "'kron' (12 · 8), 'block' (3 of 32)");
    CHECK(message({static_cast<Hadamard>(9)}, out) == "hadamard: mode number 9 is not known");
    CHECK(message({Hadamard::block}, TensorView(y.data(), DType::f32, {96})).find("out has shape (96,)") !=
          std::string::npos);
    CHECK(message({Hadamard::block}, TensorView(x.data() + 1, DType::f32, {1, 95})).find("out has shape") !=
          std::string::npos);
    const TensorView codes_view(codes.data(), DType::i8, {1, 96}), scale_view(scale.data(), DType::f32, {1});
    const auto refused = [&](const TensorView& from, const TensorView& to, const TensorView& scales) {
        return fastffn::quantize(context, from, ActivationCodes::int8, to, scales).code() ==
               StatusCode::invalid_argument;
    };
    CHECK(refused(view, TensorView(codes.data(), DType::u8, {1, 96}), scale_view));
    CHECK(refused(view, TensorView(codes.data(), DType::i8, {96}), scale_view));
    CHECK(refused(view, codes_view, TensorView(scale.data(), DType::f32, {2})));
    CHECK(refused(view, codes_view, TensorView(scale.data(), DType::f16, {1})));
    CHECK(refused(view, TensorView(x.data(), DType::i8, {1, 96}), scale_view));
    CHECK(refused(view, codes_view, TensorView(codes.data(), DType::f32, {1})));
    CHECK(!refused(view, codes_view, scale_view));
    CHECK(fastffn::quantize(context, view, static_cast<ActivationCodes>(7), codes_view, scale_view).code() ==
          StatusCode::invalid_argument);
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
