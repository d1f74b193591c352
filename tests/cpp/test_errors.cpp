// Bad input is refused before any work, and the message names the operation, the argument, what was expected and found.
#include "check.hpp"
#include "support.hpp"

namespace {
using namespace support;

constexpr std::int64_t tokens = 4, d_model = 24, d_ff = 40;

struct Call {
    std::vector<std::byte> up = pack_random(Format::f32, d_ff, d_model, 1),
                           down = pack_random(Format::f32, d_model, d_ff, 2);
    std::vector<std::byte> gate = pack_random(Format::f32, d_ff, d_model, 3);
    std::vector<float> x_memory = std::vector<float>(4096, 1.0f), y_memory = std::vector<float>(4096, 0.5f);
    std::vector<float> bias_memory = std::vector<float>(64, 1.0f);
    TensorView x{x_memory.data(), DType::f32, {tokens, d_model}}, y{y_memory.data(), DType::f32, {tokens, d_model}};
    TensorView b_up{bias_memory.data(), DType::f32, {d_ff}}, b_gate{bias_memory.data(), DType::f32, {d_ff}};
    TensorView b_down{bias_memory.data(), DType::f32, {d_model}};
    fastffn::FfnWeights weights;
    fastffn::Context context{2};
    Call() {
        weights.w_up = view(up);
        weights.w_down = view(down);
        weights.w_gate = view(gate);
    }
    Status run() { return fastffn::ffn(context, x, weights, y); }
    bool untouched() const {
        for (float value : y_memory)
            if (value != 0.5f) return false;
        return true;
    }
};

void check_refused(Call& call, std::initializer_list<const char*> words) {
    const Status status = call.run();
    CHECK(status.code() == StatusCode::invalid_argument) << status.message();
    for (const char* word : words)
        CHECK(status.message().find(word) != std::string::npos) << "no '" << word << "' in: " << status.message();
    CHECK(status.message().rfind("ffn: ", 0) == 0) << status.message();
    CHECK(call.untouched()) << "y was written";
    bool threw = false;
    try {
        status.value();
    } catch (const std::runtime_error& error) {
        threw = error.what() == status.message();
    }
    CHECK(threw);
}

TEST(good_call) {
    Call call;
    call.weights.b_up = &call.b_up;
    call.weights.b_gate = &call.b_gate;
    call.weights.b_down = &call.b_down;
    const Status status = call.run();
    CHECK(status.ok() && status.message().empty()) << status.message();
    status.value();
    CHECK(!call.untouched());
}

TEST(shapes) {
    {
        Call call;
        call.x = TensorView(call.x_memory.data(), DType::f32, {tokens, d_model + 1});
        check_refused(call, {"x", "(4, 25)", "24"});
    }
    {
        Call call;
        call.y = TensorView(call.y_memory.data(), DType::f32, {tokens, d_model + 1});
        check_refused(call, {"out", "(4, 25)", "(4, 24)"});
    }
    {
        Call call;
        call.y = TensorView(call.y_memory.data(), DType::f32, {tokens + 1, d_model});
        check_refused(call, {"out", "(5, 24)", "(4, 24)"});
    }
    {
        Call call;
        call.y = TensorView(call.y_memory.data(), DType::f32, {1, tokens, d_model});
        check_refused(call, {"out", "(1, 4, 24)", "(4, 24)"});
    }
    {
        Call call;
        call.weights.w_down = view(call.up);
        check_refused(call, {"w_down", "(40, 24)", "40"});
    }
    {
        Call call;
        call.weights.w_gate = view(call.down);
        check_refused(call, {"w_gate", "(24, 40)", "(40, 24)"});
    }
    {
        Call call;
        call.x.ndim = 0;
        check_refused(call, {"x"});
    }
    {
        Call call;
        call.b_up = TensorView(call.bias_memory.data(), DType::f32, {d_ff - 1});
        call.weights.b_up = &call.b_up;
        check_refused(call, {"b_up", "(39,)", "(40,)"});
    }
    {
        Call call;
        call.b_down = TensorView(call.bias_memory.data(), DType::f32, {1, d_model});
        call.weights.b_down = &call.b_down;
        check_refused(call, {"b_down", "(1, 24)", "(24,)"});
    }
    {
        Call call;
        call.b_gate = TensorView(call.bias_memory.data(), DType::f32, {1});
        call.weights.b_gate = &call.b_gate;
        check_refused(call, {"b_gate", "(1,)", "(40,)"});
    }
    {
        Call call;
        call.weights.w_gate = {};
        call.weights.b_gate = &call.b_gate;
        check_refused(call, {"b_gate", "w_gate"});
    }
}

TEST(dtypes) {
    for (DType dtype : {DType::f64, DType::i32, DType::u8, DType::i8, DType::i64}) {
        Call call;
        call.x.dtype = dtype;
        check_refused(call, {"x", fastffn::dtype_name(dtype), "f32"});
        Call other;
        other.y.dtype = dtype;
        check_refused(other, {"out", fastffn::dtype_name(dtype), "f32"});
        Call third;
        third.b_up.dtype = dtype;
        third.weights.b_up = &third.b_up;
        check_refused(third, {"b_up", fastffn::dtype_name(dtype), "f32"});
    }
}

TEST(strides) {
    {
        Call call;
        call.x.strides[1] = 2;
        check_refused(call, {"x", "stride 2", "last dimension"});
    }
    {
        Call call;
        call.x = TensorView(call.x_memory.data() + 3 * d_model, DType::f32, {tokens, d_model});
        call.x.strides[0] = -d_model;
        check_refused(call, {"x", "negative"});
    }
    {
        Call call;
        call.y.strides[1] = 3;
        check_refused(call, {"out", "stride 3"});
    }
    {
        Call call;
        call.y.strides[0] = 0;
        check_refused(call, {"out", "share"});
    }
    {
        Call call;
        call.y.strides[0] = d_model - 1;  // rows that overlap by one element
        check_refused(call, {"out", "share"});
    }
    {
        Call call;  // the strides of dimensions of one element mean nothing
        call.x = TensorView(call.x_memory.data(), DType::f32, {1, tokens, d_model});
        call.y = TensorView(call.y_memory.data(), DType::f32, {1, tokens, d_model});
        call.x.strides[0] = -77;
        call.y.strides[0] = 0;
        const Status status = call.run();
        CHECK(status.ok()) << status.message();
    }
    {
        Call call;  // one row for every token
        call.x.strides[0] = 0;
        const Status status = call.run();
        CHECK(status.ok()) << status.message();
    }
}

TEST(overlap) {
    {
        Call call;
        call.y = call.x;
        const Status status = call.run();
        CHECK(status.code() == StatusCode::invalid_argument &&
              status.message().find("share a range") != std::string::npos)
            << status.message();
    }
    {
        Call call;
        call.y = TensorView(call.x_memory.data() + tokens * d_model - 1, DType::f32, {tokens, d_model});
        CHECK(!call.run().ok());
        call.y = TensorView(call.x_memory.data() + tokens * d_model, DType::f32, {tokens, d_model});
        CHECK(call.run().ok());
    }
    {
        Call call;
        call.y = TensorView(call.up.data() + 64, DType::f32, {tokens, d_model});
        const Status status = call.run();
        CHECK(!status.ok() && status.message().find("w_up") != std::string::npos) << status.message();
    }
}

TEST(no_data) {
    Call call;
    call.x.data = nullptr;
    check_refused(call, {"x"});
    Call other;
    other.y.data = nullptr;
    check_refused(other, {"out"});
    Call third;
    third.b_up.data = nullptr;
    third.weights.b_up = &third.b_up;
    check_refused(third, {"b_up"});
}

TEST(no_tokens) {
    Call call;
    call.x = TensorView(static_cast<void*>(nullptr), DType::f32, {0, d_model});
    call.y = TensorView(static_cast<void*>(nullptr), DType::f32, {0, d_model});
    Status status = call.run();
    CHECK(status.ok()) << status.message();
    call.x = TensorView(static_cast<void*>(nullptr), DType::f32, {3, 0, d_model});
    call.y = TensorView(static_cast<void*>(nullptr), DType::f32, {3, 0, d_model});
    status = call.run();
    CHECK(status.ok()) << status.message();
    // Errors come all the same.
    call.x = TensorView(static_cast<void*>(nullptr), DType::f32, {0, d_model + 1});
    call.y = TensorView(static_cast<void*>(nullptr), DType::f32, {0, d_model});
    CHECK(!call.run().ok());
}

TEST(activation_numbers_and_names) {
    Call call;
    call.weights.activation = static_cast<fastffn::Activation>(99);
    check_refused(call, {"activation", "99"});
    for (int i = 0; i < fastffn::activation_count; i++) {
        const auto activation = static_cast<fastffn::Activation>(i);
        fastffn::Activation parsed{};
        CHECK(fastffn::parse_activation(fastffn::activation_name(activation), &parsed).ok() && parsed == activation);
    }
    fastffn::Activation parsed{};
    const Status status = fastffn::parse_activation("swish", &parsed);
    CHECK(status.code() == StatusCode::invalid_argument && status.message().find("silu") != std::string::npos)
        << status.message();
}

TEST(linear_messages) {
    Call call;
    TensorView wide(call.x_memory.data(), DType::f32, {tokens, d_model + 1}),
        y(call.y_memory.data(), DType::f32, {tokens, d_ff});
    Status status = fastffn::linear(call.context, wide, view(call.up), nullptr, y);
    CHECK(status.message().rfind("linear: x", 0) == 0) << status.message();
    status = fastffn::linear(call.context, call.x, view(call.up), &call.b_down, y);
    CHECK(status.message().find("bias") != std::string::npos && status.message().find("(40,)") != std::string::npos)
        << status.message();
    CHECK(call.untouched());
}

TEST(no_memory_given) {
    const auto packed = pack_random(Format::f32, 40, 33, 1);
    CHECK(fastffn::unpack(view(packed), TensorView(static_cast<void*>(nullptr), DType::f32, {40, 33})).code() ==
          StatusCode::invalid_argument);
    std::vector<float> x(33), y(33);
    fastffn::Context context(1);
    fastffn::FfnWeights weights;
    weights.w_up = weights.w_down = view(packed);
    weights.w_gate = {nullptr, 64};  // not the same as no gate
    CHECK(fastffn::ffn(context, TensorView(x.data(), DType::f32, {1, 33}), weights,
                       TensorView(y.data(), DType::f32, {1, 33}))
              .message()
              .find("w_gate is null") != std::string::npos);
}

TEST(pack_over_its_own_weights) {
    std::vector<float> w(4096, 1.0f);
    std::int64_t bytes = 0;
    const TensorView weights(w.data(), DType::f32, {16, 16});
    fastffn::packed_bytes(weights, Format::f32, &bytes).value();
    const Status status = fastffn::pack(weights, Format::f32, w.data(), bytes);
    CHECK(status.code() == StatusCode::invalid_argument && w[0] == 1.0f) << status.message();
}

TEST(views_beyond_all_memory) {
    const auto packed = pack_random(Format::f32, 64, 64, 1);
    std::vector<float> x(64), y(64);
    fastffn::Context context(1);
    const std::int64_t huge = std::int64_t{1} << 32;
    TensorView wide(x.data(), DType::f32, {huge, huge, 64});
    CHECK(!fastffn::linear(context, wide, view(packed), nullptr, wide).ok());
    TensorView far(x.data(), DType::f32, {2, 64});
    far.strides[0] = std::int64_t{1} << 62;
    CHECK(!fastffn::linear(context, far, view(packed), nullptr, TensorView(y.data(), DType::f32, {2, 64})).ok());
    const TensorView nine(x.data(), DType::f32, {1, 1, 1, 1, 1, 1, 1, 1, 64});
    CHECK(!fastffn::linear(context, nine, view(packed), nullptr, nine).ok());
    TensorView odd(x.data(), static_cast<DType>(200), {1, 64});
    CHECK(!fastffn::linear(context, odd, view(packed), nullptr, TensorView(y.data(), DType::f32, {1, 64})).ok());
}

TEST(weights_beyond_their_format) {
    const double huge[] = {1e300, 1.0};
    const float large[] = {3.4e38f, 1.0f};
    std::vector<std::byte> packed(1 << 14);
    for (Format format : all_formats()) {
        const TensorView w(huge, DType::f64, {1, 2});
        std::int64_t bytes = 0;
        fastffn::packed_bytes(w, format, &bytes).value();
        CHECK(fastffn::pack(w, format, packed.data(), bytes).message().find("beyond") != std::string::npos);
    }
    const TensorView w(large, DType::f32, {1, 2});
    std::int64_t bytes = 0;
    fastffn::packed_bytes(w, Format::bf16, &bytes).value();
    CHECK(fastffn::pack(w, Format::bf16, packed.data(), bytes).message().find("beyond") != std::string::npos);
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
