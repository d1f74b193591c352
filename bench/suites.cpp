#include "suites.hpp"

#include <stdexcept>

namespace bench {

namespace {

std::vector<int> one_and_all() {
    const int all = fastffn::default_threads();
    return all > 1 ? std::vector<int>{1, all} : std::vector<int>{1};
}

Shape plain(std::int64_t d_model, std::int64_t d_ff) {
    return {d_model, d_ff, false, fastffn::Activation::gelu, {}, {}};
}
Shape gated(std::int64_t d_model, std::int64_t d_ff) {
    return {d_model, d_ff, true, fastffn::Activation::silu, {}, {}};
}
Shape experts(std::int64_t d_model, std::int64_t d_ff, std::int64_t count, std::int64_t picks) {
    return {d_model, d_ff, true, fastffn::Activation::silu, count, picks};
}

}  // namespace

void apply_suite(const std::string& name, Options* options) {
    using fastffn::Format;
    options->suite = name;
    options->threads = one_and_all();
    if (name == "default") {
        // BERT-base, a 1B and a 7B model.
        options->shapes = {plain(768, 3072), gated(2048, 8192), gated(4096, 11008)};
        options->formats = {Format::bf16, Format::int8, Format::f16, Format::f32};
        options->tokens = {1, 16, 128, 1024};
        options->cold = {false, true};
        options->cold_tokens_limit = 16;
    } else if (name == "moe") {
        // OLMoE, and Mixtral at half its width.
        options->ops = {Op::moe};
        options->shapes = {experts(2048, 1024, 64, 8), experts(2048, 7168, 8, 2)};
        options->formats = {Format::bf16, Format::int8};
        options->tokens = {1, 16, 128, 1024, 2048};
        options->x_dtypes = {fastffn::DType::bf16};
        options->has_baseline = false;
    } else if (name == "fff") {
        // UltraFastBERT's 1×11, and leaves of 32 neurons, beside the dense layer of the same width.
        options->ops = {Op::fff};
        options->shapes = {plain(768, 4095)};
        options->leaves = {0, 32};
        options->formats = {Format::f32, Format::bf16, Format::int8};
        options->tokens = {1, 64, 1024, 16384};
    } else if (name == "sparse24") {
        // 2:4 weights beside dense ones of the same numbers, on a 1B and a 7B model's layer.
        options->shapes = {gated(2048, 8192), gated(4096, 11008)};
        options->formats = {Format::sparse24, Packing(Format::sparse24, {{"values", "int8"}})};
        options->tokens = {1, 2, 4, 16, 128, 512};
        options->cold = {false, true};
        options->cold_tokens_limit = 16;
        options->x_dtypes = {fastffn::DType::bf16};
        options->baseline_dense = true;
    } else if (name == "codes") {
        // 2- and 4-bit weights: one matrix of 4096, and the up projections of BitNet b1.58 2B4T and a 7B model.
        options->ops = {Op::linear};
        options->shapes = {plain(4096, 4096), plain(2560, 6912), plain(4096, 11008)};
        options->formats = {Format::ternary, Format::int4, Packing(Format::int4, {{"act", "bf16"}})};
        options->tokens = {1, 2, 4, 16, 128, 512};
        options->cold = {false, true};
        options->cold_tokens_limit = 16;
        options->baseline_format = Format::int8;
    } else if (name == "gatefirst") {
        // BitNet a4.8's layer at the sizes of BitNet 2B4T and of a 7B model.
        options->ops = {Op::hybrid};
        options->shapes = {plain(2560, 6912), plain(4096, 11008)};
        options->formats = {Format::ternary};
        options->tokens = {1};
        options->cold = {false, true};
        options->huge_pages = true;
    } else if (name == "hadamard") {
        options->row_seconds = 0.4;  // rows and columns of its own: hadamard.cpp
    } else if (name == "quick") {
        options->shapes = {plain(768, 3072)};
        options->formats = {Format::bf16, Format::int8, Format::f32};
        options->tokens = {1, 16, 128};
        options->row_seconds = 0.25;
        options->rounds = 5;
        options->machine_seconds = 0.06;
    } else if (name == "smoke") {
        // Every op and format once, on sizes that any kernel finishes at once: for continuous integration.
        options->ops = {Op::linear, Op::ffn, Op::moe, Op::fff, Op::hybrid, Op::pack, Op::unpack};
        options->leaves = {0, 8};
        options->shapes = {gated(64, 160)};
        options->formats = {Format::f32,      Format::f16,     Format::bf16, Format::int8,
                            Format::sparse24, Format::ternary, Format::int4};
        options->tokens = {1, 20};
        options->cold = {false, true};
        options->cold_bytes = 4 << 20;
        options->threads = {one_and_all().back()};
        options->row_seconds = 0.004;
        options->rounds = 3;
        options->machine_seconds = 0.004;
    } else {
        throw std::invalid_argument(
            "--suite: expected default, quick, moe, sparse24, codes, gatefirst, hadamard or fff, found '" + name + "'");
    }
}

}  // namespace bench
