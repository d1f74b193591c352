// What the tests share: random arrays, packed weights, and a whole FFN problem to run.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fastffn/fastffn.hpp"

namespace support {

using fastffn::DType;
using fastffn::Format;
using fastffn::PackedView;
using fastffn::Status;
using fastffn::StatusCode;
using fastffn::TensorView;

constexpr DType float_dtypes[] = {DType::f32, DType::f16, DType::bf16};

inline std::vector<Format> all_formats() {
    Format formats[fastffn::format_limit];
    const int count = fastffn::list_formats(formats, fastffn::format_limit);
    return {formats, formats + count};
}

// A format with the options that it is packed with; a Format alone takes its defaults.
struct Kind {
    Format format;
    fastffn::PackOptions options;

    Kind(Format format_, fastffn::PackOptions options_ = {}) : format(format_), options(std::move(options_)) {}
    operator Format() const { return format; }
    std::string name() const {
        std::string text = fastffn::format_name(format);
        for (const auto& option : options) text += " " + option.name + "=" + option.value.to_string();
        return text;
    }
};

// Every format of this build, with each option that has kernels of its own.
inline std::vector<Kind> all_kinds() {
    std::vector<Kind> kinds;
    for (Format format : all_formats()) {
        if (format == Format::sparse24)
            for (const char* values : {"bf16", "f16", "f32", "int8"}) kinds.push_back({format, {{"values", values}}});
        else if (format == Format::ternary) kinds.insert(kinds.end(), {Kind(format), Kind(format, {{"group", 64}})});
        else if (format == Format::int4)
            kinds.insert(kinds.end(), {Kind(format), Kind(format, {{"group", 32}}), Kind(format, {{"act", "bf16"}})});
        else kinds.push_back(format);
    }
    for (const char* order : {"rows", "columns"})
        kinds.insert(kinds.end(), {Kind(Format::ternary, {{"order", order}}), Kind(Format::int4, {{"order", order}}),
                                   Kind(Format::ternary, {{"order", order}, {"act", "int4"}, {"group", 32}})});
    return kinds;
}

inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline std::uint16_t to_bf16(float x) {  // finite values
    const std::uint32_t bits = bits_of(x);
    return static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

inline std::uint16_t to_f16(float x) {  // values whose f16 is normal: the low bits are cut off
    const std::uint32_t bits = bits_of(x);
    const int exponent = static_cast<int>((bits >> 23) & 255) - 127 + 15;
    if (exponent <= 0) return static_cast<std::uint16_t>((bits >> 16) & 0x8000);
    return static_cast<std::uint16_t>(((bits >> 16) & 0x8000) | (static_cast<std::uint32_t>(exponent) << 10) |
                                      ((bits >> 13) & 0x3FF));
}

// `count` normally distributed elements of a dtype, as bytes.
inline std::vector<std::byte> random_array(DType dtype, std::int64_t count, unsigned seed, float scale = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<std::byte> bytes(static_cast<std::size_t>(count * fastffn::dtype_bytes(dtype)));
    for (std::int64_t i = 0; i < count; i++) {
        const float value = normal(generator);
        if (dtype == DType::f32) {
            std::memcpy(bytes.data() + 4 * i, &value, 4);
        } else {
            const std::uint16_t half = dtype == DType::bf16 ? to_bf16(value) : to_f16(value);
            std::memcpy(bytes.data() + 2 * i, &half, 2);
        }
    }
    return bytes;
}

// Random weights [out, in] that the format can hold: for sparse24, two of every four in a row are zero.
inline std::vector<std::byte> random_weights(Format format, DType dtype, std::int64_t out, std::int64_t in,
                                             unsigned seed, float scale = 1) {
    auto weights = random_array(dtype, out * in, seed, scale);
    if (format != Format::sparse24) return weights;
    const auto element = static_cast<std::size_t>(fastffn::dtype_bytes(dtype));
    std::mt19937 generator(seed + 1);
    for (std::int64_t row = 0; row < out; row++)
        for (std::int64_t k = 0; k < in; k += 4) {
            const std::int64_t first = generator() % 4, second = (first + 1 + generator() % 3) % 4;
            for (std::int64_t zero : {first, second})
                if (k + zero < in) std::memset(weights.data() + (row * in + k + zero) * element, 0, element);
        }
    return weights;
}

inline std::vector<std::byte> pack_weights(const TensorView& w, const Kind& kind) {
    std::int64_t bytes = 0;
    fastffn::packed_bytes(w, kind.format, kind.options, &bytes).value();
    std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
    fastffn::pack(w, kind.format, kind.options, packed.data(), bytes).value();
    return packed;
}

inline std::vector<std::byte> pack_random_pair(Format factors, std::int64_t out, std::int64_t in, std::int64_t rank,
                                               unsigned seed) {
    const auto inner = random_array(DType::f32, rank * in, seed, 1 / std::sqrt(static_cast<float>(in)));
    const auto outer = random_array(DType::f32, out * rank, seed + 100, 1 / std::sqrt(static_cast<float>(rank)));
    const TensorView u(inner.data(), DType::f32, {rank, in}), v(outer.data(), DType::f32, {out, rank});
    std::int64_t bytes = 0;
    fastffn::packed_factors_bytes(u, v, factors, &bytes).value();
    std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
    fastffn::pack_factors(u, v, factors, packed.data(), bytes).value();
    return packed;
}

constexpr Format factor_formats[] = {Format::f32, Format::f16, Format::bf16, Format::int8};

inline std::vector<std::byte> pack_random(const Kind& kind, std::int64_t out, std::int64_t in, unsigned seed) {
    const float scale = 1 / std::sqrt(static_cast<float>(in));
    const auto weights = random_weights(kind.format, DType::f32, out, in, seed, scale);
    return pack_weights(TensorView(weights.data(), DType::f32, {out, in}), kind);
}

inline PackedView view(const std::vector<std::byte>& packed) {
    return {packed.data(), static_cast<std::int64_t>(packed.size())};
}

// A gated or plain layer with biases, its input, and its output.
struct Problem {
    std::int64_t tokens, d_model, d_ff;
    DType dtype;
    bool gated;
    std::vector<std::byte> w_up, w_gate, w_down, b_up, b_gate, b_down, x;
    std::vector<fastffn::Segment> segments;  // none: all hidden columns

    void set_segments(fastffn::FfnWeights& weights) const {
        weights.segments = segments.empty() ? nullptr : segments.data();
        weights.segment_count = static_cast<std::int64_t>(segments.size());
    }

    Problem(const Kind& format, DType dtype_, std::int64_t tokens_, std::int64_t d_model_, std::int64_t d_ff_,
            bool gated_)
        : tokens(tokens_), d_model(d_model_), d_ff(d_ff_), dtype(dtype_), gated(gated_) {
        w_up = pack_random(format, d_ff, d_model, 1);
        w_down = pack_random(format, d_model, d_ff, 2);
        if (gated) w_gate = pack_random(format, d_ff, d_model, 3);
        b_up = random_array(dtype, d_ff, 4);
        b_gate = random_array(dtype, d_ff, 5);
        b_down = random_array(dtype, d_model, 6);
        x = random_array(dtype, tokens * d_model, 7);
    }

    // The same with every weight a pair of factors, of ranks r, r + 3 and r + 1.
    Problem& low_rank(Format factors, std::int64_t rank) {
        w_up = pack_random_pair(factors, d_ff, d_model, rank, 11);
        w_down = pack_random_pair(factors, d_model, d_ff, rank + 3, 12);
        if (gated) w_gate = pack_random_pair(factors, d_ff, d_model, rank + 1, 13);
        return *this;
    }

    std::vector<std::byte> output() const {
        return std::vector<std::byte>(static_cast<std::size_t>(tokens * d_model * fastffn::dtype_bytes(dtype)));
    }

    Status run(fastffn::Context& context, std::vector<std::byte>& y) const {
        const TensorView up(b_up.data(), dtype, {d_ff}), gate(b_gate.data(), dtype, {d_ff});
        const TensorView down(b_down.data(), dtype, {d_model});
        fastffn::FfnWeights weights;
        weights.w_up = view(w_up);
        weights.w_down = view(w_down);
        if (gated) weights.w_gate = view(w_gate);
        weights.b_up = &up;
        weights.b_down = &down;
        if (gated) weights.b_gate = &gate;
        weights.activation = gated ? fastffn::Activation::silu : fastffn::Activation::gelu;
        set_segments(weights);
        return fastffn::ffn(context, TensorView(x.data(), dtype, {tokens, d_model}), weights,
                            TensorView(y.data(), dtype, {tokens, d_model}));
    }
};

// How a child process ended: its exit status, or 128 + the signal, as shells say it.
inline int wait_for(pid_t child) {
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

using Environment = std::initializer_list<std::pair<const char*, const char*>>;

// Runs this program again with one argument and more environment variables (nullptr unsets): what the library reads from
// the environment it reads once. Standard output and error come back in `text`.
inline int run_self(const char* argument, Environment environment, std::string* text) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        for (const auto& [name, value] : environment) value ? setenv(name, value, 1) : unsetenv(name);
        execl("/proc/self/exe", "/proc/self/exe", argument, static_cast<char*>(nullptr));
        _exit(127);
    }
    close(ends[1]);
    char buffer[512];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text->append(buffer, static_cast<std::size_t>(n));
    close(ends[0]);
    return wait_for(child);
}

}  // namespace support
