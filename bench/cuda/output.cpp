#include "output.hpp"

#include <cmath>

#include "commit.hpp"
#include "fastffn/fastffn.hpp"
#include "json.hpp"
#include "text.hpp"

namespace bench::cuda {

namespace {

std::string percent(double share) { return format_digits(100 * share, 100 * share < 10 ? 2 : 3) + " %"; }

std::string amount(const Bar& bar, double value) {
    return bar.of == Bar::Of::speed ? format_digits(value, 3) + "x" : percent(value);
}

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// What is asked, as people say it: 80 %, 3.2x.
std::string plain(double value) {
    std::string text = format_digits(value, 3);
    if (text.find('.') == std::string::npos) return text;
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
}

const char* bar_kind(Bar::Of of) {
    const char* names[] = {"of_copy", "of_peak", "speed", "memory_saved"};
    return names[static_cast<int>(of)];
}

void result_json(Json& json, const Result& result) {
    json.begin_object().field("name", result.name);
    if (!result.problem.empty()) json.field("problem", result.problem);
    if (result.times.samples > 0) {
        json.field("median_s", result.times.median).field("p25_s", result.times.p25).field("p75_s", result.times.p75);
        json.field("min_s", result.times.minimum).field("samples", result.times.samples);
        json.field("bytes", result.bytes).field("gb_per_s", result.bytes_per_second() * 1e-9);
        if (result.operations > 0)
            json.field("operations", result.operations).field("tflops", result.operations_per_second() * 1e-12);
        if (result.memory_bytes >= 0) json.field("memory_bytes", result.memory_bytes);
        json.field("weight_sets", result.variants).field("calls", result.calls).field("graph", result.is_graph);
        json.field("error", result.error);
        if (result.ratio > 0) json.field("ratio", result.ratio);
    }
    json.end_object();
}

void case_json(Json& json, const Case& row) {
    json.field("name", row.name()).field("part", row.part).field("op", kind_name(row.kind));
    json.field("format", row.format.name()).field("x", fastffn::dtype_name(row.dtype)).field("tokens", row.tokens);
    json.field("in", row.in);
    if (row.out) json.field("out", row.out);
    if (row.hidden) json.field("hidden", row.hidden);
    if (row.experts) json.field("experts", row.experts).field("picks", row.picks);
    if (row.depth) json.field("depth", row.depth);
    if (row.rank) json.field("rank", row.rank);
    json.field("gated", row.gated);
}

}  // namespace

std::string bar_text(const Bar& bar, const Case& row) {
    switch (bar.of) {
        case Bar::Of::bandwidth: return "≥ " + plain(100 * bar.at_least) + " %" + " of copy";
        case Bar::Of::peak: return "≥ " + plain(100 * bar.at_least) + " %" + " of peak";
        case Bar::Of::speed:
            return "≥ " + plain(bar.at_least) + "x " + row.rivals.at(static_cast<std::size_t>(bar.rival)).name();
        case Bar::Of::memory:
            return "≥ " + plain(100 * bar.at_least) + " %" + " less memory than " +
                   row.rivals.at(static_cast<std::size_t>(bar.rival)).name();
    }
    return "";
}

std::string device_text(const Session& session, const std::vector<Ceiling>& ceilings) {
    const DeviceFacts& facts = session.facts();
    std::string text = std::string("fastffn-bench ") + fastffn::version() + " (commit " BENCH_COMMIT ")\n";
    text += std::string("device     ") + facts.name + ", sm_" + std::to_string(facts.major) +
            std::to_string(facts.minor) + ", " + std::to_string(facts.multiprocessors) + " multiprocessors, L2 " +
            format_bytes(static_cast<double>(facts.l2_bytes)) + ", driver CUDA " + version_text(facts.driver) +
            ", runtime " + version_text(facts.runtime) + "\n";
    if (facts.emulated) text += "           a CPU in place of a GPU: the times mean nothing\n";
    text += "plugin     " + fastffn::cuda_report().path + " for " + fastffn::cuda_report().architectures + "\n";
    const char* names[] = {"cuBLASLt   ", "cuSPARSELt "};
    for (Library library : {Library::cublaslt, Library::cusparselt}) {
        const LibraryState& state = session.library(library);
        text += names[static_cast<int>(library)];
        text += state.found ? state.text : "rows have no such baseline: " + state.text;
        text += "\n";
    }
    for (const Ceiling& entry : ceilings) {
        text += pad_right(entry.what, 11);
        if (entry.rate <= 0) text += "not measured: " + entry.problem;
        else if (entry.what == "copy") text += format_rate(entry.rate) + "B/s, read and written bytes counted";
        else text += format_rate(entry.rate) + (entry.what == "int8" ? "OP/s" : "FLOP/s") + ", cuBLASLt";
        text += "\n";
    }
    return text;
}

std::string row_text(const Row& row) {
    std::string text = row.asked.name() + "\n";
    if (row.ours.times.samples == 0) {
        text += "    failed: " + row.ours.problem + "\n";
    } else {
        text += "    " + pad_right(format_time(row.ours.times.median), 10);
        text += format_rate(row.ours.bytes_per_second()) + "B/s";
        if (row.of_copy >= 0) text += " (" + percent(row.of_copy) + " of copy)";
        if (row.ours.operations > 0) text += ", " + format_rate(row.ours.operations_per_second()) + "FLOP/s";
        if (row.of_peak >= 0) text += " (" + percent(row.of_peak) + " of peak)";
        if (!row.ours.is_graph) text += ", no graph";
        text += "\n";
        if (!row.ours.problem.empty()) text += "    failed: " + row.ours.problem + "\n";
    }
    for (const Result& rival : row.rivals) {
        text += "    vs " + pad_right(rival.name, 20);
        if (!rival.problem.empty()) text += " –  " + rival.problem;
        else if (rival.ratio > 0)
            text += " " + format_digits(rival.ratio, 3) + "x  (" + format_time(rival.times.median) + ")";
        else text += " (" + format_time(rival.times.median) + ")";
        text += "\n";
    }
    for (const Verdict& verdict : row.verdicts) {
        text += "    asked " + bar_text(verdict.bar, row.asked) + ": ";
        if (!verdict.known) text += "not known\n";
        else text += amount(verdict.bar, verdict.measured) + (verdict.met ? ", met\n" : ", MISSED\n");
    }
    return text;
}

std::string legend(const std::vector<Row>& rows) {
    int asked = 0, met = 0, unknown = 0, failed = 0;
    for (const Row& row : rows) {
        failed += !row.ours.problem.empty();
        for (const Verdict& verdict : row.verdicts) {
            ++asked;
            met += verdict.met;
            unknown += !verdict.known;
        }
    }
    return "\n" + std::to_string(rows.size()) + " rows, " + std::to_string(failed) + " failed; of " +
           std::to_string(asked) + " bars " + std::to_string(met) + " met, " + std::to_string(asked - met - unknown) +
           " missed, " + std::to_string(unknown) +
           " not known\n"
           "B/s: packed weights, x and y once each, over the median time; FLOP/s: a multiply and an add are two.\n"
           "vs: time of the other over ours, paired and in turns; above 1 ours is faster. Decode calls find their "
           "weights "
           "outside L2.\n";
}

std::string to_json(const Session& session, const Options& options, const std::vector<Ceiling>& ceilings,
                    const std::vector<Row>& rows) {
    const DeviceFacts& facts = session.facts();
    Json json;
    json.begin_object().field("schema", "fastffn-bench-device-1");
    json.field("fastffn", fastffn::version()).field("commit", BENCH_COMMIT).field("suite", options.suite);
    json.key("device").begin_object().field("name", facts.name);
    json.field("compute_capability", std::to_string(facts.major) + "." + std::to_string(facts.minor));
    json.field("multiprocessors", facts.multiprocessors).field("memory_bytes", facts.memory_bytes);
    json.field("l2_bytes", facts.l2_bytes).field("driver_cuda", version_text(facts.driver));
    json.field("runtime_cuda", version_text(facts.runtime)).field("emulated", facts.emulated != 0).end_object();
    json.field("plugin_architectures", fastffn::cuda_report().architectures);
    json.key("libraries").begin_object();
    const char* names[] = {"cublaslt", "cusparselt"};
    for (Library library : {Library::cublaslt, Library::cusparselt}) {
        const LibraryState& state = session.library(library);
        json.key(names[static_cast<int>(library)]).begin_object();
        json.field("found", state.found).field("text", state.text).end_object();
    }
    json.end_object().key("ceilings").begin_object();
    for (const Ceiling& entry : ceilings) {
        json.key(entry.what).begin_object();
        if (entry.rate > 0) json.field("per_second", entry.rate);
        else json.field("problem", entry.problem);
        json.end_object();
    }
    json.end_object();
    json.field("row_seconds", options.row_seconds).field("rounds", options.rounds);
    json.key("rows").begin_array();
    for (const Row& row : rows) {
        json.begin_object();
        case_json(json, row.asked);
        json.key("ours");
        result_json(json, row.ours);
        if (row.of_copy >= 0) json.field("of_copy", row.of_copy);
        if (row.of_peak >= 0) json.field("of_peak", row.of_peak);
        json.key("rivals").begin_array();
        for (const Result& rival : row.rivals) result_json(json, rival);
        json.end_array().key("asked").begin_array();
        for (const Verdict& verdict : row.verdicts) {
            json.begin_object().field("of", bar_kind(verdict.bar.of)).field("at_least", verdict.bar.at_least);
            if (verdict.bar.rival >= 0)
                json.field("rival", row.asked.rivals.at(static_cast<std::size_t>(verdict.bar.rival)).name());
            if (verdict.known) json.field("measured", verdict.measured).field("met", verdict.met);
            else json.key("measured").null().key("met").null();
            json.end_object();
        }
        json.end_array().end_object();
    }
    json.end_array().end_object();
    return json.text() + "\n";
}

}  // namespace bench::cuda
