#include "compare.hpp"

#include <algorithm>
#include <exception>

#include "load.hpp"
#include "stats.hpp"
#include "team.hpp"
#include "worker.hpp"

namespace bench {

namespace {

constexpr int rounds_at_least = 3;
constexpr double patience = 3;  // a row may take this many times its planned seconds while waiting for quiet rounds

Timing summarise(const std::vector<std::vector<double>>& rounds) {
    const std::vector<double> all = flatten(rounds);
    return {median(all), minimum(all), quantile(all, 0.25), quantile(all, 0.75), static_cast<int>(all.size())};
}

std::vector<std::vector<double>> chosen(const std::vector<std::vector<double>>& rounds, const std::vector<int>& which) {
    std::vector<std::vector<double>> kept;
    for (int index : which) kept.push_back(rounds[static_cast<std::size_t>(index)]);
    return kept;
}

// "" and the name of the level in use are the same process.
std::string resolved(const std::string& isa) {
    return isa == fastffn::isa_name(fastffn::cpu_report().chosen) ? "" : isa;
}

}  // namespace

double Row::weight_rate() const {
    double bytes = static_cast<double>(prepared.weight_bytes);
    if (!problem.multiplies()) bytes += 4.0 * static_cast<double>(problem.parameters());
    return bytes / timing.median;
}

double Row::operation_rate() const { return problem.operations() / timing.median; }

int isa_of_kernel(const std::string& kernel) {
    const std::string tag = kernel.substr(kernel.find('/') + 1);
    if (tag == "avx512") return static_cast<int>(fastffn::Isa::avx512);
    for (int isa = 0; isa < fastffn::isa_count; ++isa) {
        if (tag == fastffn::isa_name(static_cast<fastffn::Isa>(isa))) return isa;
    }
    return 0;
}

Numbers numbers_of(const Packing& packing) {
    const fastffn::Format format = packing.format == fastffn::Format::sparse24 ? packing.dense() : packing.format;
    if (format == fastffn::Format::bf16) return Numbers::bf16;
    for (const fastffn::PackOption& option : packing.options)
        if (option.name == "act" && option.value.text() == "bf16") return Numbers::bf16;
    const bool codes = format == fastffn::Format::ternary || format == fastffn::Format::int4;  // times int8 activations
    return codes || format == fastffn::Format::int8 ? Numbers::int8 : Numbers::f32;
}

Contender& Comparison::contender(const std::string& isa, Role role) {
    const std::string name = resolved(isa);
    std::unique_ptr<Contender>& found = contenders_[{name, role}];
    if (!found) {
        if (name.empty()) {
            found = std::make_unique<Runner>(options_);
        } else {
            found = std::make_unique<Worker>(name, options_);
        }
    }
    return *found;
}

void Comparison::set_roof(Row* row) {
    const Problem& problem = row->problem;
    if (!machine_ || !problem.multiplies()) return;
    row->peak = machine_
                    ->peak_rate(problem.op == Op::fff ? Numbers::f32 : numbers_of(problem.format),
                                isa_of_kernel(row->prepared.kernel), problem.threads)
                    .best;
    // Hot weights: what this machine reads from a buffer of just their size, wherever that may lie.
    const std::int64_t bytes = row->prepared.weight_bytes;
    // A moe's experts lie where all experts together do, as calls use others and others.
    const std::int64_t home = problem.op == Op::moe || problem.op == Op::fff ? row->prepared.stack_bytes : bytes;
    row->bandwidth =
        (problem.cold ? machine_->dram_rate(problem.threads) : machine_->read_rate(home, problem.threads)).best;
    if (row->peak <= 0 || row->bandwidth <= 0) return;
    const double compute = problem.operations() / row->peak;
    const double memory = static_cast<double>(bytes) / row->bandwidth;
    row->bound = compute >= memory ? "compute" : problem.cold ? "DRAM" : machine_->level_of(home, problem.threads);
    row->roof_seconds = std::max(compute, memory);
    row->percent = 100 * row->roof_seconds / row->timing.median;
}

Row Comparison::measure(const Problem& problem) {
    Row row;
    row.problem = problem;
    try {
        Contender& ours = contender(problem.isa, Role::ours);
        row.prepared = ours.prepare(problem);

        Contender* other = nullptr;
        if (options_.has_baseline) {
            Problem baseline = problem;
            if (problem.op == Op::fff) baseline.op = Op::ffn;  // of the same width
            if (problem.op == Op::hybrid) {
                baseline.gate_first = false;
                if (problem.against == "panels") baseline.orders = "panels+panels";
            } else {
                baseline.format = options_.baseline_dense ? Packing(problem.format.dense()) : options_.baseline_format;
            }
            if (!options_.baseline_isa.empty()) baseline.isa = options_.baseline_isa;
            const bool same_isa = resolved(baseline.isa) == resolved(problem.isa);
            if (!(baseline.format == problem.format) || !same_isa || baseline.op != problem.op ||
                problem.op == Op::hybrid) {
                other = &contender(baseline.isa, Role::baseline);
                row.baseline_kernel = other->prepare(baseline).kernel;
                row.baseline = baseline.format.name();
                if (problem.op == Op::hybrid) row.baseline = baseline.orders + " densely";
                if (baseline.op != problem.op) row.baseline = std::string(op_name(baseline.op)) + " " + row.baseline;
                if (!options_.baseline_isa.empty()) row.baseline += "/" + options_.baseline_isa;
            }
        }

        std::vector<std::vector<double>> our_rounds, other_rounds;
        std::vector<double> loads;
        std::vector<int> processes;
        for (const auto& entry : contenders_) {
            if (entry.second && entry.second->process()) processes.push_back(entry.second->process());
        }
        const double slice = options_.row_seconds / options_.rounds;
        const double planned = options_.row_seconds * (other ? 2 : 1);
        const double start = seconds_now();
        LoadMeter meter;
        int quiet = 0;
        for (int round = 0; quiet < options_.rounds; ++round) {
            if (round >= rounds_at_least && seconds_now() - start > patience * planned) break;
            const double round_start = seconds_now();
            meter.start(processes);
            const bool first = round % 2 == 0;  // take turns in going first
            if (first) our_rounds.push_back(ours.burst(slice));
            if (other) other_rounds.push_back(other->burst(slice));
            if (!first) our_rounds.push_back(ours.burst(slice));
            // Too short a span cannot tell: 10 ms ticks.
            loads.push_back(seconds_now() - round_start >= 0.08 ? meter.other_cores() : 0);
            quiet += loads.back() <= options_.quiet_limit;
        }
        const std::vector<int> kept = quiet_rounds(loads, options_.quiet_limit, rounds_at_least);
        our_rounds = chosen(our_rounds, kept);
        row.rounds = static_cast<int>(kept.size());
        for (int index : kept) row.other_cores += loads[static_cast<std::size_t>(index)] / row.rounds;
        row.timing = summarise(our_rounds);
        if (other) {
            other_rounds = chosen(other_rounds, kept);
            row.baseline_timing = summarise(other_rounds);
            row.ratio = paired_ratio(our_rounds, other_rounds);
        }
        set_roof(&row);
    } catch (const std::exception& failure) {
        row.error = failure.what();
    }
    return row;
}

}  // namespace bench
