// fastffn-bench: options, then the machine, then the rows.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "compare.hpp"
#include "cuda/run.hpp"
#include "hadamard.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "worker.hpp"

namespace {

using namespace bench;

std::string describe(const Problem& problem) {
    std::string text = std::string(op_name(problem.op)) + " " + std::to_string(problem.d_model) + "x" +
                       std::to_string(problem.d_ff) + (problem.gated ? " gated" : "") + " " + problem.format.name();
    if (!problem.isa.empty()) text += "/" + problem.isa;
    if (problem.cold) text += " cold";
    if (problem.op == Op::moe)
        text += ", " + std::to_string(problem.experts) + " experts, " + std::to_string(problem.picks) + " per token, " +
                routing_name(problem.routing);
    if (problem.op == Op::fff) text += ", " + tree_name(problem);
    text += ", threads " + std::to_string(problem.threads);
    if (problem.tokens) text += ", tokens " + std::to_string(problem.tokens);
    return text;
}

// Large enough that no cache holds a useful part of it, and never more than a quarter of what is free.
std::int64_t dram_buffer_bytes(const Options& options) {
    const std::int64_t wanted = std::max(std::int64_t{1} << 30, 4 * cache_bytes(3));
    return std::min(options.suite == "smoke" ? std::int64_t{64} << 20 : wanted, available_memory() / 4);
}

// Opened before anything is measured: a wrong path must not cost an hour.
std::FILE* open_json(const std::string& path) {
    if (path.empty() || path == "-") return nullptr;
    std::FILE* file = std::fopen(path.c_str(), "w");
    if (!file) throw std::runtime_error("--json: cannot write '" + path + "'");
    return file;
}

int run(const Options& options) {
    const bool table_shown = options.json != "-";
    std::vector<Problem> problems;
    if (!options.machine_only) problems = expand(options);
    if (options.list) {
        for (const Problem& problem : problems) std::printf("%s\n", describe(problem).c_str());
        std::printf("%zu rows\n", problems.size());
        return 0;
    }
    fastffn::check_isa().value();
    std::FILE* json_file = open_json(options.json);
    const auto show = [&](const std::string& text) {
        if (!table_shown) return;
        std::fputs(text.c_str(), stdout);
        std::fflush(stdout);
    };
    show(environment_text());

    std::vector<int> thread_counts = options.threads;
    if (options.machine_only) {
        thread_counts.push_back(1);
        thread_counts.push_back(fastffn::default_threads());
    }
    std::sort(thread_counts.begin(), thread_counts.end());
    thread_counts.erase(std::unique(thread_counts.begin(), thread_counts.end()), thread_counts.end());

    std::unique_ptr<Machine> machine;
    if (!options.skip_machine) {
        machine = std::make_unique<Machine>(dram_buffer_bytes(options), options.huge_pages, options.machine_seconds);
        Progress progress(Machine::measurements(thread_counts.size()));
        machine->measure_all(thread_counts, [&](const std::string& what) { progress.step(what); });
        progress.clear();
        show("\n" + machine_text(*machine));
    }

    std::vector<Row> rows;
    bool failed = false;
    if (!problems.empty()) {
        Comparison comparison(options, machine.get());
        Progress progress(static_cast<int>(problems.size()));
        Table table(options);
        for (const Problem& problem : problems) {
            progress.step(describe(problem));
            rows.push_back(comparison.measure(problem));
            failed = failed || !rows.back().error.empty();
            progress.clear();
            show(table.add(rows.back()));
        }
        show(table.legend());
    }
    if (!options.json.empty()) {
        const std::string text = to_json(options, machine.get(), rows);
        std::FILE* out = json_file ? json_file : stdout;
        bool written = std::fwrite(text.data(), 1, text.size(), out) == text.size();
        if (json_file) written = std::fclose(json_file) == 0 && written;
        if (!written) throw std::runtime_error("--json: could not write all of '" + options.json + "'");
    }
    return failed ? 1 : 0;
}

}  // namespace

int main(int count, char** values) {
    try {
        const std::vector<std::string> arguments(values + 1, values + count);
        const auto asked = [&](const char* option) {
            return std::find(arguments.begin(), arguments.end(), option) != arguments.end();
        };
        if (bench::cuda::device_of(arguments) >= 0 && !asked("--help") && !asked("--version"))
            return bench::cuda::run(bench::cuda::parse_options(arguments));
        const bench::Options options =
            bench::parse_options(asked("--help") ? std::vector<std::string>{"--help"} : arguments);
        if (options.help) {
            std::fputs(bench::help_text().c_str(), stdout);
            return 0;
        }
        if (options.version) {
            std::printf("%s\n", bench::build_text().c_str());
            return 0;
        }
        if (options.suite == "hadamard") return bench::run_hadamard(options);
        return options.worker ? bench::serve() : run(options);
    } catch (const std::exception& problem) {
        std::fprintf(stderr, "fastffn-bench: %s\n", problem.what());
        return 2;
    }
}
