// No byte outside an array is read or written: every array lies right against a page that may not be touched, at its end
// and then at its beginning, and inputs cannot be written. Results are those from plain memory, bit for bit.
#include "check.hpp"
#include "guarded.hpp"
#include "support.hpp"

namespace {
using namespace support;

struct Shape {
    std::int64_t tokens, d_model, d_ff;
};
const Shape shapes[] = {{1, 1, 1},    {1, 15, 17},  {2, 17, 31},  {3, 64, 64},   {5, 63, 65},  {7, 33, 100},
                        {16, 48, 80}, {17, 65, 63}, {31, 16, 16}, {33, 130, 70}, {40, 31, 257}};

// Rows one element apart from each other: padding that nobody may read lies between the rows, not after the last.
std::vector<std::byte> with_gaps(const std::vector<std::byte>& rows, std::int64_t count, std::int64_t row_bytes,
                                 std::int64_t stride) {
    std::vector<std::byte> out(static_cast<std::size_t>((count - 1) * stride + row_bytes), std::byte{0xFF});
    for (std::int64_t r = 0; r < count; r++)
        std::memcpy(out.data() + r * stride, rows.data() + r * row_bytes, static_cast<std::size_t>(row_bytes));
    return out;
}

void check_ffn(const Problem& problem, const char* name, Side side, bool gaps) {
    const Shape s{problem.tokens, problem.d_model, problem.d_ff};
    const DType dtype = problem.dtype;
    const bool gated = problem.gated;
    fastffn::Context context(1);
    auto expected = problem.output();
    problem.run(context, expected).value();

    const std::int64_t element = fastffn::dtype_bytes(dtype), row_bytes = s.d_model * element;
    const std::int64_t stride = row_bytes + (gaps ? element : 0);
    const Guarded x(with_gaps(problem.x, s.tokens, row_bytes, stride), side);
    const Guarded w_up(problem.w_up, side), w_down(problem.w_down, side), w_gate(problem.w_gate, side);
    const Guarded b_up(problem.b_up, side), b_gate(problem.b_gate, side), b_down(problem.b_down, side);
    const Guarded y(static_cast<std::size_t>((s.tokens - 1) * stride + row_bytes), side);
    std::memset(y.data(), 0x5A, static_cast<std::size_t>(y.size()));

    TensorView x_view(x.data(), dtype, {s.tokens, s.d_model}), y_view(y.data(), dtype, {s.tokens, s.d_model});
    x_view.strides[0] = y_view.strides[0] = stride / element;
    const TensorView up(b_up.data(), dtype, {s.d_ff}), gate(b_gate.data(), dtype, {s.d_ff}),
        down(b_down.data(), dtype, {s.d_model});
    fastffn::FfnWeights weights;
    weights.w_up = {w_up.data(), w_up.size()};
    weights.w_down = {w_down.data(), w_down.size()};
    if (gated) weights.w_gate = {w_gate.data(), w_gate.size()};
    weights.b_up = &up;
    weights.b_down = &down;
    if (gated) weights.b_gate = &gate;
    weights.activation = gated ? fastffn::Activation::silu : fastffn::Activation::gelu;
    problem.set_segments(weights);
    const Status status = fastffn::ffn(context, x_view, weights, y_view);
    CHECK(status.ok()) << status.message();
    bool same = true, gaps_kept = true;
    for (std::int64_t r = 0; r < s.tokens; r++) {
        same = same && std::memcmp(y.data() + r * stride, expected.data() + r * row_bytes,
                                   static_cast<std::size_t>(row_bytes)) == 0;
        if (r + 1 < s.tokens)
            for (std::int64_t i = row_bytes; i < stride; i++)
                gaps_kept = gaps_kept && y.data()[r * stride + i] == std::byte{0x5A};
    }
    CHECK(same) << name << " " << fastffn::dtype_name(dtype) << " tokens " << s.tokens << " d_model " << s.d_model
                << " d_ff " << s.d_ff << (side == Side::end ? " end" : " begin");
    CHECK(gaps_kept) << "bytes between the rows of y were written";
}

void check_ffn(const Kind& format, DType dtype, const Shape& s, Side side, bool gated, bool gaps) {
    const Problem problem(format, dtype, s.tokens, s.d_model, s.d_ff, gated);
    check_ffn(problem, format.name().c_str(), side, gaps);
}

TEST(ffn_against_guard_pages) {
    for (const Kind& format : all_kinds())
        for (DType dtype : float_dtypes)
            for (const Shape& shape : shapes)
                for (Side side : {Side::end, Side::begin})
                    for (bool gated : {false, true})
                        check_ffn(format, dtype, shape, side, gated, (shape.tokens & 1) != 0);
}

// Decode: many columns, one row, more than one thread.
TEST(wide_ffn_against_guard_pages) {
    for (const Kind& format : all_kinds())
        for (std::int64_t tokens : {1, 4, 130})
            for (Side side : {Side::end, Side::begin})
                check_ffn(format, DType::f32, {tokens, 257, 1031}, side, true, true);
}

// Pairs of factors: few tokens and streamed ones, blocks of 256 columns that end in the middle.
TEST(low_rank_against_guard_pages) {
    for (Format factors : factor_formats)
        for (const Shape& s : {Shape{1, 1, 1}, {3, 17, 31}, {6, 257, 300}, {17, 65, 63}, {40, 31, 257}, {259, 33, 258}})
            for (Side side : {Side::end, Side::begin})
                for (bool gated : {false, true})
                    for (std::int64_t rank : {1, 13, 48}) {
                        const DType dtype = float_dtypes[(s.tokens + rank) % 3];
                        Problem problem(Format::f32, dtype, s.tokens, s.d_model, s.d_ff, gated);
                        check_ffn(problem.low_rank(factors, rank), "lowrank", side, (s.tokens & 1) != 0);
                    }
}

// Segments: views of some columns of w_down, from its first, up to its last, and ragged ones between.
TEST(segments_against_guard_pages) {
    const std::vector<fastffn::Segment> lists[] = {
        {{0, 3}}, {{5, 77}}, {{257, 44}}, {{300, 1}}, {{1, 2}, {64, 1}, {131, 60}, {299, 2}}};
    const auto check = [&lists](Problem problem, const std::string& name, int which) {
        for (const auto& list : lists)
            for (Side side : {Side::end, Side::begin}) {
                problem.segments = list;
                check_ffn(problem, name.c_str(), side, which % 2 == 0);
            }
    };
    int which = 0;
    for (std::int64_t tokens : {1, 7, 40}) {
        for (const Kind& format : all_kinds()) {
            ++which;
            const Problem problem(format, float_dtypes[which % 3], tokens, 33, 301, which % 2 == 0);
            check(problem, "segments of " + format.name(), which);
        }
        for (Format factors : factor_formats) {
            ++which;
            Problem problem(Format::f32, float_dtypes[which % 3], tokens, 33, 301, which % 2 == 0);
            check(problem.low_rank(factors, 20), "segments of pairs", which);
        }
    }
}

TEST(pack_factors_against_guard_pages) {
    for (Format factors : factor_formats)
        for (Side side : {Side::end, Side::begin})
            for (DType dtype : float_dtypes) {
                const Guarded u_plain(random_array(dtype, 5 * 300, 1), side),
                    v_plain(random_array(dtype, 21 * 5, 2), side);
                const TensorView u(u_plain.data(), dtype, {5, 300}), v(v_plain.data(), dtype, {21, 5});
                std::int64_t bytes = 0;
                fastffn::packed_factors_bytes(u, v, factors, &bytes).value();
                const Guarded packed(static_cast<std::size_t>(bytes), side);
                fastffn::pack_factors(u, v, factors, packed.data(), bytes).value();
                const Guarded back(static_cast<std::size_t>(21 * 300 * fastffn::dtype_bytes(dtype)), side);
                const Status status =
                    fastffn::unpack({packed.data(), bytes}, TensorView(back.data(), dtype, {21, 300}));
                CHECK(status.ok()) << status.message();
            }
}

TEST(linear_against_guard_pages) {
    for (const Kind& format : all_kinds())
        for (DType dtype : float_dtypes)
            for (const Shape& s : shapes)
                for (Side side : {Side::end, Side::begin}) {
                    const auto packed = pack_random(format, s.d_ff, s.d_model, 1);
                    const Guarded w(packed, side), x(random_array(dtype, s.tokens * s.d_model, 2), side),
                        b(random_array(dtype, s.d_ff, 3), side);
                    const Guarded y(static_cast<std::size_t>(s.tokens * s.d_ff * fastffn::dtype_bytes(dtype)), side);
                    const TensorView bias(b.data(), dtype, {s.d_ff});
                    fastffn::Context context(2);
                    const Status status =
                        fastffn::linear(context, TensorView(x.data(), dtype, {s.tokens, s.d_model}),
                                        {w.data(), w.size()}, &bias, TensorView(y.data(), dtype, {s.tokens, s.d_ff}));
                    CHECK(status.ok()) << status.message();
                }
}

// Calls compare the header only, so a payload may be anything: kernels read no further for it.
TEST(random_payloads_against_guard_pages) {
    std::mt19937 generator(5);
    for (const Kind& format : all_kinds())
        for (const Shape& s : shapes)
            for (Side side : {Side::end, Side::begin}) {
                auto packed = pack_random(format, s.d_ff, s.d_model, 1);
                for (std::size_t i = sizeof(fastffn::PackedHeader); i < packed.size(); i++)
                    packed[i] = static_cast<std::byte>(generator());
                const Guarded w(packed, side), x(random_array(DType::f32, s.tokens * s.d_model, 2), side);
                const Guarded y(static_cast<std::size_t>(s.tokens * s.d_ff * 4), side);
                const PackedView weights{w.data(), w.size()};
                fastffn::Context context(1);
                const Status status =
                    fastffn::linear(context, TensorView(x.data(), DType::f32, {s.tokens, s.d_model}), weights, nullptr,
                                    TensorView(y.data(), DType::f32, {s.tokens, s.d_ff}));
                CHECK(status.ok()) << status.message();
                CHECK(fastffn::verify_packed(weights).code() == StatusCode::corrupt) << format.name();
            }
}

TEST(pack_and_unpack_against_guard_pages) {
    for (const Kind& format : all_kinds())
        for (const Shape& s : shapes)
            for (Side side : {Side::end, Side::begin})
                for (DType dtype : float_dtypes) {
                    const Guarded plain(random_weights(format, dtype, s.d_ff, s.d_model, 1), side);
                    const TensorView w(plain.data(), dtype, {s.d_ff, s.d_model});
                    std::int64_t bytes = 0;
                    fastffn::packed_bytes(w, format, format.options, &bytes).value();
                    const Guarded packed(static_cast<std::size_t>(bytes), side);
                    fastffn::pack(w, format, format.options, packed.data(), bytes).value();
                    const Guarded back(static_cast<std::size_t>(s.d_ff * s.d_model * fastffn::dtype_bytes(dtype)),
                                       side);
                    const Status status =
                        fastffn::unpack({packed.data(), bytes}, TensorView(back.data(), dtype, {s.d_ff, s.d_model}));
                    CHECK(status.ok()) << status.message();
                }
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
