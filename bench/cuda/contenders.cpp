#include "contenders.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "arrays.hpp"
#include "routing.hpp"

namespace bench::cuda {

namespace {

using fastffn::DType;
using fastffn::TensorView;

Element numbers_of(const Packing& format) {
    switch (format.format) {
        case fastffn::Format::int8:
        case fastffn::Format::ternary: return Element::i8;
        case fastffn::Format::int4:
            for (const fastffn::PackOption& option : format.options)
                if (option.name == "act" && option.value.text() == "bf16") return Element::bf16;
            return Element::i8;
        case fastffn::Format::sparse24: return format.dense() == fastffn::Format::int8 ? Element::i8 : Element::bf16;
        default: return Element::bf16;
    }
}

// One of our calls, with workspace of its own: none is taken from the device's pool while it is timed.
void set_call(const Session& session, Contender* contender,
              std::function<void(const fastffn::CudaStream& stream, int variant)> call) {
    std::int64_t bytes = 0;
    fastffn::CudaStream query{session.device(), session.stream()};
    query.query = &bytes;
    call(query, 0);
    auto workspace = std::make_shared<DeviceBuffer>(session, bytes);
    contender->memory_bytes = static_cast<double>(bytes);
    contender->call = [=, device = session.device()](int variant, void* stream) {
        call({device, stream, workspace->data(), workspace->bytes()}, variant);
    };
}

Contender make_linear(const Session& session, const Case& row) {
    auto weights = std::make_shared<Weights>(session, row, 1, row.out, row.in, 1);
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.out);
    Contender contender;
    contender.variants = variants_for(session, row, weights->bytes());
    weights->repeat(session, contender.variants);
    contender.bytes = static_cast<double>(weights->bytes()) + rows->bytes();
    contender.operations = 2.0 * static_cast<double>(row.tokens * row.in * row.out);
    set_call(session, &contender, [=](const fastffn::CudaStream& stream, int variant) {
        fastffn::cuda_linear(stream, rows->x_view(), weights->packed(variant), nullptr, rows->y_view()).value();
    });
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context& context, const TensorView& x, const TensorView& y) {
            fastffn::linear(context, x, weights->on_cpu(), nullptr, y).value();
        });
    };
    return contender;
}

Contender make_ffn(const Session& session, const Case& row) {
    auto up = std::make_shared<Weights>(session, row, 1, row.hidden, row.in, 1);
    auto down = std::make_shared<Weights>(session, row, 1, row.in, row.hidden, 2);
    std::shared_ptr<Weights> gate;
    if (row.gated) gate = std::make_shared<Weights>(session, row, 1, row.hidden, row.in, 3);
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.in);
    const std::int64_t bytes = up->bytes() + down->bytes() + (gate ? gate->bytes() : 0);
    Contender contender;
    contender.variants = variants_for(session, row, bytes);
    for (Weights* weights : {up.get(), down.get(), gate.get()})
        if (weights) weights->repeat(session, contender.variants);
    contender.bytes = static_cast<double>(bytes) + rows->bytes();
    const std::int64_t matrix = row.rank ? row.rank * (row.in + row.hidden) : row.in * row.hidden;
    contender.operations = 2.0 * static_cast<double>(row.tokens * matrix * (gate ? 3 : 2));
    const fastffn::Activation activation = row.bitnet ? fastffn::Activation::relu2
                                           : gate     ? fastffn::Activation::silu
                                                      : fastffn::Activation::gelu;
    // The sub-norm's γ: ones.
    auto ones = std::make_shared<std::vector<float>>(row.bitnet ? row.hidden : 0, 1.0f);
    auto device_ones = std::make_shared<DeviceBuffer>(session, static_cast<std::int64_t>(ones->size() * 4));
    if (row.bitnet) session.copy(device_ones->data(), ones->data(), device_ones->bytes());
    const std::int64_t hidden = row.hidden;
    const bool bitnet = row.bitnet;
    const fastffn::GateFirst gate_first = row.gate_first;
    set_call(session, &contender, [=](const fastffn::CudaStream& stream, int variant) {
        fastffn::FfnWeights weights;
        weights.w_up = up->packed(variant);
        weights.w_down = down->packed(variant);
        if (gate) weights.w_gate = gate->packed(variant);
        weights.activation = activation;
        weights.gate_first = gate_first;
        const TensorView sub_norm(device_ones->data(), DType::f32, {hidden});
        if (bitnet) weights.sub_norm = &sub_norm;
        fastffn::cuda_ffn(stream, rows->x_view(), weights, rows->y_view()).value();
    });
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context& context, const TensorView& x, const TensorView& y) {
            fastffn::FfnWeights weights;
            weights.w_up = up->on_cpu();
            weights.w_down = down->on_cpu();
            if (gate) weights.w_gate = gate->on_cpu();
            weights.activation = activation;
            weights.gate_first = fastffn::GateFirst::never;
            const TensorView sub_norm(ones->data(), DType::f32, {hidden});
            if (bitnet) weights.sub_norm = &sub_norm;
            fastffn::ffn(context, x, weights, y).value();
        });
    };
    return contender;
}

// Ids of some calls, drawn anew for each: a call finds its experts wherever they lie in the stacks.
Contender make_moe(const Session& session, const Case& row) {
    const int variants = !row.is_decode() ? 1 : session.facts().emulated ? 2 : 32;
    Problem problem;
    problem.op = Op::moe;
    problem.tokens = row.tokens;
    problem.experts = row.experts;
    problem.picks = row.picks;
    const std::int64_t picks = row.tokens * row.picks;
    auto ids = std::make_shared<Buffer>(variants * picks * 4);
    const double active = fill_routings(problem, variants, reinterpret_cast<std::int32_t*>(ids->data()));
    auto up = std::make_shared<Weights>(session, row, row.experts, row.hidden, row.in, 1);
    auto gate = std::make_shared<Weights>(session, row, row.experts, row.hidden, row.in, 3);
    auto down = std::make_shared<Weights>(session, row, row.experts, row.in, row.hidden, 2);
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.in);
    auto device_ids = std::make_shared<DeviceBuffer>(session, ids->bytes());
    auto pick_weights = std::make_shared<Buffer>(picks * 4);
    auto device_weights = std::make_shared<DeviceBuffer>(session, pick_weights->bytes());
    fill_random(pick_weights->data(), picks, DType::f32, 1.0f, 5);
    session.copy(device_ids->data(), ids->data(), ids->bytes());
    session.copy(device_weights->data(), pick_weights->data(), pick_weights->bytes());
    const auto layer_of = [](fastffn::MoeExperts* experts) {
        fastffn::MoeWeights layer;
        layer.experts = experts;
        layer.stacks = 1;
        layer.activation = fastffn::Activation::silu;
        return layer;
    };
    Contender contender;
    contender.variants = variants;
    contender.bytes =
        static_cast<double>(up->bytes() + gate->bytes() + down->bytes()) * active / static_cast<double>(row.experts) +
        rows->bytes();
    contender.operations = 2.0 * static_cast<double>(3 * picks * row.in * row.hidden);
    const std::int64_t tokens = row.tokens, slots = row.picks;
    set_call(session, &contender, [=](const fastffn::CudaStream& stream, int variant) {
        const TensorView ids_view(static_cast<std::int32_t*>(device_ids->data()) + variant * picks, DType::i32,
                                  {tokens, slots}),
            weights_view(device_weights->data(), DType::f32, {tokens, slots});
        fastffn::MoeExperts experts;
        experts.w_up = up->packed(0);
        experts.w_gate = gate->packed(0);
        experts.w_down = down->packed(0);
        fastffn::cuda_moe(stream, rows->x_view(), ids_view, &weights_view, layer_of(&experts), rows->y_view()).value();
    });
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context& context, const TensorView& x, const TensorView& y) {
            // Of the last call in a recording.
            const auto* own_ids = reinterpret_cast<const std::int32_t*>(ids->data()) + (variants - 1) * picks;
            const auto* own_weights = reinterpret_cast<const float*>(pick_weights->data());
            std::vector<std::int32_t> two_ids(own_ids, own_ids + slots);
            std::vector<float> two_weights(own_weights, own_weights + slots);
            two_ids.insert(two_ids.end(), own_ids + picks - slots, own_ids + picks);
            two_weights.insert(two_weights.end(), own_weights + picks - slots, own_weights + picks);
            fastffn::MoeExperts experts;
            experts.w_up = up->on_cpu();
            experts.w_gate = gate->on_cpu();
            experts.w_down = down->on_cpu();
            const TensorView ids_view(two_ids.data(), DType::i32, {2, slots}),
                weights_view(two_weights.data(), DType::f32, {2, slots});
            fastffn::moe(context, x, ids_view, &weights_view, layer_of(&experts), y).value();
        });
    };
    return contender;
}

// An all-node tree; random rows, so that tokens spread evenly over its leaves.
Contender make_fff(const Session& session, const Case& row) {
    const std::int64_t nodes = (std::int64_t{2} << row.depth) - 1;
    auto tree = std::make_shared<Buffer>();
    {
        const Buffer w_in = plain_weights(row, row.dtype, 1, nodes, row.in, 1),
                     w_out = plain_weights(row, row.dtype, 1, nodes, row.in, 2);
        const TensorView in_view(w_in.data(), row.dtype, {nodes, row.in}),
            out_view(w_out.data(), row.dtype, {nodes, row.in});
        const fastffn::TreeParts parts{&in_view, nullptr, nullptr, &out_view};
        fastffn::TreeOptions options;
        options.format = options.route_format = row.format.format;
        std::int64_t bytes = 0;
        fastffn::tree_bytes(parts, options, &bytes).value();
        *tree = Buffer(bytes);
        fastffn::pack_tree(parts, options, tree->data(), bytes).value();
    }
    std::int64_t bytes = 0;
    fastffn::device_tree_bytes(cpu_view(*tree), &bytes).value();
    Buffer packed(bytes);
    fastffn::tree_for_device(cpu_view(*tree), packed.data(), bytes).value();
    auto device_tree = std::make_shared<DeviceBuffer>(session, bytes);
    session.copy(device_tree->data(), packed.data(), bytes);
    auto header = std::make_shared<fastffn::DeviceTreeHeader>();
    std::memcpy(header->bytes, packed.data(), sizeof header->bytes);
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.in);
    Contender contender;
    // Of many tokens: nearly all rows are used by some.
    contender.bytes = static_cast<double>(bytes) + rows->bytes();
    contender.operations = 4.0 * static_cast<double>(row.tokens * (row.depth + 1) * row.in);
    set_call(session, &contender, [=](const fastffn::CudaStream& stream, int) {
        fastffn::FffWeights weights;
        weights.tree = {device_tree->data(), bytes, header->as_header()};
        fastffn::cuda_fff(stream, rows->x_view(), weights, rows->y_view()).value();
    });
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context& context, const TensorView& x, const TensorView& y) {
            fastffn::FffWeights weights;
            weights.tree = cpu_view(*tree);
            fastffn::fff(context, x, weights, y).value();
        });
    };
    return contender;
}

Contender make_hadamard(const Session& session, const Case& row) {
    auto rows = std::make_shared<Rows>(session, row.dtype, row.tokens, row.in, row.in);
    const fastffn::HadamardOptions options{row.hadamard, 0, false};
    Contender contender;
    contender.bytes = rows->bytes();
    set_call(session, &contender, [=](const fastffn::CudaStream& stream, int) {
        fastffn::cuda_hadamard(stream, rows->x_view(), options, rows->y_view()).value();
    });
    contender.error = [=, &session] {
        return rows->error(session, [&](fastffn::Context& context, const TensorView& x, const TensorView& y) {
            fastffn::hadamard(context, x, options, y).value();
        });
    };
    return contender;
}

}  // namespace

Contender make_ours(const Session& session, const Case& row) {
    Contender contender;
    if (row.kind == Kind::linear) contender = make_linear(session, row);
    else if (row.kind == Kind::ffn) contender = make_ffn(session, row);
    else if (row.kind == Kind::moe) contender = make_moe(session, row);
    else if (row.kind == Kind::fff) contender = make_fff(session, row);
    else contender = make_hadamard(session, row);
    contender.name = "fastffn " + row.format.name();
    contender.numbers = numbers_of(row.format);
    return contender;
}

}  // namespace bench::cuda
