#include "measure.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "stats.hpp"

namespace bench::cuda {

namespace {

// A contender with its recording, and what it took in each round.
struct Turn {
    Contender contender;
    std::unique_ptr<Recording> recording;
    int calls = 1, times = 1;  // calls in the recording; how often it runs in one sample
    std::vector<std::vector<double>> rounds;

    void round() { rounds.push_back({recording->seconds(times) / (times * calls)}); }
};

// Decode calls are short: a recording holds some of each set of weights, so that its start and end weigh little.
constexpr int fewest_decode_calls = 24;

void prepare(const Session& session, const Options& options, bool is_decode, Turn* turn) {
    const int variants = turn->contender.variants;
    if (is_decode && !session.facts().emulated)
        turn->calls = variants * std::max(1, (fewest_decode_calls + variants - 1) / variants);
    else turn->calls = variants;
    turn->recording = std::make_unique<Recording>(session, [turn](void* stream) {
        for (int i = 0; i < turn->calls; ++i) turn->contender.call(i % turn->contender.variants, stream);
    });
    // Until the clocks are up, and to learn how long it takes.
    double last = 0, spent = 0;
    do {
        last = std::max(turn->recording->seconds(), 1e-7);
        spent += last;
    } while (spent < 0.25 * options.row_seconds);
    turn->times = static_cast<int>(std::clamp(options.row_seconds / options.rounds / last, 1.0, 2000.0));
    if (session.facts().emulated) turn->times = 1;
}

Times times_of(const std::vector<std::vector<double>>& rounds) {
    const std::vector<double> samples = flatten(rounds);
    return {median(samples), quantile(samples, 0.25), quantile(samples, 0.75), minimum(samples),
            static_cast<int>(samples.size())};
}

Result finish(const Turn& turn) {
    Result result;
    const Contender& contender = turn.contender;
    result.name = contender.name;
    result.times = times_of(turn.rounds);
    result.bytes = contender.bytes;
    result.operations = contender.operations;
    result.memory_bytes = contender.memory_bytes;
    result.variants = contender.variants;
    result.calls = turn.calls;
    result.is_graph = turn.recording->is_graph();
    result.error = contender.error ? contender.error() : 0;
    if (!(result.error <= largest_error)) result.problem = "wrong results: " + std::to_string(result.error) + " off";
    return result;
}

Ceiling product_ceiling(const Session& session, const Options& options, Element element, const std::string& what) {
    Ceiling result{what, 0, ""};
    Case square;
    square.in = square.out = square.tokens = options.tiny ? 64 : 8192;
    square.tokens = options.tiny ? 70 : 8192;
    try {
        Turn turn;
        turn.contender = make_rival(session, square, {Rival::What::cublaslt, element, {}});
        prepare(session, options, false, &turn);
        for (int i = 0; i < options.rounds; ++i) turn.round();
        result.rate = turn.contender.operations / median(flatten(turn.rounds));
    } catch (const std::exception& problem) {
        result.problem = problem.what();
    }
    return result;
}

}  // namespace

std::vector<Ceiling> measure_ceilings(const Session& session, const Options& options) {
    std::vector<Ceiling> ceilings;
    Ceiling copy{"copy", 0, ""};
    try {
        Case large;
        large.kind = Kind::hadamard;
        large.in = 1024;
        const std::int64_t bytes =
            options.tiny ? 1 << 20 : std::min<std::int64_t>(std::int64_t{1} << 30, session.facts().free_bytes / 8);
        large.tokens = bytes / (2 * large.in);
        Turn turn;
        turn.contender = make_rival(session, large, {Rival::What::copy, Element::bf16, {}});
        prepare(session, options, false, &turn);
        for (int i = 0; i < options.rounds; ++i) turn.round();
        copy.rate = turn.contender.bytes / median(flatten(turn.rounds));
    } catch (const std::exception& problem) {
        copy.problem = problem.what();
    }
    ceilings.push_back(copy);
    ceilings.push_back(product_ceiling(session, options, Element::bf16, "bf16"));
    ceilings.push_back(product_ceiling(session, options, Element::i8, "int8"));
    return ceilings;
}

double ceiling(const std::vector<Ceiling>& ceilings, const std::string& what) {
    for (const Ceiling& entry : ceilings)
        if (entry.what == what) return entry.rate;
    return 0;
}

Row measure_row(const Session& session, const Case& asked, const std::vector<Ceiling>& ceilings,
                const Options& options) {
    Row row;
    row.asked = asked;
    std::vector<Turn> turns(asked.rivals.size() + 1);
    std::vector<std::string> problems(turns.size());
    for (std::size_t i = 0; i < turns.size(); ++i) {
        try {
            turns[i].contender = i == 0 ? make_ours(session, asked) : make_rival(session, asked, asked.rivals[i - 1]);
            prepare(session, options, asked.is_decode(), &turns[i]);
        } catch (const std::exception& problem) {
            problems[i] = problem.what();
        }
    }
    // Turns, in changing order: drift of the clocks meets all alike.
    const int rounds = options.tiny ? std::min(options.rounds, 2) : options.rounds;
    for (int round = 0; round < rounds; ++round)
        for (std::size_t i = 0; i < turns.size(); ++i) {
            const std::size_t at = round % 2 ? turns.size() - 1 - i : i;
            try {
                if (problems[at].empty()) turns[at].round();
            } catch (const std::exception& problem) {
                problems[at] = problem.what();
            }
        }
    for (std::size_t i = 0; i < turns.size(); ++i) {
        Result result;
        if (problems[i].empty()) {
            try {
                result = finish(turns[i]);
            } catch (const std::exception& problem) {
                problems[i] = problem.what();
            }
        }
        if (!problems[i].empty()) result.problem = problems[i];
        result.name = i == 0 ? "fastffn" : asked.rivals[i - 1].name();
        if (i == 0) {
            row.ours = result;
        } else {
            if (row.ours.problem.empty() && result.problem.empty())
                result.ratio = paired_ratio(turns[0].rounds, turns[i].rounds);
            row.rivals.push_back(result);
        }
    }
    if (row.ours.problem.empty()) {
        const double copy = ceiling(ceilings, "copy");
        const double peak = ceiling(ceilings, turns[0].contender.numbers == Element::i8 ? "int8" : "bf16");
        if (copy > 0) row.of_copy = row.ours.bytes_per_second() / copy;
        if (peak > 0 && row.ours.operations > 0) row.of_peak = row.ours.operations_per_second() / peak;
    }
    row.verdicts = judge(row);
    return row;
}

std::vector<Verdict> judge(const Row& row) {
    std::vector<Verdict> verdicts;
    for (const Bar& bar : row.asked.bars) {
        Verdict verdict{bar, 0, false, false};
        if (bar.of == Bar::Of::bandwidth || bar.of == Bar::Of::peak) {
            verdict.measured = bar.of == Bar::Of::peak ? row.of_peak : row.of_copy;
            verdict.known = row.ours.problem.empty() && verdict.measured >= 0;
        } else {
            const Result& rival = row.rivals.at(static_cast<std::size_t>(bar.rival));
            verdict.known = row.ours.problem.empty() && rival.problem.empty();
            if (bar.of == Bar::Of::speed) {
                verdict.measured = rival.ratio;
            } else {
                verdict.known = verdict.known && row.ours.memory_bytes >= 0 && rival.memory_bytes > 0;
                if (verdict.known) verdict.measured = 1 - row.ours.memory_bytes / rival.memory_bytes;
            }
        }
        if (!verdict.known) verdict.measured = 0;
        verdict.met = verdict.known && verdict.measured >= bar.at_least;
        verdicts.push_back(verdict);
    }
    return verdicts;
}

}  // namespace bench::cuda
