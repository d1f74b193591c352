#include "launch/moe.hpp"

#include <vector>

#include "launch/combine.hpp"
#include "launch/ffn.hpp"
#include "launch/gate.hpp"
#include "launch/group_tables.hpp"
#include "launch/matrix.hpp"

namespace fastffn::cuda {

namespace {

// Rows between the products at most, unless fewer tokens have more: chunks of tokens take turns. Each reads the experts once
// more, which thousands of tokens pay for.
constexpr std::int64_t rows_limit = std::int64_t{1} << 30;
constexpr std::int64_t least_chunk = 4096;

std::int64_t experts_of(const MoeCall& call) {
    std::int64_t experts = 0;
    for (int i = 0; i < call.stack_count; i++) experts += call.stacks[i].up.count;
    return experts;
}

std::int64_t shared_of(const MoeCall& call) {
    std::int64_t experts = 0;
    for (int i = 0; i < call.shared_count; i++) experts += call.stacks[call.stack_count + i].up.count;
    return experts;
}

bool is_mixed(const MoeStack& stack) { return stack.gate.payload && !shares_rows(stack.up, stack.gate); }

// Without a bias there is nothing to step over.
DeviceBias bias_of(const DeviceBias& bias, std::int64_t matrix, std::int64_t out_features) {
    if (!bias.data) return bias;
    return {
        static_cast<const unsigned char*>(bias.data) + matrix * out_features * bytes_of(static_cast<DType>(bias.dtype)),
        bias.dtype};
}

DeviceMatrix matrix_of(const DeviceMatrix& stack, std::int64_t matrix) {
    DeviceMatrix one = stack;
    if (stack.payload) one.payload = static_cast<const unsigned char*>(stack.payload) + matrix * stack.matrix_bytes;
    one.count = 1;
    return one;
}

// One shared expert as an ffn of all tokens.
FfnCall shared_call(const MoeCall& call, const MoeStack& stack, std::int64_t matrix, const DeviceRows& y) {
    FfnCall ffn = {};
    ffn.x = call.x;
    ffn.y = y;
    ffn.up = matrix_of(stack.up, matrix);
    ffn.gate = matrix_of(stack.gate, matrix);
    ffn.down = matrix_of(stack.down, matrix);
    ffn.b_up = bias_of(stack.b_up, matrix, stack.up.out_features);
    ffn.b_gate = bias_of(stack.b_gate, matrix, stack.up.out_features);
    ffn.b_down = bias_of(stack.b_down, matrix, stack.down.out_features);
    ffn.activation = call.activation;
    ffn.sub_norm = bias_of(stack.sub_norm, matrix, stack.up.out_features);
    ffn.sub_norm_eps = stack.sub_norm_eps;
    return ffn;
}

DeviceRows take_rows(Pieces& pieces, DType dtype, std::int64_t rows, std::int64_t cols) {
    const std::int64_t row_bytes = round_to(cols * bytes_of(dtype), 16);
    return {pieces.take(rows * row_bytes), static_cast<std::int32_t>(dtype), rows, cols, row_bytes / bytes_of(dtype)};
}

// The experts of one stack, for positions of all.
cudaError_t run_stack(const MoeCall& call, const MoeStack& stack, const DeviceRows& x, const TokenGroups& groups,
                      const DeviceRows& routed, Pieces& pieces, cudaStream_t stream) {
    const auto activation = static_cast<Activation>(call.activation);
    const bool launches = !pieces.counts_only();
    RowNorm norm;
    norm.gamma = stack.sub_norm.data;
    norm.dtype = static_cast<DType>(stack.sub_norm.dtype);
    norm.eps = stack.sub_norm_eps;
    norm.mean_of = stack.up.out_features;
    norm.offsets = groups.offsets;
    norm.groups = groups.groups;
    // A norm takes f32, as relu² may leave the range of f16 before it.
    const DType dtype = norm.gamma ? DType::f32 : hidden_dtype(stack.down, static_cast<DType>(call.x.dtype));
    const DeviceRows hidden = take_rows(pieces, dtype, groups.positions, stack.up.out_features);
    Input input;
    cudaError_t status = prepare(x, stack.up, pieces, stream, &input, &groups);
    if (status != cudaSuccess) return status;
    if (!is_mixed(stack)) {
        if (launches)
            status =
                multiply(input, stack.up, stack.gate, stack.b_up, stack.b_gate, activation, hidden, &groups, stream);
    } else {
        Input gate_input;
        const DeviceRows up = take_rows(pieces, DType::f32, hidden.rows, hidden.cols),
                         gate = take_rows(pieces, DType::f32, hidden.rows, hidden.cols);
        status = prepare(x, stack.gate, pieces, stream, &gate_input, &groups);
        if (status == cudaSuccess && launches)
            status = multiply(input, stack.up, {}, stack.b_up, {}, Activation::identity, up, &groups, stream);
        if (status == cudaSuccess && launches)
            status =
                multiply(gate_input, stack.gate, {}, stack.b_gate, {}, Activation::identity, gate, &groups, stream);
        if (status == cudaSuccess && launches) status = launch_gate(activation, gate, up, hidden, stream);
    }
    if (status != cudaSuccess) return status;
    Input hidden_input;
    TokenGroups by_position = groups;
    by_position.rows = nullptr;
    status = prepare(hidden, stack.down, pieces, stream, &hidden_input, &by_position, norm);
    if (status != cudaSuccess || !launches) return status;
    return multiply(hidden_input, stack.down, {}, stack.b_down, {}, Activation::identity, routed, &by_position, stream);
}

struct Special {
    SpecialKinds kinds = {};
    std::int64_t constants = 0;
};

Special special_of(const MoeCall& call) {
    Special special;
    for (int i = 0; i < call.special_count; i++) {
        const std::uint8_t kind = call.special[i];
        special.kinds.kinds[i] =
            kind < special_constant ? kind : static_cast<std::uint8_t>(special_constant + special.constants++);
    }
    return special;
}

cudaError_t run_chunk(const MoeCall& call, bool is_first, Pieces& pieces, cudaStream_t stream) {
    const bool launches = !pieces.counts_only();
    const std::int64_t tokens = call.x.rows, experts = experts_of(call), shared = shared_of(call);
    const DType slot_dtype = static_cast<DType>(call.y.dtype) == DType::bf16 && tokens > 16 ? DType::bf16 : DType::f32;
    const Special special = special_of(call);
    const SlotIds ids = {call.ids.data, static_cast<DType>(call.ids.dtype) == DType::i64, call.ids.row_stride,
                         call.ids.slot_stride};
    const GroupTables tables = take_group_tables(pieces, tokens, call.picks, experts + call.special_count);
    const int tile_tokens = usual_tile_tokens(tokens, call.picks, experts);
    std::vector<TokenGroups> groups;
    std::int64_t first = 0;
    for (int i = 0; i < call.stack_count; i++) {
        groups.push_back(take_token_groups(pieces, tables, first, call.stacks[i].up.count, tile_tokens));
        first += call.stacks[i].up.count;
    }
    const DeviceRows routed = take_rows(pieces, slot_dtype, tokens * call.picks, call.y.cols),
                     of_shared = take_rows(pieces, slot_dtype, tokens * shared, call.y.cols);
    bool has_gates = false;
    for (int i = 0; i < call.shared_count; i++)
        has_gates = has_gates || call.stacks[call.stack_count + i].gate_vectors.data;
    float* const gates = has_gates ? pieces.take<float>(tokens * shared * 4) : nullptr;
    float* const mix = pieces.take<float>(tokens * special.constants * 8);
    // Asked without weights, the workspace is that of a call with them.
    const bool weights_input = call.weights_on_input && (call.weights.data || !launches);
    const DeviceRows weighted =
        weights_input ? take_rows(pieces, DType::f32, tokens * call.picks, call.x.cols) : DeviceRows{};

    cudaError_t status = cudaSuccess;
    if (launches) {
        status = launch_group_tables(ids, tables, groups.data(), call.stack_count, stream);
        if (status == cudaSuccess && call.load) status = launch_load(tables, !is_first, call.load, stream);
        if (status == cudaSuccess && weights_input)
            status = launch_weighted_rows(call.x, call.weights, tables, weighted, stream);
    }
    // Stacks and shared experts use the same room, one after the other.
    const std::int64_t begin = pieces.used;
    std::int64_t most = begin;
    const auto take_turns = [&](auto run_one) {
        if (status != cudaSuccess) return;
        pieces.used = begin;
        status = run_one();
        most = pieces.used > most ? pieces.used : most;
    };
    for (int i = 0; i < call.stack_count && call.picks > 0; i++)
        take_turns([&] {
            TokenGroups of_stack = groups[static_cast<std::size_t>(i)];
            if (weights_input) of_stack.rows = nullptr;
            return run_stack(call, call.stacks[i], weights_input ? weighted : call.x, of_stack, routed, pieces, stream);
        });
    std::int64_t slot = 0;
    for (int i = 0; i < call.shared_count; i++) {
        const MoeStack& stack = call.stacks[call.stack_count + i];
        if (has_gates && launches && status == cudaSuccess)
            status = launch_dots(call.x, stack.gate_vectors, stack.up.count, true, gates + slot, shared, stream);
        for (std::int64_t m = 0; m < stack.up.count; m++, slot++)
            take_turns([&] {
                DeviceRows y = of_shared;
                y.rows = tokens;
                if (launches)
                    y.data = static_cast<unsigned char*>(of_shared.data) +
                             slot * tokens * of_shared.stride * bytes_of(slot_dtype);
                const FfnCall ffn = shared_call(call, stack, m, y);
                void* const room = pieces.take(workspace_bytes(ffn));
                return launches ? run(ffn, room, stream) : cudaSuccess;
            });
    }
    pieces.used = most;
    if (!launches || status != cudaSuccess) return status;
    if (special.constants)
        status = launch_dots(call.x, call.mix, 2 * special.constants, false, mix, 2 * special.constants, stream);
    if (status != cudaSuccess) return status;
    CombineArgs args = {};
    args.x = call.x;
    args.y = call.y;
    args.routed = routed;
    args.shared = of_shared;
    args.shared_count = shared;
    args.gates = gates;
    args.places = tables.places;
    args.end = tables.offsets + experts;
    args.ids = ids;
    args.weights = call.weights;
    args.picks = call.picks;
    args.experts = experts;
    args.special_count = call.special_count;
    args.weights_on_input = call.weights_on_input != 0;
    args.constants = special.constants;
    args.vectors = call.vectors;
    args.mix = mix;
    return launch_combine(args, special.kinds, stream);
}

std::int64_t chunk_tokens(const MoeCall& call) {
    std::int64_t position = 4 * call.y.cols + (call.weights_on_input ? 4 * call.x.cols : 0);
    for (int i = 0; i < call.stack_count; i++) {
        const std::int64_t hidden = 4 * call.stacks[i].up.out_features * (is_mixed(call.stacks[i]) ? 4 : 2);
        position = position < hidden + 4 * call.y.cols ? hidden + 4 * call.y.cols : position;
    }
    const std::int64_t token = position * call.picks + 4 * call.y.cols * shared_of(call) + 1;
    const std::int64_t bounded = rows_limit / token / 128 * 128, most = most_positions / (call.picks + 1);
    const std::int64_t chunk = bounded < least_chunk ? least_chunk : bounded;
    return chunk < most ? chunk : most;
}

const void* rows_behind(const void* data, std::int64_t elements, std::int64_t bytes) {
    return data ? static_cast<const unsigned char*>(data) + elements * bytes : nullptr;
}

MoeCall chunk_of(const MoeCall& call, std::int64_t token, std::int64_t count) {
    MoeCall part = call;
    for (DeviceRows* rows : {&part.x, &part.y}) {
        rows->data =
            const_cast<void*>(rows_behind(rows->data, token * rows->stride, bytes_of(static_cast<DType>(rows->dtype))));
        rows->rows = count;
    }
    part.ids.data = rows_behind(call.ids.data, token * call.ids.row_stride,
                                static_cast<DType>(call.ids.dtype) == DType::i64 ? 8 : 4);
    part.weights.data = rows_behind(call.weights.data, token * call.weights.row_stride,
                                    bytes_of(static_cast<DType>(call.weights.dtype)));
    return part;
}

}  // namespace

const char* refusal(const MoeCall& call) {
    for (int i = 0; i < call.stack_count + call.shared_count; i++) {
        const MoeStack& stack = call.stacks[i];
        for (const DeviceMatrix* w : {&stack.up, &stack.gate, &stack.down})
            if (w->payload || w != &stack.gate)
                if (const char* reason = refusal(*w)) return reason;
    }
    if (call.picks > most_picks) return "more than 4096 ids per token have no CUDA kernels";
    if (call.special_count > most_special) return "more than 128 special experts have no CUDA kernels";
    if (experts_of(call) + call.special_count > most_positions) return "has too many experts for CUDA kernels";
    return nullptr;
}

std::int64_t workspace_bytes(const MoeCall& call, std::int64_t chunk) {
    Pieces pieces{nullptr};
    run_chunk(chunk_of(call, 0, call.x.rows < chunk ? call.x.rows : chunk), true, pieces, nullptr);
    return pieces.used;
}

cudaError_t run(const MoeCall& call, std::int64_t chunk, void* workspace, cudaStream_t stream) {
    // No tokens are one chunk: its load is zeros.
    for (std::int64_t token = 0; token == 0 || token < call.x.rows; token += chunk) {
        const std::int64_t left = call.x.rows - token;
        Pieces pieces{static_cast<unsigned char*>(workspace)};
        const cudaError_t status =
            run_chunk(chunk_of(call, token, left < chunk ? left : chunk), token == 0, pieces, stream);
        if (status != cudaSuccess) return status;
    }
    return cudaSuccess;
}

std::int64_t workspace_bytes(const MoeCall& call) { return workspace_bytes(call, chunk_tokens(call)); }

cudaError_t run(const MoeCall& call, void* workspace, cudaStream_t stream) {
    return run(call, chunk_tokens(call), workspace, stream);
}

}  // namespace fastffn::cuda
