// Trees on the emulated device: routes against sums in double and beside the CPU library, sums, leaves, masters, every plan.
#include <cmath>
#include <cstring>
#include <random>

#include "fastffn/cuda.hpp"
#include "fastffn/fastffn.hpp"
#include "launch/fff.hpp"
#include "reference.hpp"
#include "routes/tree/tree.hpp"
#include "support.hpp"

using namespace fastffn;
using cuda::DeviceBias;
using cuda::DeviceMatrix;
using cuda::DeviceTree;
using support::Device;

namespace {

std::vector<float> random(std::int64_t count, std::mt19937& generator, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = normal(generator);
    return values;
}

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

struct Shape {
    std::int64_t tokens, trees, depth, d_model, d_out;  // d_out 0: the leaf form
    Format format, route_format;
    DType dtype;
    Tie tie = Tie::left;
    bool vectors = true;  // biases and thresholds
    int skew = 0;         // elements before x, and between its rows
};

std::string name(const Shape& s, FffPlan plan) {
    return std::to_string(s.tokens) + " tokens, " + std::to_string(s.trees) + "x" + std::to_string(s.depth) + ", " +
           std::to_string(s.d_model) + " -> " + std::to_string(s.d_out) + ", " + format_name(s.format) + "/" +
           format_name(s.route_format) + ", x " + dtype_name(s.dtype) + ", plan " +
           std::to_string(static_cast<int>(plan)) + ": ";
}

// Trees for both sides, and their numbers as f32.
struct Tree {
    std::int64_t trees, depth, nodes, levels, d_model, d_out;
    std::vector<float> w_node, b_node, threshold, w_out;
    std::vector<std::byte> host, converted;
    Device<std::byte> device;

    Tree(const Shape& s, std::vector<float> w, std::vector<float> b, std::vector<float> t, std::vector<float> o)
        : trees(s.trees),
          depth(s.depth),
          nodes((std::int64_t{1} << (s.depth + (s.d_out ? 1 : 0))) - 1),
          levels(s.depth + (s.d_out ? 1 : 0)),
          d_model(s.d_model),
          d_out(s.d_out),
          w_node(std::move(w)),
          b_node(std::move(b)),
          threshold(std::move(t)),
          w_out(std::move(o)),
          host(pack_host(s)),
          converted(convert(host)),
          device(converted) {
        // What the formats made of them.
        const TensorView w_view(w_node.data(), DType::f32, {trees, nodes, d_model}),
            o_view(w_out.data(), DType::f32, {trees, nodes, d_out});
        unpack_tree(view(), {&w_view, nullptr, nullptr, d_out ? &o_view : nullptr}).value();
    }
    Tree(const Shape& s, std::mt19937& generator)
        : Tree(s, random(s.trees * count(s) * s.d_model, generator, 1 / std::sqrt(static_cast<float>(s.d_model))),
               random(s.vectors ? s.trees * count(s) : 0, generator, 0.3f),
               random(s.vectors ? s.trees * count(s) : 0, generator, 0.3f),
               random(s.trees * count(s) * s.d_out, generator)) {}
    static std::int64_t count(const Shape& s) { return (std::int64_t{1} << (s.depth + (s.d_out ? 1 : 0))) - 1; }

    std::vector<std::byte> pack_host(const Shape& s) const {
        const TensorView w(w_node.data(), DType::f32, {trees, nodes, d_model}),
            b(b_node.data(), DType::f32, {trees, nodes}), t(threshold.data(), DType::f32, {trees, nodes}),
            o(w_out.data(), DType::f32, {trees, nodes, d_out});
        const TreeParts parts{&w, b_node.empty() ? nullptr : &b, threshold.empty() ? nullptr : &t,
                              d_out ? &o : nullptr};
        std::int64_t bytes = 0;
        tree_bytes(parts, {s.format, s.route_format, s.tie}, &bytes).value();
        std::vector<std::byte> packed(index(bytes));
        pack_tree(parts, {s.format, s.route_format, s.tie}, packed.data(), bytes).value();
        return packed;
    }
    static std::vector<std::byte> convert(const std::vector<std::byte>& host) {
        const PackedView packed{host.data(), static_cast<std::int64_t>(host.size())};
        std::int64_t bytes = 0, back_bytes = 0;
        device_tree_bytes(packed, &bytes).value();
        std::vector<std::byte> device(index(bytes));
        tree_for_device(packed, device.data(), bytes).value();
        const PackedView converted{device.data(), bytes};
        cpu_tree_bytes(converted, &back_bytes).value();
        std::vector<std::byte> back(index(back_bytes));
        tree_for_cpu(converted, back.data(), back_bytes).value();
        CHECK(back == host) << "the way back gives other bytes";
        return device;
    }
    PackedView view() const { return {host.data(), static_cast<std::int64_t>(host.size())}; }
    DeviceTree on_device() const {
        TreeHeader h;
        std::memcpy(&h, converted.data(), sizeof h);
        return {device.data() + sizeof h,
                d_out ? 1 : 0,
                h.tie == 1,
                h.format,
                h.route_format,
                trees,
                depth,
                d_model,
                d_out};
    }
    std::int64_t place(std::int64_t tree, std::int64_t heap) const { return tree * nodes + heap - 1; }
    double bias(std::int64_t at) const { return b_node.empty() ? 0 : static_cast<double>(b_node[index(at)]); }
    float limit(std::int64_t at) const { return threshold.empty() ? 0 : threshold[index(at)]; }
};

struct Rows {
    std::int64_t tokens, cols, stride;
    int skew;
    DType dtype;
    std::vector<std::byte> bytes;
    Device<std::byte> device;

    Rows(const Shape& s, const std::vector<float>& values)
        : tokens(s.tokens),
          cols(s.d_model),
          stride(s.d_model + s.skew),
          skew(s.skew),
          dtype(s.dtype),
          bytes(index((skew + tokens * stride - skew) * reference::bytes_of(dtype)), std::byte{0xFF}),
          device((fill(values), bytes)) {}
    Rows(const Shape& s, std::mt19937& generator) : Rows(s, random(s.tokens * s.d_model, generator)) {}
    void fill(const std::vector<float>& values) {
        for (std::int64_t t = 0; t < tokens; t++)
            for (std::int64_t k = 0; k < cols; k++) reference::store(at(t, k), dtype, values[index(t * cols + k)]);
    }
    unsigned char* at(std::int64_t token, std::int64_t k) {
        return reinterpret_cast<unsigned char*>(bytes.data()) +
               (skew + token * stride + k) * reference::bytes_of(dtype);
    }
    double value(std::int64_t token, std::int64_t k) const {
        return reference::load(reinterpret_cast<const unsigned char*>(bytes.data()) +
                                   (skew + token * stride + k) * reference::bytes_of(dtype),
                               dtype);
    }
    TensorView view() const {
        TensorView view(bytes.data() + skew * reference::bytes_of(dtype), dtype, {tokens, cols});
        view.strides[0] = stride;
        return view;
    }
    cuda::DeviceRows on_device() const {
        return {const_cast<std::byte*>(device.data()) + skew * reference::bytes_of(dtype),
                static_cast<std::int32_t>(dtype), tokens, cols, stride};
    }
};

template <class Call>
void run(const Call& call) {
    CHECK(cuda::refusal(call) == nullptr) << cuda::refusal(call);
    Device<std::byte> workspace(index(cuda::workspace_bytes(call)));  // exactly: a guard page follows
    const cudaError_t status = cuda::run(call, workspace.data(), nullptr);
    CHECK(status == cudaSuccess) << cudaGetErrorString(status);
}

struct Route {
    std::vector<std::int32_t> leaf;
    std::vector<float> margin, z;
};

Route route(const Tree& tree, const Rows& x, FffPlan plan) {
    Device<std::int32_t> leaf(index(x.tokens * tree.trees));
    Device<float> margin(leaf.size()), z(index(x.tokens * tree.trees * tree.levels));
    cuda::FffRouteCall call{};
    call.x = x.on_device();
    call.tree = tree.on_device();
    call.plan = static_cast<std::int32_t>(plan);
    call.leaf = leaf.data();
    call.margin = margin.data();
    call.z = z.data();
    run(call);
    return {leaf.host(), margin.host(), z.host()};
}

Route host_route(const Tree& tree, const Rows& x) {
    Route r{std::vector<std::int32_t>(index(x.tokens * tree.trees)), std::vector<float>(index(x.tokens * tree.trees)),
            std::vector<float>(index(x.tokens * tree.trees * tree.levels))};
    const TensorView leaf(r.leaf.data(), DType::i32, {x.tokens, tree.trees}),
        margin(r.margin.data(), DType::f32, {x.tokens, tree.trees}),
        z(r.z.data(), DType::f32, {x.tokens, tree.trees, tree.levels});
    Context context;
    fff_route(context, x.view(), tree.view(), leaf, &margin, &z).value();
    return r;
}

// z in double, and how far f32 may be from it.
reference::Value z_of(const Tree& tree, const Rows& x, std::int64_t token, std::int64_t place) {
    double sum = 0, magnitude = 0;
    for (std::int64_t k = 0; k < tree.d_model; k++) {
        const double product = x.value(token, k) * static_cast<double>(tree.w_node[index(place * tree.d_model + k)]);
        sum += product;
        magnitude += std::fabs(product);
    }
    return reference::plus({sum, magnitude * std::ldexp(static_cast<double>(tree.d_model + 8), -23)}, tree.bias(place));
}

// Every z, every decision, every margin of a route; and the CPU's leaves where no z is nearer to its threshold than two roundings.
void check_route(const Shape& s, const Tree& tree, const Rows& x, FffPlan plan, const Route& found, const Route& host,
                 bool compares = true) {
    std::int64_t compared = 0;
    for (std::int64_t slot = 0; slot < s.tokens * s.trees; slot++) {
        const std::int64_t token = slot / s.trees, which = slot % s.trees;
        const std::int64_t leaf = found.leaf[index(slot)];
        CHECK(leaf >= 0 && leaf < std::int64_t{1} << s.depth) << name(s, plan) << "leaf " << leaf;
        float margin = INFINITY;
        double widest = 0;
        for (std::int64_t level = 0; level < tree.levels; level++) {
            const std::int64_t heap = ((std::int64_t{1} << s.depth) + leaf) >> (s.depth - level);
            const std::int64_t at = tree.place(which, heap);
            const float z = found.z[index(slot * tree.levels + level)];
            const reference::Value wanted = z_of(tree, x, token, at);
            CHECK(std::fabs(static_cast<double>(z) - wanted.value) <= wanted.error)
                << name(s, plan) << "token " << token << " level " << level << ": z " << z << ", expected "
                << wanted.value;
            widest = std::fmax(widest, wanted.error);
            if (level == s.depth) continue;
            const bool right = s.tie == Tie::right ? z >= tree.limit(at) : z > tree.limit(at);
            CHECK((leaf >> (s.depth - 1 - level) & 1) == (right ? 1 : 0))
                << name(s, plan) << "token " << token << " level " << level << ": z " << z << " and " << tree.limit(at);
            margin = std::fmin(margin, std::fabs(z - tree.limit(at)));
        }
        CHECK(found.margin[index(slot)] == margin)
            << name(s, plan) << found.margin[index(slot)] << ", expected " << margin;
        if (static_cast<double>(host.margin[index(slot)]) < 2 * widest) continue;
        compared++;
        CHECK(leaf == host.leaf[index(slot)]) << name(s, plan) << "token " << token << ": not the CPU's leaf";
    }
    CHECK(!compares || compared >= s.tokens * s.trees * 3 / 4)
        << name(s, plan) << "only " << compared << " leaves were compared";
}

std::vector<std::byte> sums(const Tree& tree, const Rows& x, FffPlan plan, DType y_dtype, Activation activation,
                            const void* leaf = nullptr, bool wide = false, int y_gap = 0) {
    const std::int64_t stride = tree.d_out + y_gap;
    Device<std::byte> y(
        std::vector<std::byte>(index(x.tokens * stride * reference::bytes_of(y_dtype)), std::byte{0x5A}));
    cuda::FffCall call{};
    call.x = x.on_device();
    call.y = {y.data(), static_cast<std::int32_t>(y_dtype), x.tokens, tree.d_out, stride};
    call.tree = tree.on_device();
    call.activation = static_cast<std::int32_t>(activation);
    call.plan = static_cast<std::int32_t>(plan);
    call.leaf = leaf;
    call.leaf_dtype = static_cast<std::int32_t>(wide ? DType::i64 : DType::i32);
    call.tree_share = call.master_share = 1;
    run(call);
    return y.host();
}

// y of the all-node form from the z that the device itself routed by.
void check_sums(const Shape& s, const Tree& tree, const Rows& x, FffPlan plan, Activation activation, int y_gap) {
    const Route r = route(tree, x, plan);
    const auto y = sums(tree, x, plan, s.dtype, activation, nullptr, false, y_gap);
    const std::int64_t stride = s.d_out + y_gap, element = reference::bytes_of(s.dtype);
    for (std::int64_t token = 0; token < s.tokens; token++) {
        for (std::int64_t column = 0; column < s.d_out; column++) {
            double sum = 0, error = 0;
            for (std::int64_t which = 0; which < s.trees; which++)
                for (std::int64_t level = 0; level < tree.levels; level++) {
                    const std::int64_t slot = token * s.trees + which;
                    const std::int64_t heap = ((std::int64_t{1} << s.depth) + r.leaf[index(slot)]) >> (s.depth - level);
                    const double w = static_cast<double>(tree.w_out[index(tree.place(which, heap) * s.d_out + column)]);
                    const reference::Value h = reference::through(
                        activation, {static_cast<double>(r.z[index(slot * tree.levels + level)]), 0});
                    sum += h.value * w;
                    error += h.error * std::fabs(w) +
                             std::ldexp(std::fabs(h.value * w), -23) * static_cast<double>(s.trees * tree.levels + 2);
                }
            const double value = reference::load(
                reinterpret_cast<const unsigned char*>(y.data()) + (token * stride + column) * element, s.dtype);
            CHECK(std::fabs(value - sum) <= error + reference::rounding(s.dtype, sum))
                << name(s, plan) << "token " << token << " column " << column << ": " << value << ", expected " << sum;
        }
        for (std::int64_t i = s.d_out * element; i < stride * element; i++)
            CHECK(y[index(token * stride * element + i)] == std::byte{0x5A}) << name(s, plan) << "wrote between rows";
    }
}

// FffPlan::automatic is one of them.
constexpr FffPlan plans[] = {FffPlan::per_token, FffPlan::grouped};

}  // namespace

TEST(routes) {
    const Shape shapes[] = {
        {1, 1, 0, 5, 0, Format::f32, Format::f32, DType::f32},
        {3, 2, 0, 40, 7, Format::f32, Format::f16, DType::f32},
        {9, 1, 1, 1, 1, Format::f32, Format::f32, DType::bf16},
        {5, 1, 5, 130, 0, Format::f32, Format::f32, DType::bf16, Tie::right},
        {20, 3, 4, 70, 9, Format::int8, Format::int8, DType::f16, Tie::right, true, 3},
        {70, 2, 7, 96, 3, Format::bf16, Format::bf16, DType::bf16, Tie::left, true, 1},
        {140, 1, 8, 40, 0, Format::f16, Format::f16, DType::f16, Tie::right},
        {90, 1, 11, 33, 5, Format::bf16, Format::bf16, DType::bf16},
        {66, 1, 11, 24, 5, Format::f32, Format::bf16, DType::f32, Tie::left, false},
        {515, 1, 7, 8, 0, Format::f32, Format::f32, DType::f32},
    };
    for (const Shape& s : shapes) {
        std::mt19937 generator(static_cast<unsigned>(s.tokens));
        const Tree tree(s, generator);
        const Rows x(s, generator);
        const Route host = host_route(tree, x);
        for (FffPlan plan : plans) check_route(s, tree, x, plan, route(tree, x, plan), host);
    }
}

TEST(sums_of_the_all_node_form) {
    for (Format format : {Format::f32, Format::f16, Format::bf16, Format::int8})
        for (DType dtype : {DType::f32, DType::f16, DType::bf16}) {
            const Shape shapes[] = {{1, 1, 3, 20, 700, format, format, dtype},
                                    {6, 3, 2, 9, 45, format, Format::f32, dtype, Tie::right},
                                    {70, 1, 7, 24, 24, format, Format::bf16, dtype, Tie::left, true, 8}};
            for (const Shape& s : shapes) {
                // The types of x and y make no difference to walks of many tokens but on tensor cores.
                if (s.tokens == 6 && dtype != DType::f32) continue;
                if (s.tokens == 70 && dtype != DType::bf16) continue;
                std::mt19937 generator(static_cast<unsigned>(s.tokens) + static_cast<unsigned>(format));
                const Tree tree(s, generator);
                const Rows x(s, generator);
                const Activation activation = s.tokens == 6 ? Activation::relu2 : Activation::gelu;
                for (FffPlan plan : plans) check_sums(s, tree, x, plan, activation, s.tokens == 70 ? 0 : 3);
            }
        }
    // Wide rows and more than a thousand tokens: up to 2 KiB of columns a warp.
    const Shape s = {1025, 1, 1, 4, 600, Format::f32, Format::f32, DType::f32};
    std::mt19937 generator(3);
    check_sums(s, Tree(s, generator), Rows(s, generator), FffPlan::per_token, Activation::relu, 0);
}

TEST(a_token_has_the_same_bits_alone_and_among_others) {
    // 1: a block per token. 520: a warp. Sorted, but not by tensor cores: a warp too.
    for (Format format : {Format::f32, Format::int8}) {
        const Shape s = {520, 1, 9, 72, 40, format, format, DType::f32};
        std::mt19937 generator(8);
        const Tree tree(s, generator);
        const Rows x(s, generator);
        const auto all = sums(tree, x, FffPlan::per_token, DType::f32, Activation::silu);
        CHECK(all == sums(tree, x, FffPlan::grouped, DType::f32, Activation::silu)) << "grouped differs";
        const Route routed = route(tree, x, FffPlan::per_token), grouped = route(tree, x, FffPlan::grouped);
        CHECK(routed.leaf == grouped.leaf && routed.z == grouped.z && routed.margin == grouped.margin);
        for (std::int64_t token : {std::int64_t{0}, std::int64_t{311}, std::int64_t{519}}) {
            Shape one = s;
            one.tokens = 1;
            const float* const row = reinterpret_cast<const float*>(x.bytes.data()) + token * s.d_model;
            const Rows alone(one, std::vector<float>(row, row + s.d_model));
            const auto y = sums(tree, alone, FffPlan::automatic, DType::f32, Activation::silu);
            CHECK(std::memcmp(y.data(), all.data() + token * s.d_out * 4, y.size()) == 0) << "token " << token;
        }
    }
}

TEST(more_tokens_than_a_warp_takes_one_by_one) {
    // From 4096 walkers on a warp has several neighbours; with these rows the sum too.
    const Shape s = {4103, 1, 1, 4, 4, Format::f32, Format::f32, DType::f32};
    std::mt19937 generator(5);
    const Tree tree(s, generator);
    const Rows x(s, generator);
    check_route(s, tree, x, FffPlan::automatic, route(tree, x, FffPlan::automatic), host_route(tree, x));
    check_sums(s, tree, x, FffPlan::per_token, Activation::relu, 0);
}

TEST(all_tokens_on_one_path_and_on_tensor_cores) {
    // One group of many tiles, and every other subtree empty.
    Shape s = {200, 1, 7, 32, 16, Format::bf16, Format::bf16, DType::bf16};
    std::mt19937 generator(2);
    const Tree tree(s, generator);
    std::vector<float> values = random(s.d_model, generator);
    for (std::int64_t t = 1; t < s.tokens; t++) values.insert(values.end(), values.begin(), values.begin() + s.d_model);
    const Rows x(s, values);
    check_route(s, tree, x, FffPlan::grouped, route(tree, x, FffPlan::grouped), host_route(tree, x));
    check_sums(s, tree, x, FffPlan::grouped, Activation::gelu_tanh, 0);
}

TEST(ties_and_nan) {
    // Small integers: every z is exact in every kernel.
    for (Tie tie : {Tie::left, Tie::right})
        for (Format format : {Format::f32, Format::bf16, Format::f16, Format::int8})
            for (FffPlan plan : plans) {
                const DType dtype = format == Format::f16    ? DType::f16
                                    : format == Format::bf16 ? DType::bf16
                                                             : DType::f32;
                const Shape s = {18, 1, 3, 16, 4, format, format, dtype, tie};
                std::mt19937 generator(4);
                const std::int64_t nodes = 15;
                std::vector<float> w(index(nodes * s.d_model)), b(index(nodes), 2), t(index(nodes), 3),
                    o(index(nodes * 4), 1);
                // int8 keeps integers where the largest of a row is 127.
                for (std::size_t i = 0; i < w.size(); i++)
                    w[i] = i % 16 == 0 ? 127.0f : static_cast<float>(static_cast<int>(generator() % 3) - 1);
                const Tree tree(s, w, b, t, o);
                std::vector<float> values(index(s.tokens * s.d_model));
                for (std::size_t i = 0; i < values.size(); i++)
                    values[i] = i % 16 == 0 ? 0.0f : static_cast<float>(static_cast<int>(generator() % 3) - 1);
                values[16 + 5] = NAN;
                values[32 + 5] = INFINITY;
                const Rows x(s, values);
                const Route found = route(tree, x, plan), host = host_route(tree, x);
                std::int64_t ties = 0;
                for (std::size_t i = 0; i < found.z.size(); i++) {
                    CHECK(found.z[i] == host.z[i] || (std::isnan(found.z[i]) && std::isnan(host.z[i])))
                        << name(s, plan) << "z " << found.z[i] << ", the CPU has " << host.z[i];
                    ties += found.z[i] == 3.0f;
                }
                CHECK(ties > 4) << ties << " ties";
                CHECK(found.leaf == host.leaf) << name(s, plan) << "not the CPU's leaves";
                CHECK(found.leaf[1] == 0 && std::isnan(found.margin[1]) && !std::isnan(found.margin[0]));
                const auto y = sums(tree, x, plan, s.dtype, Activation::identity);
                for (std::int64_t token = 0; token < s.tokens; token++) {
                    const double value = reference::load(
                        reinterpret_cast<const unsigned char*>(y.data()) + token * 4 * reference::bytes_of(s.dtype),
                        s.dtype);
                    if (token != 2) CHECK(std::isnan(value) == (token == 1)) << name(s, plan) << "token " << token;
                }
            }
}

TEST(forced_leaves) {
    for (FffPlan plan : plans)
        for (bool wide : {false, true}) {
            const Shape s = {30, 2, 6, 24, 8, Format::f32, Format::bf16, DType::bf16};
            std::mt19937 generator(6);
            const Tree tree(s, generator);
            const Rows x(s, generator);
            std::vector<std::int64_t> wide_leaves(index(s.tokens * s.trees));
            for (auto& leaf : wide_leaves) leaf = static_cast<std::int64_t>(generator() % 64);
            const std::vector<std::int32_t> leaves(wide_leaves.begin(), wide_leaves.end());
            FffWeights weights;
            weights.tree = tree.view();
            weights.activation = Activation::silu;
            const TensorView forced(leaves.data(), DType::i32, {s.tokens, s.trees});
            weights.leaf = &forced;
            std::vector<std::byte> host(index(s.tokens * s.d_out * 2));
            Context context;
            fff(context, x.view(), weights, TensorView(host.data(), DType::bf16, {s.tokens, s.d_out})).value();
            auto lost = wide_leaves;
            lost[7] = 64;   // token 3
            lost[40] = -1;  // token 20
            const Device<std::int64_t> device_wide(lost);
            const Device<std::int32_t> device_narrow(std::vector<std::int32_t>(lost.begin(), lost.end()));
            const auto y = sums(tree, x, plan, DType::bf16, Activation::silu,
                                wide ? static_cast<const void*>(device_wide.data()) : device_narrow.data(), wide);
            for (std::int64_t i = 0; i < s.tokens * s.d_out; i++) {
                const double a =
                    reference::load(reinterpret_cast<const unsigned char*>(host.data()) + 2 * i, DType::bf16);
                const double b = reference::load(reinterpret_cast<const unsigned char*>(y.data()) + 2 * i, DType::bf16);
                const std::int64_t token = i / s.d_out;
                if (token == 3 || token == 20) CHECK(std::isnan(b)) << "token " << token << ": " << b;
                else
                    CHECK(std::fabs(a - b) <= std::ldexp(std::fabs(a), -7) + 1e-5)
                        << name(s, plan) << a << " and " << b;
            }
        }
}

TEST(x_that_no_shared_memory_holds) {
    const Shape s = {3, 1, 2, 50000, 4, Format::f32, Format::int8, DType::f32};
    std::mt19937 generator(9);
    const Tree tree(s, generator);
    const Rows x(s, generator);
    const Route found = route(tree, x, FffPlan::automatic);
    // Margins of a few units in 50000 are within what f32 sums may be off: only the device's own decisions are checked.
    check_route(s, tree, x, FffPlan::automatic, found, host_route(tree, x), false);
    const Route grouped = route(tree, x, FffPlan::grouped);
    CHECK(found.z == grouped.z);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
