#include "trees.hpp"

#include <algorithm>
#include <cmath>

namespace bench {

namespace {

using fastffn::DType;
using fastffn::TensorView;

// Enough that no cache remembers the paths of a call when they come again.
constexpr std::int64_t fresh_tokens = 4096;

Buffer random_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
    Buffer buffer(rows * cols * 4);
    fill_random(buffer.data(), rows * cols, DType::f32, 1.7f / std::sqrt(static_cast<float>(cols)), seed);
    return buffer;
}

Buffer pack_stack(const Problem& problem, std::int64_t count, std::int64_t out, std::int64_t in, bool huge_pages) {
    const Buffer plain = random_rows(count * out, in, 3);
    const TensorView w(plain.data(), DType::f32, {count, out, in});
    std::int64_t bytes = 0;
    fastffn::packed_bytes(w, problem.format.format, &bytes).value();
    Buffer packed(bytes, huge_pages);
    fastffn::pack(w, problem.format.format, packed.data(), bytes).value();
    return packed;
}

}  // namespace

Trees::Trees(const Problem& problem, bool huge_pages) : problem_(problem) {
    const std::int64_t depth = problem.depth(), leaf = problem.leaf, d_model = problem.d_model;
    const std::int64_t nodes = (std::int64_t{1} << (leaf ? depth : depth + 1)) - 1;
    const Buffer rows = random_rows(std::max<std::int64_t>(nodes, 1), d_model, 1);
    const Buffer outputs = random_rows(leaf ? 1 : nodes, d_model, 2);
    const TensorView w_node(rows.data(), DType::f32, {nodes, d_model}),
        w_out(outputs.data(), DType::f32, {nodes, d_model});
    const fastffn::TreeParts parts{&w_node, nullptr, nullptr, leaf ? nullptr : &w_out};
    // The rows of a leaf form's nodes are few: they stay f32.
    const fastffn::TreeOptions options{problem.format.format, leaf ? fastffn::Format::f32 : problem.format.format};
    std::int64_t bytes = 0;
    fastffn::tree_bytes(parts, options, &bytes).value();
    tree_ = Buffer(bytes, huge_pages);
    fastffn::pack_tree(parts, options, tree_.data(), bytes).value();
    if (leaf) {
        up_ = pack_stack(problem, std::int64_t{1} << depth, leaf, d_model, huge_pages);
        down_ = pack_stack(problem, std::int64_t{1} << depth, d_model, leaf, huge_pages);
    }
    calls_ = std::clamp<std::int64_t>(fresh_tokens / problem.tokens, 1, fresh_tokens);
    x_ = Buffer(calls_ * problem.tokens * d_model * fastffn::dtype_bytes(problem.x_dtype));
    fill_random(x_.data(), calls_ * problem.tokens * d_model, problem.x_dtype, 1.7f, 7);
    y_ = Buffer(problem.tokens * d_model * fastffn::dtype_bytes(problem.y_dtype));
}

std::int64_t Trees::touched_bytes() const {
    const std::int64_t depth = problem_.depth(), levels = problem_.leaf ? depth : depth + 1;
    auto touched = [&](std::int64_t level) {
        const double places = std::ldexp(1.0, static_cast<int>(level));
        return places * (1 - std::pow(1 - 1 / places, static_cast<double>(problem_.tokens)));
    };
    const double nodes = std::ldexp(1.0, static_cast<int>(levels)) - 1;
    double bytes = 0;
    for (std::int64_t level = 0; level < levels; ++level)
        bytes += touched(level) * static_cast<double>(tree_.bytes()) / nodes;
    const double leaves = std::ldexp(1.0, static_cast<int>(depth));
    return static_cast<std::int64_t>(bytes +
                                     touched(depth) * static_cast<double>(up_.bytes() + down_.bytes()) / leaves);
}

void Trees::call(fastffn::Context& context) {
    const std::int64_t row_bytes = problem_.d_model * fastffn::dtype_bytes(problem_.x_dtype);
    const TensorView x(x_.data() + next_ * problem_.tokens * row_bytes, problem_.x_dtype,
                       {problem_.tokens, problem_.d_model});
    const TensorView y(y_.data(), problem_.y_dtype, {problem_.tokens, problem_.d_model});
    if (++next_ == calls_) next_ = 0;
    fastffn::FffWeights weights;
    weights.tree = {tree_.data(), tree_.bytes()};
    if (problem_.leaf) {
        weights.w_up = {up_.data(), up_.bytes()};
        weights.w_down = {down_.data(), down_.bytes()};
    }
    weights.activation = problem_.activation;
    fastffn::fff(context, x, weights, y).value();
}

}  // namespace bench
