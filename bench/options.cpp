#include "options.hpp"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <stdexcept>

#include "suites.hpp"
#include "text.hpp"

namespace bench {

namespace {

[[noreturn]] void refuse(const std::string& option, const std::string& expected, const std::string& found) {
    throw std::invalid_argument(option + ": expected " + expected + ", found '" + found + "'");
}

Op parse_op(const std::string& text) {
    for (Op op : {Op::linear, Op::ffn, Op::moe, Op::fff, Op::hybrid, Op::pack, Op::unpack}) {
        if (text == op_name(op)) return op;
    }
    refuse("--op", "linear, ffn, moe, fff, hybrid, pack or unpack", text);
}

Routing parse_routing(const std::string& text) {
    for (Routing routing : {Routing::uniform, Routing::zipf, Routing::one}) {
        if (text == routing_name(routing)) return routing;
    }
    refuse("--routing", "uniform, zipf or one", text);
}

fastffn::DType dtype_named(const std::string& option, const std::string& text) {
    for (fastffn::DType dtype : {fastffn::DType::f32, fastffn::DType::f16, fastffn::DType::bf16}) {
        if (text == fastffn::dtype_name(dtype)) return dtype;
    }
    refuse(option, "f32, f16 or bf16", text);
}

std::string isa_named(const std::string& option, const std::string& text) {
    std::string names;
    if (text == "best") return "";
    if (text == "avx512") return text;
    for (int isa = 0; isa < fastffn::isa_count; ++isa) {
        const std::string name = fastffn::isa_name(static_cast<fastffn::Isa>(isa));
        if (text == name) return text;
        names += name + ", ";
    }
    refuse(option, "best, " + names + "avx512", text);
}

std::int64_t positive(const std::string& option, const std::string& text) {
    std::int64_t value = 0;
    if (!parse_int(text, &value) || value < 1) refuse(option, "a number of 1 or more", text);
    return value;
}

double seconds(const std::string& option, const std::string& text) {
    double value = 0;
    if (!parse_seconds(text, &value)) refuse(option, "a time such as 0.5 or 200ms", text);
    return value;
}

template <typename Value, typename Parse>
std::vector<Value> list_of(const std::string& text, const Parse& parse) {
    std::vector<Value> values;
    for (const std::string& part : split(text, ',')) values.push_back(parse(part));
    if (values.empty()) values.push_back(parse(text));  // its own message for an empty list
    return values;
}

int available_threads() { return fastffn::default_threads(); }

}  // namespace

Packing parse_packing(const std::string& text) {
    const std::vector<std::string> parts = split(text, ':');
    Packing packing;
    // Their own messages list the names.
    fastffn::parse_format(parts.empty() ? "" : parts[0].c_str(), &packing.format).value();
    for (std::size_t i = 1; i < parts.size(); ++i) {
        const std::size_t equals = parts[i].find('=');
        if (equals == std::string::npos) refuse("--format", "options such as sparse24:values=int8", text);
        const std::string value = parts[i].substr(equals + 1);
        std::int64_t number = 0;
        fastffn::OptionValue option(value);
        if (parse_int(value, &number)) option = fastffn::OptionValue(number);
        else if (value == "true" || value == "false") option = fastffn::OptionValue(value == "true");
        packing.options.push_back({parts[i].substr(0, equals), option});
    }
    std::int64_t bytes = 0;
    const fastffn::TensorView any(static_cast<void*>(nullptr), fastffn::DType::f32, {64, 64});
    fastffn::packed_bytes(any, packing.format, packing.options, &bytes).value();
    return packing;
}

std::string Packing::name() const {
    std::string text = fastffn::format_name(format);
    for (const fastffn::PackOption& option : options) {
        const bool is_text = option.value.kind() == fastffn::OptionValue::Kind::text;
        text += ":" + option.name + "=" + (is_text ? option.value.text() : option.value.to_string());
    }
    return text;
}

fastffn::Format Packing::dense() const {
    if (format != fastffn::Format::sparse24) return fastffn::Format::f32;
    fastffn::Format values = fastffn::Format::bf16;
    for (const fastffn::PackOption& option : options)
        if (option.name == "values") fastffn::parse_format(option.value.text().c_str(), &values).value();
    return values;
}

bool operator==(const Packing& a, const Packing& b) { return a.name() == b.name(); }

const char* op_name(Op op) {
    const char* names[] = {"linear", "ffn", "moe", "fff", "hybrid", "pack", "unpack"};
    return names[static_cast<int>(op)];
}

const char* routing_name(Routing routing) {
    const char* names[] = {"uniform", "zipf", "one"};
    return names[static_cast<int>(routing)];
}

std::string tree_name(const Problem& problem) {
    const std::string depth = "tree of depth " + std::to_string(problem.depth());
    return problem.leaf ? depth + ", leaves of " + std::to_string(problem.leaf) : depth;
}

Options parse_options(const std::vector<std::string>& arguments) {
    Options options;
    // A suite sets everything first, so that the other options can narrow it wherever they stand.
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        const std::string& argument = arguments[i];
        if (argument == "--smoke") apply_suite("smoke", &options);
        if (argument == "--suite" && i + 1 < arguments.size()) apply_suite(arguments[i + 1], &options);
        if (argument.rfind("--suite=", 0) == 0) apply_suite(argument.substr(8), &options);
    }

    bool hot_named = false, cold_named = false;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        std::string name = arguments[i], inline_value;
        const std::size_t equals = name.find('=');
        const bool has_inline = name.rfind("--", 0) == 0 && equals != std::string::npos;
        if (has_inline) {
            inline_value = name.substr(equals + 1);
            name.resize(equals);
        }
        bool took_value = false;
        const auto value = [&]() -> std::string {
            took_value = true;
            if (has_inline) return inline_value;
            if (i + 1 >= arguments.size()) throw std::invalid_argument(name + ": expected a value after it");
            return arguments[++i];
        };

        if (name == "--op") {
            options.ops = list_of<Op>(value(), parse_op);
        } else if (name == "--shape") {
            options.shapes = list_of<Shape>(value(), [](const std::string& text) {
                Shape shape = {};
                if (!parse_shape(text, &shape.d_model, &shape.d_ff)) {
                    refuse("--shape", "sizes such as 768x3072 (d_model x d_ff; linear: in x out)", text);
                }
                return shape;
            });
        } else if (name == "--activation") {
            const std::string text = value();
            fastffn::parse_activation(text.c_str(), &options.activation).value();
            for (Shape& shape : options.shapes) shape.activation = options.activation;
        } else if (name == "--gated" || name == "--no-gated") {
            options.gated = name == "--gated";
            for (Shape& shape : options.shapes) shape.gated = options.gated;
        } else if (name == "--experts") {
            options.experts = positive(name, value());
            for (Shape& shape : options.shapes) shape.experts = options.experts;
        } else if (name == "--picks") {
            options.picks = positive(name, value());
            for (Shape& shape : options.shapes) shape.picks = options.picks;
        } else if (name == "--leaf") {
            options.leaves = list_of<std::int64_t>(value(), [](const std::string& text) {
                return text == "0" ? std::int64_t{0} : positive("--leaf", text);
            });
        } else if (name == "--orders") {
            options.orders = list_of<std::string>(value(), [](const std::string& text) {
                for (const char* up : {"panels", "rows"})
                    for (const char* down : {"panels", "columns"})
                        if (text == std::string(up) + "+" + down) return text;
                refuse("--orders", "panels or rows of w_up + panels or columns of w_down", text);
            });
        } else if (name == "--against") {
            options.against = list_of<std::string>(value(), [](const std::string& text) {
                if (text != "dense" && text != "panels") refuse("--against", "dense or panels", text);
                return text;
            });
        } else if (name == "--zero-gates") {
            const std::string text = value();
            char* end = nullptr;
            options.zero_gates = std::strtod(text.c_str(), &end);
            if (end == text.c_str() || *end || !(options.zero_gates >= 0 && options.zero_gates <= 1))
                refuse("--zero-gates", "a share from 0 to 1", text);
        } else if (name == "--dense-order") {
            options.gate_first = false;
        } else if (name == "--routing") {
            options.routings = list_of<Routing>(value(), parse_routing);
        } else if (name == "--bias") {
            options.bias = true;
        } else if (name == "--format") {
            const std::string text = value();
            if (text == "all") {
                fastffn::Format formats[fastffn::format_limit];
                const int count = fastffn::list_formats(formats, fastffn::format_limit);
                options.formats.assign(formats, formats + count);
            } else {
                options.formats = list_of<Packing>(text, parse_packing);
            }
        } else if (name == "--isa") {
            const std::string text = value();
            if (text == "all") {
                options.isas.clear();
                for (int isa = 0; isa <= static_cast<int>(fastffn::cpu_report().found); ++isa) {
                    options.isas.push_back(fastffn::isa_name(static_cast<fastffn::Isa>(isa)));
                }
            } else {
                options.isas =
                    list_of<std::string>(text, [](const std::string& part) { return isa_named("--isa", part); });
            }
        } else if (name == "--threads") {
            options.threads = list_of<int>(value(), [](const std::string& text) {
                if (text == "all") return available_threads();
                const std::int64_t count = positive("--threads", text);
                if (count > 4096) refuse("--threads", "at most 4096", text);
                return static_cast<int>(count);
            });
        } else if (name == "--tokens") {
            options.tokens =
                list_of<std::int64_t>(value(), [](const std::string& text) { return positive("--tokens", text); });
        } else if (name == "--x") {
            options.x_dtypes =
                list_of<fastffn::DType>(value(), [](const std::string& text) { return dtype_named("--x", text); });
        } else if (name == "--y") {
            options.y_dtype = dtype_named("--y", value());
        } else if (name == "--cold") {
            cold_named = true;
        } else if (name == "--hot") {
            hot_named = true;
        } else if (name == "--cold-bytes") {
            const std::string text = value();
            if (!parse_bytes(text, &options.cold_bytes)) refuse("--cold-bytes", "a size such as 1G or 512M", text);
        } else if (name == "--huge-pages") {
            options.huge_pages = true;
        } else if (name == "--baseline") {
            const std::string text = value();
            options.has_baseline = text != "none";
            if (options.has_baseline) {
                const std::size_t slash = text.find('/');
                options.baseline_dense = text.substr(0, slash) == "dense";
                if (!options.baseline_dense) options.baseline_format = parse_packing(text.substr(0, slash));
                options.baseline_isa =
                    slash == std::string::npos ? "" : isa_named("--baseline", text.substr(slash + 1));
            }
        } else if (name == "--seconds") {
            options.row_seconds = seconds(name, value());
        } else if (name == "--rounds") {
            options.rounds = static_cast<int>(std::min<std::int64_t>(positive(name, value()), 10000));
        } else if (name == "--machine-seconds") {
            options.machine_seconds = seconds(name, value());
        } else if (name == "--suite") {
            options.suite = value();
        } else if (name == "--smoke") {
            options.suite = "smoke";
        } else if (name == "--json") {
            options.json = value();
        } else if (name == "--machine") {
            options.machine_only = true;
        } else if (name == "--no-machine") {
            options.skip_machine = true;
        } else if (name == "--device") {  // cuda: cuda/run.cpp
            if (value() != "cpu") throw std::invalid_argument("--device: expected cpu here");
        } else if (name == "--list") {
            options.list = true;
        } else if (name == "--help" || name == "-h") {
            options.help = true;
        } else if (name == "--version") {
            options.version = true;
        } else if (name == "--worker") {  // internal: serves another fastffn-bench over a pipe
            options.worker = true;
        } else {
            throw std::invalid_argument("unknown option '" + arguments[i] + "'; --help lists them");
        }
        if (has_inline && !took_value) throw std::invalid_argument(name + " takes no value");
    }
    if (cold_named) options.cold = hot_named ? std::vector<bool>{false, true} : std::vector<bool>{true};
    if (hot_named && !cold_named) options.cold = {false};
    if (cold_named) options.cold_tokens_limit = 0;  // asked for: at any number of tokens

    if (options.shapes.empty()) options.shapes = {{768, 3072, {}, {}, {}, {}}};
    if (options.formats.empty()) options.formats = {Packing()};
    if (options.tokens.empty()) options.tokens = {1, 16, 128, 1024};
    if (options.threads.empty()) options.threads = {1};
    return options;
}

std::vector<Problem> expand(const Options& options) {
    std::vector<Problem> problems;
    Problem problem;
    problem.bias = options.bias;
    for (Op op : options.ops) {
        problem.op = op;
        for (const Shape& shape : options.shapes) {
            problem.d_model = shape.d_model;
            problem.d_ff = shape.d_ff;
            const bool activates = op == Op::hybrid || op == Op::ffn || op == Op::moe || op == Op::fff;
            problem.zero_gates = options.zero_gates;
            problem.gate_first = options.gate_first;
            problem.gated = op == Op::hybrid || (activates && op != Op::fff && shape.gated.value_or(options.gated));
            problem.activation = op == Op::hybrid ? fastffn::Activation::relu2
                                 : activates      ? shape.activation.value_or(options.activation)
                                                  : fastffn::Activation::identity;
            problem.experts = op == Op::moe ? shape.experts.value_or(options.experts) : 0;
            problem.picks = op == Op::moe ? shape.picks.value_or(options.picks) : 0;
            if (problem.picks > problem.experts)
                refuse("--picks", "at most the number of experts", std::to_string(problem.picks));
            const std::vector<Routing> only = {Routing::uniform};
            const std::vector<std::int64_t> no_leaf = {0};
            const std::vector<std::string> plain_orders = {""};
            for (const std::string& orders : op == Op::hybrid ? options.orders : plain_orders)
                for (const std::string& against : op == Op::hybrid ? options.against : plain_orders)
                    for (std::int64_t leaf : op == Op::fff ? options.leaves : no_leaf)
                        for (Routing routing : op == Op::moe ? options.routings : only)
                            for (bool cold : options.cold) {
                                problem.routing = routing;
                                problem.orders = orders;
                                problem.against = against;
                                problem.leaf = leaf;
                                // The experts of a moe come from wherever a stack of their size lies.
                                if (cold && (!problem.multiplies() || op == Op::moe || op == Op::fff)) continue;
                                problem.cold = cold;
                                for (const Packing& format : options.formats) {
                                    problem.format = format;
                                    const bool codes = format.format == fastffn::Format::ternary ||
                                                       format.format == fastffn::Format::int4;
                                    if (op == Op::hybrid && !codes) continue;
                                    // Rows of trees have these formats, without options.
                                    if (op == Op::fff &&
                                        !(format.options.empty() && format.format <= fastffn::Format::int8))
                                        continue;
                                    std::vector<fastffn::DType> x_dtypes = options.x_dtypes;
                                    if (x_dtypes.empty() || !problem.multiplies()) {
                                        const bool is_bf16 =
                                            format == Packing() || format.dense() == fastffn::Format::bf16;
                                        const bool narrow = is_bf16 && problem.multiplies();
                                        x_dtypes = {narrow ? fastffn::DType::bf16 : fastffn::DType::f32};
                                    }
                                    for (fastffn::DType x_dtype : x_dtypes) {
                                        problem.x_dtype = x_dtype;
                                        problem.y_dtype = options.y_dtype.value_or(x_dtype);
                                        for (const std::string& isa : options.isas) {
                                            problem.isa = isa;
                                            for (int threads : options.threads) {
                                                problem.threads = threads;
                                                for (std::int64_t tokens : options.tokens) {
                                                    if (cold && options.cold_tokens_limit &&
                                                        tokens > options.cold_tokens_limit)
                                                        continue;
                                                    problem.tokens = problem.multiplies() ? tokens : 0;
                                                    problems.push_back(problem);
                                                    if (!problem.multiplies()) break;
                                                }
                                            }
                                        }
                                    }
                                }
                            }
        }
    }
    return problems;
}

std::string to_arguments(const Problem& problem, const Options& options) {
    std::string text = std::string("--op ") + op_name(problem.op);
    text += " --shape " + std::to_string(problem.d_model) + "x" + std::to_string(problem.d_ff);
    text += " --format " + problem.format.name();
    text += std::string(" --activation ") + fastffn::activation_name(problem.activation);
    text += std::string(" --x ") + fastffn::dtype_name(problem.x_dtype);
    text += std::string(" --y ") + fastffn::dtype_name(problem.y_dtype);
    text += " --threads " + std::to_string(problem.threads);
    if (problem.multiplies()) text += " --tokens " + std::to_string(problem.tokens);
    if (problem.op == Op::moe) {
        text += " --experts " + std::to_string(problem.experts) + " --picks " + std::to_string(problem.picks);
        text += std::string(" --routing ") + routing_name(problem.routing);
    }
    if (problem.op == Op::fff) text += " --leaf " + std::to_string(problem.leaf);
    if (problem.gated) text += " --gated";
    if (problem.bias) text += " --bias";
    if (problem.cold) text += " --cold";
    if (options.huge_pages) text += " --huge-pages";
    text += " --cold-bytes " + std::to_string(options.cold_bytes);
    return text;
}

}  // namespace bench
