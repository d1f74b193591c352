// Trees: no byte outside an array, the same bits for any number of threads, the workspace as queried, offsets past 2^31,
// and every refusal with the shapes it is about.
#include <sys/mman.h>

#include <atomic>
#include <thread>

#include "check.hpp"
#include "guarded.hpp"
#include "routes/tree/tree.hpp"
#include "support.hpp"

namespace {
using namespace support;
using fastffn::Activation;
using fastffn::FffPlan;
using fastffn::FffWeights;
using fastffn::TreeParts;

constexpr Format row_formats[] = {Format::f32, Format::f16, Format::bf16, Format::int8};
constexpr FffPlan plans[] = {FffPlan::per_token, FffPlan::grouped, FffPlan::automatic};

std::vector<std::byte> pack_random_tree(Format format, std::int64_t trees, std::int64_t depth, std::int64_t d_model,
                                        std::int64_t d_out, unsigned seed = 1) {
    const std::int64_t nodes = (std::int64_t{1} << (depth + (d_out ? 1 : 0))) - 1;
    const auto rows = random_array(DType::f32, trees * nodes * d_model, seed, 0.2f);
    const auto bias = random_array(DType::f32, trees * nodes, seed + 1, 0.2f);
    const auto outputs = random_array(DType::f32, trees * nodes * d_out, seed + 2);
    const TensorView w_node(rows.data(), DType::f32, {trees, nodes, d_model});
    const TensorView b_node(bias.data(), DType::f32, {trees, nodes});
    const TensorView w_out(outputs.data(), DType::f32, {trees, nodes, d_out});
    const TreeParts parts{&w_node, &b_node, nullptr, d_out ? &w_out : nullptr};
    std::int64_t bytes = 0;
    fastffn::tree_bytes(parts, {format, format, fastffn::Tie::left}, &bytes).value();
    std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
    fastffn::pack_tree(parts, {format, format, fastffn::Tie::left}, packed.data(), bytes).value();
    return packed;
}

struct Shape {
    std::int64_t tokens, trees, depth, d_model, d_out;
};
// The last ones are sorted by subtree.
const Shape shapes[] = {{1, 1, 0, 1, 1},    {3, 2, 2, 15, 17},   {5, 1, 3, 33, 1},    {70, 3, 1, 1, 31},
                        {17, 1, 4, 64, 65}, {90, 1, 10, 20, 37}, {300, 1, 11, 16, 16}};

// The input with rows one element apart from each other, or side by side.
struct Rows {
    std::int64_t tokens, cols, stride;
    std::int64_t bytes(DType dtype) const { return ((tokens - 1) * stride + cols) * fastffn::dtype_bytes(dtype); }
    TensorView view(std::byte* data, DType dtype) const {
        TensorView rows(data, dtype, {tokens, cols});
        rows.strides[0] = stride;
        return rows;
    }
};

TEST(all_node_against_guard_pages) {
    for (Format format : row_formats)
        for (DType dtype : float_dtypes)
            for (const Shape& s : shapes) {
                const auto tree = pack_random_tree(format, s.trees, s.depth, s.d_model, s.d_out);
                for (FffPlan plan : plans)
                    for (Side side : {Side::end, Side::begin}) {
                        const std::int64_t gap = s.tokens % 2;
                        const Rows in{s.tokens, s.d_model, s.d_model + gap}, out{s.tokens, s.d_out, s.d_out + gap};
                        const auto plain = random_array(dtype, in.bytes(dtype) / fastffn::dtype_bytes(dtype), 5);
                        std::vector<std::byte> expected(static_cast<std::size_t>(out.bytes(dtype)), std::byte{0x5A});
                        std::vector<std::byte> copy = plain;
                        FffWeights weights;
                        weights.tree = view(tree);
                        weights.plan = plan;
                        fastffn::Context context(1);
                        fastffn::fff(context, in.view(copy.data(), dtype), weights, out.view(expected.data(), dtype))
                            .value();

                        const Guarded x(plain, side), packed(tree, side);
                        const Guarded y(expected.size(), side);
                        std::memset(y.data(), 0x5A, expected.size());
                        weights.tree = {packed.data(), packed.size()};
                        fastffn::fff(context, in.view(x.data(), dtype), weights, out.view(y.data(), dtype)).value();
                        CHECK(std::memcmp(y.data(), expected.data(), expected.size()) == 0)
                            << fastffn::format_name(format) << " " << fastffn::dtype_name(dtype) << " tokens "
                            << s.tokens << " d_model " << s.d_model << " plan " << static_cast<int>(plan);
                    }
            }
}

TEST(leaf_form_against_guard_pages) {
    for (Format format : row_formats)
        for (std::int64_t tokens : {1, 30}) {
            const std::int64_t trees = 2, depth = 2, d_model = 33, d_ff = 7, d_out = 18, leaves = trees << depth;
            const auto tree = pack_random_tree(format, trees, depth, d_model, 0);
            auto stack = [&](std::int64_t out, std::int64_t in, unsigned seed) {
                const auto plain = random_array(DType::f32, leaves * out * in, seed, 0.2f);
                const TensorView w(plain.data(), DType::f32, {leaves, out, in});
                std::int64_t bytes = 0;
                fastffn::packed_bytes(w, format, &bytes).value();
                std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
                fastffn::pack(w, format, packed.data(), bytes).value();
                return packed;
            };
            const auto up = stack(d_ff, d_model, 1), down = stack(d_out, d_ff, 2);
            const auto bias_up = random_array(DType::f32, leaves * d_ff, 3),
                       bias_down = random_array(DType::f32, leaves * d_out, 4);
            const auto input = random_array(DType::f32, tokens * d_model, 5);
            std::vector<std::byte> expected;
            for (int run = 0; run < 3; ++run) {
                const Side side = run == 1 ? Side::end : Side::begin;
                const Guarded x(input, side), packed(tree, side), w_up(up, side), w_down(down, side), u(bias_up, side),
                    d(bias_down, side), y(static_cast<std::size_t>(tokens * d_out * 4), side);
                const TensorView b_up(u.data(), DType::f32, {leaves, d_ff}),
                    b_down(d.data(), DType::f32, {leaves, d_out});
                FffWeights weights;
                weights.tree = {packed.data(), packed.size()};
                weights.w_up = {w_up.data(), w_up.size()};
                weights.w_down = {w_down.data(), w_down.size()};
                weights.b_up = &b_up;
                weights.b_down = &b_down;
                fastffn::Context context(1);
                fastffn::fff(context, TensorView(x.data(), DType::f32, {tokens, d_model}), weights,
                             TensorView(y.data(), DType::f32, {tokens, d_out}))
                    .value();
                if (run == 0) expected.assign(y.data(), y.data() + y.size());
                CHECK(std::memcmp(y.data(), expected.data(), expected.size()) == 0) << fastffn::format_name(format);
            }
        }
}

TEST(same_bits_for_any_number_of_threads) {
    for (Format format : row_formats)
        for (const Shape& s : {Shape{700, 1, 11, 24, 40}, Shape{3, 40, 4, 300, 500}, Shape{200, 2, 6, 100, 90}}) {
            const auto tree = pack_random_tree(format, s.trees, s.depth, s.d_model, s.d_out);
            const auto x = random_array(DType::bf16, s.tokens * s.d_model, 5);
            std::vector<std::byte> expected;
            for (FffPlan plan : plans)
                for (int threads = 1; threads <= 8; ++threads) {
                    std::vector<std::byte> y(static_cast<std::size_t>(s.tokens * s.d_out * 2));
                    FffWeights weights;
                    weights.tree = view(tree);
                    weights.plan = plan;
                    fastffn::Context context(threads);
                    fastffn::fff(context, TensorView(x.data(), DType::bf16, {s.tokens, s.d_model}), weights,
                                 TensorView(y.data(), DType::bf16, {s.tokens, s.d_out}))
                        .value();
                    if (expected.empty()) expected = y;
                    CHECK(y == expected) << fastffn::format_name(format) << " " << s.tokens << " tokens, plan "
                                         << static_cast<int>(plan) << ", " << threads << " threads";
                }
        }
}

TEST(callers_side_by_side_on_one_tree) {
    const auto tree = pack_random_tree(Format::f32, 1, 11, 24, 40);
    const auto x = random_array(DType::f32, 300 * 24, 5);
    FffWeights weights;
    weights.tree = view(tree);
    auto run = [&](std::vector<std::byte>& y, int threads) {
        fastffn::Context context(threads);
        fastffn::fff(context, TensorView(x.data(), DType::f32, {300, 24}), weights,
                     TensorView(y.data(), DType::f32, {300, 40}))
            .value();
    };
    std::vector<std::byte> expected(300 * 40 * 4);
    run(expected, 1);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 6; ++caller)
        callers.emplace_back([&, caller] {
            std::vector<std::byte> y(expected.size());
            run(y, 1 + caller % 3);
            if (y != expected) ++wrong;
        });
    for (auto& caller : callers) caller.join();
    CHECK(wrong == 0);
}

TEST(query_is_what_a_call_takes) {
    const float mix = 0.5f;
    for (DType dtype : float_dtypes)
        for (const Shape& s : {Shape{1, 1, 11, 24, 40}, Shape{700, 1, 11, 24, 40}, Shape{5000, 3, 2, 20, 16}})
            for (FffPlan plan : plans)
                for (int threads : {1, 3})
                    for (bool has_master : {false, true}) {
                        const auto tree = pack_random_tree(Format::bf16, s.trees, s.depth, s.d_model, s.d_out);
                        const auto up = pack_random(Format::f32, 8, s.d_model, 1),
                                   down = pack_random(Format::f32, s.d_out, 8, 2);
                        const auto x = random_array(dtype, s.tokens * s.d_model, 5);
                        std::vector<std::byte> y(
                            static_cast<std::size_t>(s.tokens * s.d_out * fastffn::dtype_bytes(dtype)));
                        fastffn::FfnWeights master;
                        master.w_up = view(up);
                        master.w_down = view(down);
                        FffWeights weights;
                        weights.tree = view(tree);
                        weights.plan = plan;
                        weights.master = has_master ? &master : nullptr;
                        weights.mix = has_master ? &mix : nullptr;
                        const TensorView input(x.data(), dtype, {s.tokens, s.d_model});
                        std::int64_t bytes = -1;
                        fastffn::fff_workspace(input, weights, threads, &bytes).value();
                        fastffn::Context context(threads);
                        fastffn::fff(context, input, weights, TensorView(y.data(), dtype, {s.tokens, s.d_out})).value();
                        CHECK(context.workspace_bytes() == bytes)
                            << s.tokens << " tokens: took " << context.workspace_bytes() << ", said " << bytes;
                    }
}

// K·N·m > 2^31: memory that is never touched costs nothing, so only two nodes of the last tree are written.
TEST(offsets_past_two_to_the_31) {
#if defined(__linux__)
    const std::int64_t trees = 3, nodes = 1023, d_model = 1 << 20, depth = 9;  // 3.2e9 int8 weights
    const float zero = 0;
    TensorView w_node(&zero, DType::f32, {trees, nodes, d_model}), w_out(&zero, DType::f32, {trees, nodes, 1});
    for (TensorView* w : {&w_node, &w_out}) w->strides[0] = w->strides[1] = w->strides[2] = 0;
    const TreeParts parts{&w_node, nullptr, nullptr, &w_out};
    std::int64_t bytes = 0;
    fastffn::tree_bytes(parts, {Format::int8, Format::int8, fastffn::Tie::left}, &bytes).value();
    CHECK(bytes > std::int64_t{1} << 31);
    void* memory = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return check::skip("no address space");
    auto* packed = static_cast<std::byte*>(memory);
    CHECK(fastffn::write_tree_header(parts, {Format::int8, Format::int8, fastffn::Tie::left}, packed).ok());
    const std::int64_t record = (bytes - 128) / (trees * nodes);
    // The token goes right at the last tree's root and left below it; its outputs are 2 and 5, scaled.
    auto write = [&](std::int64_t node, std::int8_t weight, float scale, float bias, std::int8_t output) {
        std::byte* at = packed + 128 + (2 * nodes + node) * record;
        const float head[4] = {scale, bias, 0, 1};
        std::memcpy(at, head, sizeof head);
        at[64 + d_model - 1] = static_cast<std::byte>(weight);
        at[64 + d_model] = static_cast<std::byte>(output);
    };
    write(0, 3, 1, 0, 2);
    write(2, 0, 1, -1, 5);
    std::vector<float> x(static_cast<std::size_t>(d_model), 0.0f);
    x.back() = 2;
    for (FffPlan plan : {FffPlan::per_token, FffPlan::grouped}) {
        float y = 0;
        std::int32_t leaf[3] = {-1, -1, -1};
        FffWeights weights;
        weights.tree = {packed, bytes};
        weights.activation = Activation::identity;
        weights.plan = plan;
        fastffn::Context context(1);
        const TensorView input(x.data(), DType::f32, {1, d_model});
        fastffn::fff(context, input, weights, TensorView(&y, DType::f32, {1, 1})).value();
        CHECK(y == 6 * 2 + -1 * 5) << y;
        fastffn::fff_route(context, input, weights.tree, TensorView(leaf, DType::i32, {1, trees}), nullptr, nullptr,
                           plan)
            .value();
        CHECK(leaf[0] == 0 && leaf[1] == 0 && leaf[2] == 1 << (depth - 1)) << leaf[2];
    }
    munmap(memory, static_cast<std::size_t>(bytes));
#endif
}

void refused(const Status& status, std::initializer_list<const char*> words) {
    CHECK(!status.ok());
    for (const char* word : words)
        CHECK(status.message().find(word) != std::string::npos) << "'" << word << "' is not in: " << status.message();
}

TEST(refusals_of_packing) {
    const float value = 0;
    auto array = [&](std::initializer_list<std::int64_t> shape) { return TensorView(&value, DType::f32, shape); };
    std::int64_t bytes = 0;
    auto pack = [&](const TensorView* w_node, const TensorView* b, const TensorView* t, const TensorView* w_out) {
        return fastffn::tree_bytes({w_node, b, t, w_out}, {}, &bytes);
    };
    const auto seven = array({7, 5}), six = array({6, 5}), stack = array({2, 7, 5}), vector = array({7});
    const auto three = array({3, 4}), out = array({7, 4}), wrong = array({2, 3});
    CHECK(pack(&seven, &vector, nullptr, &out).ok());
    CHECK(pack(&seven, nullptr, nullptr, nullptr).ok());
    refused(pack(nullptr, nullptr, nullptr, nullptr), {"pack_tree", "w_node"});
    refused(pack(&vector, nullptr, nullptr, nullptr), {"w_node", "(7,)", "[nodes, features]"});
    refused(pack(&six, nullptr, nullptr, nullptr), {"w_node", "(6, 5)", "6 nodes", "2^depth - 1"});
    refused(pack(&six, nullptr, nullptr, &out), {"w_node", "(6, 5)", "2^(depth+1) - 1"});
    refused(pack(&seven, nullptr, nullptr, &three), {"w_out", "(3, 4)", "(1, 7, d_out)", "(7, 5)"});
    refused(pack(&stack, &vector, nullptr, nullptr), {"b_node", "(7,)", "(2, 7)", "(2, 7, 5)"});
    refused(pack(&seven, nullptr, &wrong, nullptr), {"threshold", "(2, 3)", "(1, 7)"});
    const TensorView integers(&value, DType::i32, {7, 5});
    refused(pack(&integers, nullptr, nullptr, nullptr), {"w_node", "i32"});
    refused(fastffn::tree_bytes({&seven, nullptr, nullptr, nullptr}, {static_cast<Format>(9), Format::f32}, &bytes),
            {"format"});

    std::vector<float> rows(35, 1.0f);
    const TensorView w(rows.data(), DType::f32, {7, 5});
    std::vector<std::byte> packed(100000);
    auto pack_as = [&](Format format) {
        fastffn::tree_bytes({&w, nullptr, nullptr, nullptr}, {format, format}, &bytes).value();
        return fastffn::pack_tree({&w, nullptr, nullptr, nullptr}, {format, format}, packed.data(), bytes);
    };
    rows[17] = 1e6f;
    CHECK(pack_as(Format::f32).ok());
    refused(pack_as(Format::f16), {"node 3", "w_node", "f16"});
    rows[17] = NAN;
    CHECK(pack_as(Format::bf16).ok());
    refused(pack_as(Format::int8), {"node 3", "w_node", "NaN", "int8"});
    refused(fastffn::pack_tree({&w, nullptr, nullptr, nullptr}, {}, packed.data(), 3), {"out", "3 bytes"});
    refused(fastffn::pack_tree({&w, nullptr, nullptr, nullptr}, {}, rows.data(), 128 + 7 * 192), {"w_node", "share"});
}

TEST(refusals_of_calls) {
    fastffn::Context context(1);
    const auto nodes = pack_random_tree(Format::f32, 2, 2, 20, 10), leaves = pack_random_tree(Format::f32, 2, 2, 20, 0);
    std::vector<float> x(60), y(60);
    const TensorView input(x.data(), DType::f32, {3, 20}), output(y.data(), DType::f32, {3, 10});
    FffWeights weights;
    weights.tree = view(nodes);
    CHECK(fastffn::fff(context, input, weights, output).ok());
    const TensorView narrow(x.data(), DType::f32, {3, 19}), wide(y.data(), DType::f32, {3, 11});
    refused(fastffn::fff(context, narrow, weights, output), {"fff", "x", "(3, 19)", "20", "all-node", "2 trees"});
    refused(fastffn::fff(context, input, weights, wide), {"out", "(3, 11)", "(3, 10)"});
    refused(fastffn::fff(context, input, weights, TensorView(x.data(), DType::f32, {3, 10})), {"out", "x", "share"});

    std::int32_t ids[6] = {0, 1, 2, 3, 0, 4};
    TensorView leaf(ids, DType::i32, {3, 2});
    weights.leaf = &leaf;
    refused(fastffn::fff(context, input, weights, output), {"leaf", "4", "position 5", "0 to 3"});
    ids[5] = -1;
    refused(fastffn::fff(context, input, weights, output), {"leaf", "-1"});
    leaf = TensorView(ids, DType::i32, {2, 3});
    refused(fastffn::fff(context, input, weights, output), {"leaf", "(2, 3)", "(3, 2)"});
    leaf = TensorView(ids, DType::f32, {3, 2});
    refused(fastffn::fff(context, input, weights, output), {"leaf", "f32", "i32 or i64"});
    weights.leaf = nullptr;

    const auto up = pack_random(Format::f32, 8, 20, 1), down = pack_random(Format::f32, 10, 8, 2);
    weights.w_up = view(up);
    refused(fastffn::fff(context, input, weights, output), {"w_up", "all-node"});
    weights.tree = view(leaves);
    refused(fastffn::fff(context, input, weights, output), {"w_down", "missing", "leaf form"});
    weights.w_down = view(down);
    refused(fastffn::fff(context, input, weights, output), {"w_up", "(1, 8, 20)", "(8, d_ff, 20)"});
    weights = {};
    weights.tree = view(nodes);
    fastffn::FfnWeights master;
    master.w_up = view(up);
    master.w_down = view(up);
    weights.master = &master;
    refused(fastffn::fff(context, input, weights, output), {"master", "w_down", "(8, 20)"});
    const float mix = 1;
    weights.master = nullptr;
    weights.mix = &mix;
    refused(fastffn::fff(context, input, weights, output), {"mix", "master"});
    weights.mix = nullptr;

    auto damaged = nodes;
    damaged[40] ^= std::byte{1};
    weights.tree = view(damaged);
    refused(fastffn::fff(context, input, weights, output), {"damaged header"});
    weights.tree = {nodes.data(), static_cast<std::int64_t>(nodes.size()) - 1};
    refused(fastffn::fff(context, input, weights, output), {"truncated"});
    weights.tree = view(up);
    refused(fastffn::fff(context, input, weights, output), {"not a packed tree"});
    weights.tree = {nodes.data(), 5};
    refused(fastffn::fff(context, input, weights, output), {"5 bytes"});
    damaged = nodes;
    damaged.back() ^= std::byte{1};
    damaged[200] ^= std::byte{1};
    refused(fastffn::verify_tree(view(damaged)), {"checksum"});
    CHECK(fastffn::verify_tree(view(nodes)).ok());

    std::int32_t found[6];
    float margins[6];
    const TensorView good(found, DType::i32, {3, 2}), bad(found, DType::i32, {3, 1}),
        margin(margins, DType::f32, {3, 2});
    CHECK(fastffn::fff_route(context, input, view(nodes), good, &margin, nullptr).ok());
    refused(fastffn::fff_route(context, input, view(nodes), bad, nullptr, nullptr),
            {"fff_route", "leaf", "(3, 1)", "(3, 2)"});
    refused(fastffn::fff_route(context, input, view(nodes), good, &margin, &margin), {"z", "(3, 2, 3)"});
    refused(fastffn::fff_route(context, narrow, view(nodes), good, nullptr, nullptr), {"x", "(3, 19)", "20"});
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
