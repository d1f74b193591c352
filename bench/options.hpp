// The command line: what to measure and how.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fastffn/fastffn.hpp"

namespace bench {

// hybrid: BitNet a4.8's layer, a gated ffn whose w_gate and w_up meet 4-bit activations and w_down 8-bit ones.
enum class Op { linear, ffn, moe, fff, hybrid, pack, unpack };
const char* op_name(Op op);

// Which experts the tokens of a moe choose, each k different ones: all equally likely; the expert of rank r as likely as
// 1 / r; or the same k by every token. Every call has other tokens.
enum class Routing { uniform, zipf, one };
const char* routing_name(Routing routing);

// A weight format with the options that it is packed with: "sparse24:values=int8".
struct Packing {
    fastffn::Format format = fastffn::Format::bf16;
    fastffn::PackOptions options;

    Packing() = default;
    Packing(fastffn::Format format_, fastffn::PackOptions options_ = {})
        : format(format_), options(std::move(options_)) {}
    std::string name() const;
    // The dense format of the same numbers, where the format is a sparse one; else f32.
    fastffn::Format dense() const;
};
bool operator==(const Packing& a, const Packing& b);
// "bf16", "sparse24", "sparse24:values=int8"; throws with the names that there are.
Packing parse_packing(const std::string& text);

// One thing to time, fully described.
struct Problem {
    Op op = Op::ffn;
    std::int64_t d_model = 0, d_ff = 0;  // linear: in_features, out_features
    bool gated = false;
    bool bias = false;
    bool cold = false;
    fastffn::Activation activation = fastffn::Activation::gelu;
    Packing format;
    std::int64_t experts = 0, picks = 0;  // moe
    Routing routing = Routing::uniform;
    std::int64_t leaf = 0;  // fff: neurons of a leaf; 0: every node is a neuron
    // hybrid: how w_up and w_down are ordered ("rows+columns"), which gates are zero, and what that is held against: "dense", the
    // same weights in the dense order, or "panels", all in the plain order, densely.
    std::string orders = "rows+columns", against = "dense";
    double zero_gates = 0.675;
    bool gate_first = true;
    std::string isa;  // "": what the library chooses (under FASTFFN_ISA, if that is set)
    int threads = 1;
    std::int64_t tokens = 1;
    fastffn::DType x_dtype = fastffn::DType::f32, y_dtype = fastffn::DType::f32;

    bool multiplies() const {
        return op == Op::linear || op == Op::ffn || op == Op::moe || op == Op::fff || op == Op::hybrid;
    }
    // fff: the smallest tree of at least d_ff neurons.
    std::int64_t depth() const {
        std::int64_t depth = 0;
        while ((leaf ? leaf << depth : (std::int64_t{2} << depth) - 1) < d_ff) ++depth;
        return depth;
    }
    std::int64_t path_rows() const { return leaf ? depth() + 2 * leaf : 2 * (depth() + 1); }  // that a token multiplies
    int matrices() const { return op == Op::hybrid || op == Op::ffn || op == Op::moe ? (gated ? 3 : 2) : 1; }
    std::int64_t parameters() const { return matrices() * d_model * d_ff; }  // moe: of one expert
    double operations() const {
        if (op == Op::fff) return 2.0 * static_cast<double>(tokens * path_rows() * d_model);
        const std::int64_t rows = op == Op::moe ? tokens * picks : tokens;
        return multiplies() ? 2.0 * static_cast<double>(rows * parameters()) : 0.0;
    }
};

std::string tree_name(const Problem& problem);  // "tree of depth 11", "tree of depth 7, leaves of 32"

struct Shape {
    std::int64_t d_model, d_ff;
    // Set by suites; a plain --shape leaves them to --gated and --activation.
    std::optional<bool> gated;
    std::optional<fastffn::Activation> activation;
    std::optional<std::int64_t> experts, picks;
};

struct Options {
    // Any list may have several entries: every combination is a row.
    std::vector<Op> ops = {Op::ffn};
    std::vector<Shape> shapes;
    std::vector<Packing> formats;
    std::vector<std::string> isas = {""};
    std::vector<int> threads;
    std::vector<std::int64_t> tokens;
    std::vector<bool> cold = {false};
    fastffn::Activation activation = fastffn::Activation::gelu;
    bool gated = false, bias = false;
    std::int64_t experts = 8, picks = 2;
    std::vector<Routing> routings = {Routing::uniform};
    std::vector<std::int64_t> leaves = {0};
    std::vector<std::string> orders = {"rows+panels", "rows+columns"}, against = {"dense", "panels"};  // hybrid
    double zero_gates = 0.675;
    bool gate_first = true;
    std::vector<fastffn::DType> x_dtypes;   // empty: bf16 weights take bf16, others f32
    std::optional<fastffn::DType> y_dtype;  // unset: as x

    bool has_baseline = true;
    Packing baseline_format = fastffn::Format::f32;
    bool baseline_dense = false;  // each row's own: Packing::dense()
    std::string baseline_isa;     // "": the row's own

    std::int64_t cold_bytes = std::int64_t{1} << 30;
    std::int64_t cold_tokens_limit = 64;  // suites: above it cold and hot are the same, so only hot is measured
    bool huge_pages = false;
    double row_seconds = 0.6;
    int rounds = 7;
    double quiet_limit = 0.15;  // cores that other programs may use in a round that counts
    double machine_seconds = 0.15;

    bool machine_only = false, skip_machine = false, help = false, version = false, worker = false, list = false;
    std::string json;
    std::string suite;
};

// Throws std::invalid_argument naming the option, what it takes and what was found.
Options parse_options(const std::vector<std::string>& arguments);
std::string help_text();

// Every combination, in the order in which they share weights.
std::vector<Problem> expand(const Options& options);

// As options for a worker process; parse_options and expand give the same problem back.
std::string to_arguments(const Problem& problem, const Options& options);

}  // namespace bench
