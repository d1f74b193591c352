#include "run.hpp"

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "output.hpp"
#include "progress.hpp"
#include "text.hpp"

namespace bench::cuda {

namespace {

[[noreturn]] void refuse(const std::string& option, const std::string& expected, const std::string& found) {
    throw std::invalid_argument(option + ": expected " + expected + ", found '" + found + "'");
}

int device_number(const std::string& text) {
    std::int64_t number = 0;
    if (text == "cpu") return -1;
    if (text == "cuda") return 0;
    if (text.rfind("cuda:", 0) != 0 || !parse_int(text.substr(5), &number) || number > 1000)
        refuse("--device", "cpu, cuda or cuda:NUMBER", text);
    return static_cast<int>(number);
}

// Products that were asked for instead of a suite.
std::vector<Case> products(const std::vector<std::string>& shapes, const std::vector<std::string>& formats,
                           const std::vector<std::string>& tokens) {
    std::vector<Case> cases;
    for (const std::string& shape : shapes)
        for (const std::string& format : formats)
            for (const std::string& count : tokens) {
                Case row;
                row.format = parse_packing(format);
                if (!parse_shape(shape, &row.in, &row.out))
                    refuse("--shape", "sizes such as 4096x14336 (in x out)", shape);
                if (!parse_int(count, &row.tokens) || row.tokens < 1)
                    refuse("--tokens", "a number of 1 or more", count);
                row.part = row.is_decode() ? "decode" : "prefill";
                if (row.format.format == fastffn::Format::f16) row.dtype = fastffn::DType::f16;
                if (row.format.format == fastffn::Format::f32) row.dtype = fastffn::DType::f32;
                const Element element = row.dtype == fastffn::DType::f16   ? Element::f16
                                        : row.dtype == fastffn::DType::f32 ? Element::f32
                                                                           : Element::bf16;
                row.rivals = {{Rival::What::cublaslt, element, {}}};
                cases.push_back(row);
            }
    return cases;
}

}  // namespace

int device_of(const std::vector<std::string>& arguments) {
    int device = -1;
    for (std::size_t i = 0; i < arguments.size(); ++i) {
        if (arguments[i].rfind("--device=", 0) == 0) device = device_number(arguments[i].substr(9));
        if (arguments[i] == "--device") {
            if (i + 1 == arguments.size()) throw std::invalid_argument("--device: expected a value after it");
            device = device_number(arguments[i + 1]);
        }
    }
    return device;
}

Options parse_options(const std::vector<std::string>& arguments) {
    Options options;
    options.suite = std::find(arguments.begin(), arguments.end(), "--smoke") == arguments.end() ? "quick" : "all";
    std::int64_t first = 1;
    std::vector<std::string> shapes, formats = {"bf16"}, tokens = {"1", "4096"};
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
        if (name == "--device") {
            options.device = device_number(value());
        } else if (name == "--suite") {
            options.suite = value();
        } else if (name == "--smoke") {
            options.tiny = true;
            options.rounds = 2;
            options.row_seconds = 1e-3;
        } else if (name == "--only") {
            options.only = value();
        } else if (name == "--first") {
            const std::string text = value();
            if (!parse_int(text, &first) || first < 1) refuse(name, "the number of a row, from 1", text);
        } else if (name == "--shape") {
            shapes = split(value(), ',');
        } else if (name == "--format") {
            formats = split(value(), ',');
        } else if (name == "--tokens") {
            tokens = split(value(), ',');
        } else if (name == "--library") {
            options.places += (options.places.empty() ? "" : ":") + value();
        } else if (name == "--seconds") {
            const std::string text = value();
            if (!parse_seconds(text, &options.row_seconds) || options.row_seconds <= 0)
                refuse(name, "a time such as 0.5 or 200ms", text);
        } else if (name == "--rounds") {
            const std::string text = value();
            std::int64_t rounds = 0;
            if (!parse_int(text, &rounds) || rounds < 1 || rounds > 10000)
                refuse(name, "a number from 1 to 10000", text);
            options.rounds = static_cast<int>(rounds);
        } else if (name == "--json") {
            options.json = value();
        } else if (name == "--list") {
            options.list = true;
        } else {
            throw std::invalid_argument("unknown option '" + arguments[i] +
                                        "' with --device cuda; --help lists those that it takes");
        }
        if (has_inline && !took_value) throw std::invalid_argument(name + " takes no value");
    }
    options.cases = shapes.empty() ? suite(options.suite, options.tiny) : products(shapes, formats, tokens);
    if (!shapes.empty()) options.suite = "";
    std::vector<Case> chosen;
    for (const Case& row : options.cases)
        if (row.name().find(options.only) != std::string::npos) chosen.push_back(row);
    if (chosen.empty())
        throw std::invalid_argument("--only: no row's name contains '" + options.only + "'; --list shows them");
    // One behind the last: nothing is left of a list that was measured in parts.
    if (first > static_cast<std::int64_t>(chosen.size()) + 1)
        refuse("--first", "one of " + std::to_string(chosen.size()) + " rows", std::to_string(first));
    options.cases.assign(chosen.begin() + (first - 1), chosen.end());
    return options;
}

int run(const Options& options) {
    if (options.list) {
        for (const Case& row : options.cases) {
            std::printf("%s", row.name().c_str());
            for (const Bar& bar : row.bars) std::printf("; %s", bar_text(bar, row).c_str());
            std::printf("\n");
        }
        std::printf("%zu rows\n", options.cases.size());
        return 0;
    }
    const bool to_stdout = options.json == "-";
    std::FILE* file = nullptr;
    if (!options.json.empty() && !to_stdout) {
        // Opened before anything is measured, and kept whole after every row.
        file = std::fopen(options.json.c_str(), "w");
        if (!file) throw std::runtime_error("--json: cannot write '" + options.json + "'");
    }
    const auto show = [&](const std::string& text) {
        if (to_stdout) return;
        std::fputs(text.c_str(), stdout);
        std::fflush(stdout);
    };
    const Session session(options.device, options.places);
    const std::vector<Ceiling> ceilings = measure_ceilings(session, options);
    show(device_text(session, ceilings) + "\n");
    std::vector<Row> rows;
    bool failed = false;
    const auto write = [&](std::FILE* out) {
        const std::string text = to_json(session, options, ceilings, rows);
        if (out != stdout) std::rewind(out);
        if (std::fwrite(text.data(), 1, text.size(), out) != text.size() || std::fflush(out) != 0)
            throw std::runtime_error("--json: could not write all of '" + options.json + "'");
    };
    Progress progress(static_cast<int>(options.cases.size()));
    for (const Case& asked : options.cases) {
        progress.step(asked.name());
        rows.push_back(measure_row(session, asked, ceilings, options));
        failed = failed || !rows.back().ours.problem.empty();
        progress.clear();
        show(row_text(rows.back()));
        if (file) write(file);
    }
    show(legend(rows));
    if (to_stdout) write(stdout);
    if (file && std::fclose(file) != 0)
        throw std::runtime_error("--json: could not write all of '" + options.json + "'");
    return failed ? 1 : 0;
}

}  // namespace bench::cuda
