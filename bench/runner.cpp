#include "runner.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <stdexcept>

#include "routing.hpp"
#include "stats.hpp"
#include "team.hpp"

namespace bench {

namespace {

using fastffn::DType;
using fastffn::PackedView;
using fastffn::TensorView;

constexpr double sample_at_least = 20e-6;  // shorter calls are timed several at a time: the clock costs about 25 ns
constexpr double warm_up_below = 50e-3;    // longer calls stream more than any cache holds

std::int64_t round_up(std::int64_t value, std::int64_t unit) { return (value + unit - 1) / unit * unit; }

// up, gate, down: what they are packed with.
fastffn::PackOptions matrix_options(const Problem& problem, int matrix) {
    fastffn::PackOptions options = problem.format.options;
    if (problem.op != Op::hybrid) return options;
    const std::size_t plus = problem.orders.find('+');
    const std::string up = problem.orders.substr(0, plus), down = problem.orders.substr(plus + 1);
    if (matrix < 2) options.push_back({"act", "int4"});
    if (matrix != 1) options.push_back({"order", matrix == 0 ? up : down});
    return options;
}

}  // namespace

void Runner::make_source(fastffn::Format format, std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
    const std::int64_t bytes = rows * columns * 4;
    if (source_.bytes() != bytes) {
        source_ = Buffer();
        source_ = Buffer(bytes);
    }
    // A trained layer's scale, so that activations see the range they see in a model.
    fill_random(source_.data(), rows * columns, DType::f32, 1.7f / std::sqrt(static_cast<float>(columns)), seed);
    source_view_ = TensorView(source_.data(), DType::f32, {rows, columns});
    if (format != fastffn::Format::sparse24) return;
    // Two of every four to zero, each of the six ways in turn.
    constexpr int zeros[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};
    auto* values = reinterpret_cast<float*>(source_.data());
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t k = 0; k < columns; k += 4)
            for (int zero : zeros[(row * 5 + k / 4 * 7) % 6])
                if (k + zero < columns) values[row * columns + k + zero] = 0;
}

void Runner::make_weights(const Problem& problem) {
    const std::string key = std::string(problem.op == Op::linear ? "matrix" : "ffn") + problem.orders +
                            std::to_string(problem.experts) + (problem.gated ? " gated " : " ") +
                            std::to_string(problem.d_model) + "x" + std::to_string(problem.d_ff) + " " +
                            problem.format.name() + (problem.cold ? " cold" : " hot");
    if (weights_.key == key) return;
    weights_ = Weights();  // give the memory back first

    // up and gate are d_ff x d_model, down is d_model x d_ff; each starts on a cache line.
    const bool stack = problem.op == Op::moe;
    const std::int64_t ff = problem.d_ff, model = problem.d_model, count = problem.experts;
    void* const none = nullptr;
    const TensorView up_shape =
        stack ? TensorView(none, DType::f32, {count, ff, model}) : TensorView(none, DType::f32, {ff, model});
    const TensorView down_shape =
        stack ? TensorView(none, DType::f32, {count, model, ff}) : TensorView(none, DType::f32, {model, ff});
    const fastffn::PackOptions packing[3] = {matrix_options(problem, 0), matrix_options(problem, 1),
                                             matrix_options(problem, 2)};
    std::int64_t sizes[3] = {};
    for (int i = 0; i < 3; ++i)
        if (i == 0 || (i == 1 ? problem.gated : problem.op != Op::linear))
            fastffn::packed_bytes(i == 2 ? down_shape : up_shape, problem.format.format, packing[i], &sizes[i]).value();
    std::int64_t offsets[3], stride = 0;
    for (int i = 0; i < 3; ++i) {
        offsets[i] = stride;
        stride += round_up(sizes[i], 64);
    }
    stride = round_up(stride, 4096);
    const std::int64_t copies =
        problem.cold ? std::max(std::int64_t{2}, (options_.cold_bytes + stride - 1) / stride) : 1;

    Weights weights;
    weights.key = key;
    weights.bytes = sizes[0] + sizes[1] + sizes[2];
    weights.memory = Buffer(stride * copies, options_.huge_pages);
    for (int i = 0; i < 3; ++i) {
        if (sizes[i] == 0) continue;
        make_source(problem.format.format, i == 2 ? problem.d_model : problem.d_ff,
                    i == 2 ? problem.d_ff : problem.d_model, static_cast<std::uint64_t>(i) + 1);
        TensorView source = source_view_;
        if (stack) {  // the same values in every expert's own memory
            source = i == 2 ? down_shape : up_shape;
            source.data = source_.data();
            source.strides[0] = 0;
        }
        fastffn::pack(source, problem.format.format, packing[i], weights.memory.data() + offsets[i], sizes[i]).value();
    }
    for (std::int64_t copy = 0; copy < copies; ++copy) {
        std::byte* base = weights.memory.data() + copy * stride;
        if (copy > 0) std::memcpy(base, weights.memory.data(), static_cast<std::size_t>(stride));
        PackedView views[3];
        for (int i = 0; i < 3; ++i) {
            if (sizes[i] > 0) views[i] = {base + offsets[i], sizes[i]};
        }
        weights.copies.push_back({views[0], views[1], views[2]});
    }
    if (problem.multiplies()) source_ = Buffer();
    weights_ = std::move(weights);
}

Prepared Runner::prepare(const Problem& problem) {
    fastffn::check_isa().value();
    problem_ = problem;
    next_copy_ = 0;
    context_ = std::make_unique<fastffn::Context>(problem.threads);
    Prepared prepared;
    trees_.reset();
    if (problem.op == Op::fff) {
        trees_ = std::make_unique<Trees>(problem, options_.huge_pages);
        prepared.weight_bytes = trees_->touched_bytes();
        prepared.stack_bytes = trees_->stack_bytes();
    } else if (problem.multiplies()) {
        make_weights(problem);
        const std::int64_t out = problem.op == Op::linear ? problem.d_ff : problem.d_model;
        const std::int64_t x_bytes = problem.tokens * problem.d_model * fastffn::dtype_bytes(problem.x_dtype);
        const std::int64_t y_bytes = problem.tokens * out * fastffn::dtype_bytes(problem.y_dtype);
        x_ = Buffer(x_bytes);
        y_ = Buffer(y_bytes);
        fill_random(x_.data(), problem.tokens * problem.d_model, problem.x_dtype, 1.7f, 7);
        x_view_ = TensorView(x_.data(), problem.x_dtype, {problem.tokens, problem.d_model});
        y_view_ = TensorView(y_.data(), problem.y_dtype, {problem.tokens, out});
        bias_ = Buffer((problem.d_ff + problem.d_model) * 4);
        fill_random(bias_.data(), problem.d_ff + problem.d_model, DType::f32, 0.1f, 8);
        bias_up_ = TensorView(bias_.data(), DType::f32, {problem.d_ff});
        bias_down_ = TensorView(bias_.data() + problem.d_ff * 4, DType::f32, {problem.d_model});
        prepared.weight_bytes = weights_.bytes;
        if (problem.op == Op::hybrid) make_gates(problem);
        if (problem.op == Op::moe) {
            make_routings(problem);
            prepared.stack_bytes = weights_.bytes;
            prepared.weight_bytes = static_cast<std::int64_t>(static_cast<double>(weights_.bytes) * active_experts_ /
                                                              static_cast<double>(problem.experts));
        }
    } else {
        make_source(problem.format.format, problem.d_ff, problem.d_model, 1);
        std::int64_t bytes = 0;
        fastffn::packed_bytes(source_view_, problem.format.format, problem.format.options, &bytes).value();
        packed_ = Buffer(bytes, options_.huge_pages);
        fastffn::pack(source_view_, problem.format.format, problem.format.options, packed_.data(), bytes).value();
        prepared.weight_bytes = bytes;
    }
    call();
    const double start = seconds_now();
    call();
    expected_ = seconds_now() - start;
    if (problem.multiplies()) prepared.kernel = context_->last_kernel();
    prepared.workspace_bytes = context_->workspace_bytes();
    return prepared;
}

void Runner::call() {
    if (problem_.op == Op::pack) {
        fastffn::pack(source_view_, problem_.format.format, problem_.format.options, packed_.data(), packed_.bytes())
            .value();
        return;
    }
    if (problem_.op == Op::unpack) {
        fastffn::unpack({packed_.data(), packed_.bytes()}, source_view_).value();
        return;
    }
    if (problem_.op == Op::moe) return call_moe();
    if (problem_.op == Op::fff) return trees_->call(*context_);
    const WeightSet& weights = weights_.copies[next_copy_];
    if (++next_copy_ == weights_.copies.size()) next_copy_ = 0;
    if (problem_.op == Op::linear) {
        fastffn::linear(*context_, x_view_, weights.up, problem_.bias ? &bias_up_ : nullptr, y_view_).value();
        return;
    }
    fastffn::FfnWeights layer;
    layer.w_up = weights.up;
    layer.w_gate = weights.gate;
    layer.w_down = weights.down;
    layer.activation = problem_.activation;
    if (problem_.bias) {
        layer.b_up = &bias_up_;
        layer.b_down = &bias_down_;
        if (problem_.gated) layer.b_gate = &bias_up_;
    }
    if (problem_.op == Op::hybrid) {
        layer.b_gate = &gates_view_;
        layer.gate_first = problem_.gate_first ? fastffn::GateFirst::always : fastffn::GateFirst::never;
    }
    fastffn::ffn(*context_, x_view_, layer, y_view_).value();
}

// Biases far beyond the products: exactly the asked share of the gates is zero, at random places.
void Runner::make_gates(const Problem& problem) {
    gates_ = Buffer(problem.d_ff * 4);
    auto* gates = reinterpret_cast<float*>(gates_.data());
    const auto zeros = static_cast<std::int64_t>(problem.zero_gates * static_cast<double>(problem.d_ff) + 0.5);
    for (std::int64_t i = 0; i < problem.d_ff; ++i) gates[i] = i < zeros ? -1e4f : 1e4f;
    std::mt19937 generator(11);
    std::shuffle(gates, gates + problem.d_ff, generator);
    gates_view_ = TensorView(gates_.data(), DType::f32, {problem.d_ff});
}

void Runner::make_routings(const Problem& problem) {
    const std::int64_t slots = problem.tokens * problem.picks;
    // Enough that few tokens go through all experts before they see one again.
    routings_ = std::clamp<std::int64_t>(8 * problem.experts / slots, 16, 256);
    next_routing_ = 0;
    ids_ = Buffer(routings_ * slots * 4);
    active_experts_ = fill_routings(problem, routings_, reinterpret_cast<std::int32_t*>(ids_.data()));
    pick_weights_ = Buffer(slots * 4);
    auto* weights = reinterpret_cast<float*>(pick_weights_.data());
    for (std::int64_t i = 0; i < slots; ++i) weights[i] = 1.0f / static_cast<float>(problem.picks);
}

void Runner::call_moe() {
    const WeightSet& weights = weights_.copies[0];
    const TensorView ids(ids_.data() + next_routing_ * problem_.tokens * problem_.picks * 4, DType::i32,
                         {problem_.tokens, problem_.picks});
    const TensorView pick_weights(pick_weights_.data(), DType::f32, {problem_.tokens, problem_.picks});
    if (++next_routing_ == routings_) next_routing_ = 0;
    fastffn::MoeExperts experts;
    experts.w_up = weights.up;
    experts.w_gate = weights.gate;
    experts.w_down = weights.down;
    TensorView up = bias_up_, down = bias_down_;
    if (problem_.bias) {  // every expert has the same
        for (TensorView* bias : {&up, &down}) {
            bias->ndim = 2;
            bias->shape[1] = bias->shape[0];
            bias->shape[0] = problem_.experts;
            bias->strides[0] = 0;
            bias->strides[1] = 1;
        }
        experts.b_up = &up;
        experts.b_down = &down;
        if (problem_.gated) experts.b_gate = &up;
    }
    fastffn::MoeWeights layer;
    layer.experts = &experts;
    layer.stacks = 1;
    layer.activation = problem_.activation;
    fastffn::moe(*context_, x_view_, ids, &pick_weights, layer, y_view_).value();
}

std::vector<double> Runner::burst(double seconds) {
    // Another contender has used the caches and its threads may still spin while ours sleep: begin with one call that
    // does not count. With cold weights it moves on to the next copy, so nothing gets warm that should not.
    if (expected_ < warm_up_below) call();
    const int calls = static_cast<int>(std::clamp(std::ceil(sample_at_least / std::max(expected_, 1e-9)), 1.0, 1e5));
    std::vector<double> samples;
    const double end = seconds_now() + seconds;
    do {
        const double start = seconds_now();
        for (int i = 0; i < calls; ++i) call();
        samples.push_back((seconds_now() - start) / calls);
    } while (seconds_now() + samples.back() * calls * 0.5 < end);
    expected_ = median(samples);
    return samples;
}

}  // namespace bench
