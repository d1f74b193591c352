// Bad arguments of moe are refused before any work, and the message says what was expected and found.
#include "check.hpp"
#include "moe_support.hpp"

namespace {
using namespace support;

const MoeShape shape{4, 2, 3, 24, 40, 24};

struct Call {
    MoeProblem problem{Format::f32, shape};
    ExpertStack other{Format::f32, Format::f32, Format::f32, 1, shape, 16, 500};
    std::vector<fastffn::MoeExperts> experts;
    fastffn::MoeWeights layer = problem.layer(&experts);
    fastffn::MoeShared shared{other.experts(), nullptr};
    std::vector<float> y_memory = std::vector<float>(4096, 0.5f), spare = std::vector<float>(4096, 1.0f);
    TensorView x = problem.x_view(), ids = problem.ids_view(), weights = problem.weights_view();
    TensorView y{y_memory.data(), DType::f32, {shape.tokens, shape.d_out}};
    TensorView gate{spare.data(), DType::f32, {1, shape.d_model}}, bias{spare.data(), DType::f32, {3, 40}};
    TensorView vectors{spare.data(), DType::f32, {1, shape.d_model}},
        mix{spare.data(), DType::f32, {1, 2, shape.d_model}};
    fastffn::SpecialExpert kinds[2] = {fastffn::SpecialExpert::copy, fastffn::SpecialExpert::constant};
    fastffn::Context context{2};

    Status run() { return fastffn::moe(context, x, ids, &weights, layer, y); }
    void check(std::initializer_list<const char*> words) {
        const Status status = run();
        CHECK(status.code() == StatusCode::invalid_argument) << status.message();
        CHECK(status.message().rfind("moe: ", 0) == 0) << status.message();
        for (const char* word : words)
            CHECK(status.message().find(word) != std::string::npos) << "no '" << word << "' in: " << status.message();
        for (float value : y_memory)
            if (value != 0.5f) {
                CHECK(false) << "y was written: " << status.message();
                break;
            }
    }
};

TEST(good_calls) {
    Call call;
    CHECK(call.run().ok());
    call.shared.gate = &call.gate;
    call.layer.shared = &call.shared;
    call.layer.shared_stacks = 1;
    call.layer.special = {call.kinds, 2, &call.vectors, &call.mix};
    call.problem.ids[0] = 4;
    CHECK(call.run().ok()) << call.run().message();
    std::int64_t experts = 0;
    CHECK(fastffn::moe_experts(call.layer, &experts).ok() && experts == 5);
}

TEST(ids) {
    for (std::int32_t id : {3, -2, 1 << 30, -2147483647}) {
        Call call;
        call.problem.ids[5] = id;
        call.check({"ids", std::to_string(id).c_str(), "row 2", "slot 1", "0 to 2"});
    }
    Call dtype;
    dtype.ids.dtype = DType::f32;
    dtype.check({"ids", "f32", "i32 or i64"});
    Call rows;
    rows.ids.shape[0] = 3;
    rows.check({"ids", "(3, 2)", "4 rows"});
    Call negative;
    negative.ids.strides[1] = -1;
    negative.check({"ids", "negative stride"});
    Call none;
    none.ids.data = nullptr;
    none.check({"ids", "no data"});
    Call absurd;
    absurd.ids = TensorView(absurd.problem.ids.data(), DType::i32, {shape.tokens, std::int64_t{1} << 60});
    absurd.ids.strides[0] = absurd.ids.strides[1] = 0;
    absurd.check({"more than any memory"});
    Call wide;
    std::int64_t wide_ids[8] = {0, 1, 2, 0, 1, (std::int64_t{1} << 32) + 1, 0, 0};
    wide.ids = TensorView(wide_ids, DType::i64, {shape.tokens, 2});
    wide.check({"ids", "4294967297"});
}

TEST(weights) {
    Call picks;
    picks.weights = TensorView(picks.spare.data(), DType::f32, {shape.tokens, 3});
    picks.check({"weights", "(4, 3)", "2 per token"});
    Call dtype;
    dtype.weights.dtype = DType::i32;
    dtype.check({"weights", "i32"});
    Call rows;
    rows.weights.shape[0] = 5;
    rows.check({"weights", "(5, 2)"});
}

TEST(x_and_out) {
    Call width;
    width.x.shape[1] = 23;
    width.check({"x", "(4, 23)", "24"});
    Call out;
    out.y.shape[1] = 20;
    out.check({"out", "(4, 20)", "(4, 24)"});
    Call shares;
    shares.y.strides[0] = 3;
    shares.check({"out", "share memory"});
    Call overlap;
    overlap.y.data = overlap.problem.x.data();
    overlap.check({"out and x"});
    Call overlap_ids;
    overlap_ids.ids.data = overlap_ids.y_memory.data();
    overlap_ids.check({"out and ids"});
    Call overlap_weights;
    overlap_weights.weights.data = overlap_weights.y_memory.data();
    overlap_weights.check({"out and weights"});
    Call overlap_experts;
    overlap_experts.y.data = overlap_experts.problem.stacks[0].down_stack.data() + 64;
    overlap_experts.check({"out and w_down"});
}

TEST(experts) {
    Call none;
    none.layer.stacks = 0;
    none.check({"0 stacks"});
    Call null;
    null.experts[0].w_up = {};
    null.check({"w_up is null"});
    Call counts;
    counts.experts[0].w_down = counts.other.experts().w_down;
    counts.check({"w_down", "(1, 24, 16)", "(3, 24, 40)"});
    Call gate;
    gate.experts[0].w_gate = gate.other.experts().w_gate;
    gate.check({"w_gate", "(1, 16, 24)", "(3, 40, 24)"});
    Call no_gate;
    no_gate.experts[0].w_gate = {};
    no_gate.check({"b_gate", "without w_gate"});
    Call clamped;
    clamped.experts[0].w_gate = {};
    clamped.experts[0].b_gate = nullptr;
    clamped.layer.activation = fastffn::Activation::swiglu_clamped;
    clamped.check({"swiglu_clamped", "gate"});
    Call activation;
    activation.layer.activation = static_cast<fastffn::Activation>(99);
    activation.check({"activation number 99"});
    Call bias;
    bias.bias.shape[0] = 2;
    bias.experts[0].b_up = &bias.bias;
    bias.check({"b_up", "(2, 40)", "(3, 40)"});
    Call bias_dtype;
    bias_dtype.bias.dtype = DType::f64;
    bias_dtype.experts[0].b_up = &bias_dtype.bias;
    bias_dtype.check({"b_up", "f64"});
    Call damaged;
    auto copy = damaged.problem.stacks[0].up_stack;
    copy[40] ^= std::byte{1};
    damaged.experts[0].w_up = view(copy);
    CHECK(damaged.run().code() == StatusCode::corrupt) << damaged.run().message();
    CHECK(damaged.run().message().find("w_up") != std::string::npos);
}

TEST(stacks_beside_each_other) {
    MoeShape narrow = shape;
    narrow.d_model = 20;
    const ExpertStack odd(Format::f32, Format::f32, Format::f32, 1, narrow, 16, 500);
    Call call;
    call.experts.push_back(odd.experts());
    call.layer.experts = call.experts.data();
    call.layer.stacks = 2;
    call.check({"w_up[1]", "features of 20"});
    Call shared;
    shared.shared.experts = odd.experts();
    shared.layer.shared = &shared.shared;
    shared.layer.shared_stacks = 1;
    shared.check({"shared w_up", "features of 20"});
    Call gate;
    gate.gate.shape[0] = 2;
    gate.shared.gate = &gate.gate;
    gate.layer.shared = &gate.shared;
    gate.layer.shared_stacks = 1;
    gate.check({"shared gate", "(2, 24)", "(1, 24)"});
}

TEST(special) {
    Call vectors;
    vectors.layer.special = {vectors.kinds, 2, nullptr, &vectors.mix};
    vectors.check({"need vectors"});
    Call mix;
    mix.mix.shape[1] = 3;
    mix.layer.special = {mix.kinds, 2, &mix.vectors, &mix.mix};
    mix.check({"mix", "(1, 3, 24)", "(1, 2, 24)"});
    Call unused;
    unused.layer.special = {unused.kinds, 1, &unused.vectors, nullptr};
    unused.check({"without a constant expert"});
    Call kind;
    kind.kinds[0] = static_cast<fastffn::SpecialExpert>(9);
    kind.layer.special = {kind.kinds, 1, nullptr, nullptr};
    kind.check({"kind number 9"});
    Call features;
    MoeShape odd = shape;
    odd.d_out = 30;
    const MoeProblem problem(Format::f32, odd);
    features.layer = problem.layer(&features.experts);
    features.layer.special = {features.kinds, 1, nullptr, nullptr};
    features.y.shape[1] = features.y.strides[0] = 30;
    features.check({"copy and constant", "30 features of 24"});
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
