#include "report.hpp"

#include <algorithm>

#include "commit.hpp"
#include "fastffn/fastffn.hpp"
#include "json.hpp"
#include "text.hpp"

namespace bench {

namespace {

std::string compiler() {
#if defined(__clang__)
    return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
    return std::string("gcc ") + __VERSION__;
#else
    return "unknown";
#endif
}

std::string gigabytes(double bytes_per_second) { return format_digits(bytes_per_second * 1e-9, 3); }

std::string title_of(const Problem& problem) {
    std::string title =
        std::string(op_name(problem.op)) + "  " + std::to_string(problem.d_model) + "x" + std::to_string(problem.d_ff);
    if (problem.op == Op::moe) {
        title += "  " + std::to_string(problem.experts) + " experts, " + std::to_string(problem.picks) +
                 " per token, " + routing_name(problem.routing);
    }
    if (problem.op == Op::fff) title += "  " + tree_name(problem);
    if (problem.op == Op::hybrid) {
        char share[32];
        std::snprintf(share, sizeof share, "%.1f%%", 100 * problem.zero_gates);
        title += "  " + problem.orders + ", " + share + " of the gates zero, " +
                 (problem.gate_first ? "gate first" : "dense order");
    }
    if (problem.op == Op::ffn || problem.op == Op::moe || problem.op == Op::fff) {
        title += std::string("  ") + fastffn::activation_name(problem.activation) + (problem.gated ? ", gated" : "");
    }
    if (problem.bias) title += ", biases";
    if (problem.multiplies() && problem.op != Op::moe && problem.op != Op::fff)
        title += problem.cold ? "  cold weights" : "  hot weights";
    return title;
}

std::string dtypes_of(const Problem& problem) {
    std::string text = fastffn::dtype_name(problem.x_dtype);
    if (problem.y_dtype != problem.x_dtype) text += std::string("→") + fastffn::dtype_name(problem.y_dtype);
    return text;
}

void timing_json(Json& json, const Timing& timing) {
    json.field("median_s", timing.median).field("min_s", timing.minimum);
    json.field("p25_s", timing.quarter).field("p75_s", timing.three_quarters).field("samples", timing.samples);
}

void machine_json(Json& json, const Machine& machine) {
    json.key("read_bandwidth").begin_array();
    for (const LevelRate& level : machine.levels()) {
        json.begin_object().field("level", level.level).field("threads", level.threads).field("bytes", level.bytes);
        json.field("best_gb_per_s", level.rate.best * 1e-9).field("median_gb_per_s", level.rate.median * 1e-9);
        json.end_object();
    }
    json.end_array().key("peaks").begin_array();
    for (const PeakRate& peak : machine.peaks()) {
        const char* names[] = {"f32", "bf16", "int8"};
        json.begin_object().field("numbers", names[static_cast<int>(peak.loop->numbers)]);
        json.field("isa", fastffn::isa_name(static_cast<fastffn::Isa>(peak.loop->isa)));
        json.field("instruction", peak.loop->what).field("threads", peak.threads);
        json.field("best_gops", peak.rate.best * 1e-9).field("median_gops", peak.rate.median * 1e-9).end_object();
    }
    json.end_array();
}

void row_json(Json& json, const Row& row) {
    const Problem& problem = row.problem;
    json.begin_object();
    json.field("op", op_name(problem.op)).field("d_model", problem.d_model).field("d_ff", problem.d_ff);
    if (problem.op == Op::moe) {
        json.field("experts", problem.experts).field("picks", problem.picks);
        json.field("routing", routing_name(problem.routing)).field("stack_bytes", row.prepared.stack_bytes);
    }
    if (problem.op == Op::fff) {
        json.field("depth", problem.depth()).field("leaf", problem.leaf);
        json.field("stack_bytes", row.prepared.stack_bytes);
    }
    json.field("gated", problem.gated).field("bias", problem.bias);
    json.field("activation", fastffn::activation_name(problem.activation));
    json.field("format", problem.format.name());
    json.field("isa_asked", problem.isa.empty() ? "best" : problem.isa.c_str());
    json.field("x", fastffn::dtype_name(problem.x_dtype)).field("y", fastffn::dtype_name(problem.y_dtype));
    json.field("weights", problem.cold ? "cold" : "hot").field("threads", problem.threads);
    json.field("tokens", problem.tokens);
    if (!row.error.empty()) {
        json.field("error", row.error).end_object();
        return;
    }
    json.field("kernel", row.prepared.kernel).field("weight_bytes", row.prepared.weight_bytes);
    json.field("workspace_bytes", row.prepared.workspace_bytes);
    json.field("rounds", row.rounds).field("other_cores", row.other_cores);
    timing_json(json, row.timing);
    json.field("gb_per_s", row.weight_rate() * 1e-9);
    if (problem.multiplies()) json.field("gops", row.operation_rate() * 1e-9);
    if (!row.bound.empty()) {
        json.key("roof").begin_object().field("bound", row.bound).field("peak_gops", row.peak * 1e-9);
        json.field("gb_per_s", row.bandwidth * 1e-9).field("seconds", row.roof_seconds);
        json.field("percent", row.percent).end_object();
    }
    if (!row.baseline.empty()) {
        json.key("baseline").begin_object().field("name", row.baseline).field("kernel", row.baseline_kernel);
        timing_json(json, row.baseline_timing);
        json.field("ratio", row.ratio).end_object();
    }
    json.end_object();
}

}  // namespace

std::string build_text() {
    return std::string("fastffn-bench ") + fastffn::version() + " (commit " BENCH_COMMIT ", " + compiler() + ")";
}

std::string environment_text() {
    const fastffn::CpuReport& report = fastffn::cpu_report();
    std::string text = build_text() + "\n";
    text += "CPU       " + (report.brand.empty() ? "unknown" : report.brand) + "; caches per core L1d " +
            format_bytes(static_cast<double>(cache_bytes(1))) + ", L2 " +
            format_bytes(static_cast<double>(cache_bytes(2))) + "; L3 " +
            format_bytes(static_cast<double>(cache_bytes(3))) + "\n";
    text += std::string("kernels   ") + fastffn::isa_name(report.chosen) + " (" + report.reason + ")\n";
    text += std::string("threads   ") + std::to_string(fastffn::default_threads()) + " by default, " +
            fastffn::threading_backend() + "\n";
    return text;
}

std::string machine_text(const Machine& machine) {
    std::vector<int> threads;
    for (const LevelRate& level : machine.levels()) {
        if (std::find(threads.begin(), threads.end(), level.threads) == threads.end()) threads.push_back(level.threads);
    }
    constexpr int name_width = 44, width = 19;
    const auto heads = [&](const std::string& name) {
        std::string line = pad_right(name, name_width);
        for (int count : threads) line += pad_left(count == 1 ? "1 thread" : std::to_string(count) + " threads", width);
        return line + "\n";
    };
    const auto cell = [&](const Rate& rate) {
        return pad_left(gigabytes(rate.best) + " (" + gigabytes(rate.median) + ")", width);
    };
    std::string text = heads("read bandwidth, GB/s: best (median)");
    std::vector<std::string> seen;
    for (const LevelRate& level : machine.levels()) {
        if (std::find(seen.begin(), seen.end(), level.level) != seen.end()) continue;
        seen.push_back(level.level);
        std::string name = "  " + pad_right(level.level, 6);
        std::string sizes, cells;
        for (const LevelRate& other : machine.levels()) {
            if (other.level != level.level) continue;
            const std::string size = format_bytes(static_cast<double>(other.bytes));
            if (sizes.empty() ||
                sizes.substr(sizes.rfind(", ") == std::string::npos ? 0 : sizes.rfind(", ") + 2) != size) {
                sizes += (sizes.empty() ? "" : ", ") + size;
            }
            cells += cell(other.rate);
        }
        text += pad_right(name + sizes, name_width) + cells + "\n";
    }
    text += heads("peak arithmetic, GFLOP/s or GOP/s");
    for (const PeakLoop* loop : Machine::peak_loops()) {
        const char* names[] = {"f32", "bf16", "int8"};
        std::string line = pad_right(
            std::string("  ") + pad_right(names[static_cast<int>(loop->numbers)], 6) + loop->what, name_width);
        bool any = false;
        for (int count : threads) {
            for (const PeakRate& peak : machine.peaks()) {
                if (peak.loop != loop || peak.threads != count) continue;
                line += cell(peak.rate);
                any = true;
            }
        }
        if (any) text += line + "\n";
    }
    return text;
}

Table::Table(const Options& options) : options_(options) {
    for (const Packing& format : options.formats)
        format_width_ = std::max(format_width_, static_cast<int>(format.name().size()));
    if (!options.has_baseline) return;
    baseline_ = "vs " + (options.baseline_dense ? "dense" : options.baseline_format.name());
    if (!options.baseline_isa.empty()) baseline_ += "/" + options.baseline_isa;
}

std::string Table::add(const Row& row) {
    const Problem& problem = row.problem;
    const int ratio_width = std::max(9, display_width(baseline_) + 2);
    std::string text;
    if (title_of(problem) != title_) {
        title_ = title_of(problem);
        text += "\n" + title_ + "\n";
        text += "  " + pad_right("format", format_width_) +
                " kernel               x      threads tokens     median        min    GB/s  GOP/s  limit    of roof";
        if (options_.has_baseline) text += pad_left(baseline_, ratio_width);
        text += "      memory\n";
    }
    std::string line = "  " + pad_right(problem.format.name(), format_width_) + " ";
    if (!row.error.empty()) {
        return text + line + (problem.isa.empty() ? "" : "(" + problem.isa + ") ") + "failed: " + row.error + "\n";
    }
    line += pad_right(row.prepared.kernel.empty() ? "–" : row.prepared.kernel, 20) + " ";
    line += pad_right(dtypes_of(problem), 6) + " " + pad_left(std::to_string(problem.threads), 7);
    line += pad_left(problem.tokens ? std::to_string(problem.tokens) : "–", 7);
    line += pad_left(format_time(row.timing.median), 11) + pad_left(format_time(row.timing.minimum), 11);
    line += pad_left(gigabytes(row.weight_rate()), 8);
    line += pad_left(problem.multiplies() ? gigabytes(row.operation_rate()) : "–", 7) + "  ";
    line += pad_right(row.bound.empty() ? "–" : row.bound, 8);
    line += pad_left(row.bound.empty() ? "–" : format_digits(row.percent, row.percent < 10 ? 2 : 3) + " %", 8);
    if (options_.has_baseline)
        line += pad_left(row.baseline.empty() ? "–" : format_digits(row.ratio, 3) + "x", ratio_width);
    line += pad_left(format_bytes(static_cast<double>(row.prepared.workspace_bytes)), 12);
    if (row.other_cores > options_.quiet_limit) {
        line += " *";
        any_noisy_ = true;
    }
    return text + line + "\n";
}

std::string Table::legend() const {
    std::string text =
        "\nGB/s: packed weight bytes over time (moe: of the experts in use; pack, unpack: bytes read and written). "
        "GOP/s: a multiply and an add "
        "are two.\n"
        "of roof: median against the faster-than-possible call that only computes at the kernel's peak, or only reads "
        "its\n"
        "weights at the bandwidth measured for a buffer of their size (cold: DRAM); the slower of the two is the "
        "limit.\n"
        "memory: workspace that one call takes beyond its arguments.\n";
    if (options_.has_baseline)
        text += "vs: time of the baseline over ours, paired and interleaved; above 1 ours is faster.\n";
    if (any_noisy_) text += "*: other programs kept this machine busy; do not trust these times.\n";
    return text;
}

std::string to_json(const Options& options, const Machine* machine, const std::vector<Row>& rows) {
    const fastffn::CpuReport& report = fastffn::cpu_report();
    Json json;
    json.begin_object();
    json.field("fastffn", fastffn::version()).field("commit", BENCH_COMMIT).field("compiler", compiler());
    json.key("cpu").begin_object().field("vendor", report.vendor).field("brand", report.brand);
    json.field("isa_found", fastffn::isa_name(report.found)).field("isa_chosen", fastffn::isa_name(report.chosen));
    json.field("isa_reason", report.reason);
    json.field("l1d_bytes", cache_bytes(1)).field("l2_bytes", cache_bytes(2)).field("l3_bytes", cache_bytes(3));
    json.end_object();
    json.field("default_threads", fastffn::default_threads()).field("threading", fastffn::threading_backend());
    json.field("suite", options.suite).field("cold_bytes", options.cold_bytes).field("huge_pages", options.huge_pages);
    json.field("row_seconds", options.row_seconds).field("rounds", options.rounds);
    if (machine) {
        json.key("machine").begin_object();
        machine_json(json, *machine);
        json.end_object();
    }
    json.key("rows").begin_array();
    for (const Row& row : rows) row_json(json, row);
    json.end_array().end_object();
    return json.text() + "\n";
}

}  // namespace bench
