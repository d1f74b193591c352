// Checks of what fastffn-bench computes itself: statistics, parsing, rows, JSON, roofs. Not of any speed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "compare.hpp"
#include "json.hpp"
#include "machine.hpp"
#include "options.hpp"
#include "routing.hpp"
#include "stats.hpp"
#include "text.hpp"

namespace {

using namespace bench;

int failures = 0;

void report(bool holds, const char* condition, int line) {
    if (holds) return;
    ++failures;
    std::printf("line %d: does not hold: %s\n", line, condition);
}
#define CHECK(condition) report((condition), #condition, __LINE__)

bool near(double a, double b) { return std::fabs(a - b) <= 1e-12 * (std::fabs(a) + std::fabs(b)); }

// The message of the error that the options give; empty if they are fine.
std::string refusal(const std::vector<std::string>& arguments) {
    try {
        parse_options(arguments);
    } catch (const std::exception& problem) {
        return problem.what();
    }
    return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void test_statistics() {
    CHECK(std::isnan(median({})));
    CHECK(near(median({3}), 3));
    CHECK(near(median({4, 1, 3, 2}), 2.5));
    CHECK(near(median({9, 1, 5}), 5));
    // numpy.quantile([1, 2, 4, 8, 16], 0.3) = 2.4
    CHECK(near(quantile({16, 1, 8, 2, 4}, 0.3), 2.4));
    CHECK(near(quantile({16, 1, 8, 2, 4}, 1.0), 16));
    CHECK(near(minimum({16, 1, 8}), 1));
    CHECK(flatten({{1, 2}, {}, {3}}) == (std::vector<double>{1, 2, 3}));

    // A machine that slows down threefold in the last round, for both: the ratio of each round is 2.
    CHECK(near(paired_ratio({{1, 1, 1}, {1}, {3, 3}}, {{2}, {2, 2}, {6}}), 2));
    // The median of medians: one wild sample moves nothing.
    CHECK(near(paired_ratio({{1, 1, 50}, {1}, {1}}, {{4}, {4}, {4}}), 4));
    CHECK(std::isnan(paired_ratio({}, {{1}})));

    CHECK(quiet_rounds({0.0, 0.9, 0.1, 0.2}, 0.15, 1) == (std::vector<int>{0, 2}));
    CHECK(quiet_rounds({0.8, 0.9, 0.7, 0.6}, 0.15, 2) == (std::vector<int>{2, 3}));  // the quietest of none quiet
    CHECK(quiet_rounds({0.5}, 0.15, 3) == (std::vector<int>{0}));
    CHECK(quiet_rounds({}, 0.15, 3).empty());
}

void test_text() {
    std::int64_t number = -1, other = -1;
    CHECK(parse_int("1024", &number) && number == 1024);
    CHECK(!parse_int("", &number) && !parse_int("-1", &number) && !parse_int("1e3", &number) &&
          !parse_int(" 1", &number));
    CHECK(!parse_int("9999999999999999999", &number) && number == 1024);
    CHECK(parse_bytes("1G", &number) && number == 1073741824);
    CHECK(parse_bytes("1.5MiB", &number) && number == 1572864);
    CHECK(parse_bytes("64KB", &number) && number == 65536);
    CHECK(parse_bytes("48k", &number) && number == 49152);
    CHECK(parse_bytes("512", &number) && number == 512);
    CHECK(!parse_bytes("G", &number) && !parse_bytes("1X", &number) && !parse_bytes("1.2.3M", &number));
    CHECK(!parse_bytes("1GiBs", &number) && !parse_bytes("9999999T", &number));
    double seconds = 0;
    CHECK(parse_seconds("0.5", &seconds) && near(seconds, 0.5));
    CHECK(parse_seconds("200ms", &seconds) && near(seconds, 0.2));
    CHECK(parse_seconds("2s", &seconds) && near(seconds, 2));
    CHECK(!parse_seconds("2h", &seconds) && !parse_seconds("s", &seconds));
    CHECK(parse_shape("768x3072", &number, &other) && number == 768 && other == 3072);
    CHECK(!parse_shape("768", &number, &other) && !parse_shape("768x", &number, &other));
    CHECK(!parse_shape("0x5", &number, &other) && !parse_shape("7x3x2", &number, &other));
    CHECK(split("a,b,,c", ',') == (std::vector<std::string>{"a", "b", "", "c"}));
    CHECK(split("a,", ',') == (std::vector<std::string>{"a", ""}));
    CHECK(split("", ',').empty());

    CHECK(format_time(0.0123) == "12.3 ms");
    CHECK(format_time(1.5e-6) == "1.50 µs");
    CHECK(format_time(999.9e-6) == "1.00 ms");  // rounds into the next unit
    CHECK(format_time(4.2e-9) == "4.20 ns");
    CHECK(format_time(75) == "75.0 s");
    CHECK(format_rate(2.5e9) == "2.50 G" && format_rate(12) == "12.0 ");
    CHECK(format_bytes(1536) == "1.50 KiB" && format_bytes(64) == "64 B" && format_bytes(8388608) == "8.00 MiB");
    CHECK(format_digits(0, 3) == "0.00" && format_digits(123456, 3) == "123456");
    CHECK(display_width("µs –") == 4);
    CHECK(pad_left("µs", 4) == "  µs" && pad_right("ab", 4) == "ab  " && pad_left("long", 2) == "long");
}

void test_options() {
    const Options plain = parse_options({});
    CHECK(expand(plain).size() == 4);  // 1, 16, 128 and 1024 tokens

    const Options many =
        parse_options({"--op", "ffn", "--shape=768x3072,64x96", "--activation", "silu", "--gated", "--format",
                       "bf16,int8", "--tokens", "1,7", "--threads", "1,2", "--hot", "--cold"});
    const std::vector<Problem> rows = expand(many);
    CHECK(rows.size() == 2 * 2 * 2 * 2 * 2);
    CHECK(rows[0].gated && rows[0].activation == fastffn::Activation::silu && !rows[0].cold);
    CHECK(rows[0].x_dtype == fastffn::DType::bf16 && rows.back().x_dtype == fastffn::DType::f32);
    CHECK(rows.back().cold && rows.back().tokens == 7 && rows.back().threads == 2 && rows.back().d_ff == 96);
    CHECK(rows[0].parameters() == 3 * 768 * 3072 && near(rows[0].operations(), 2.0 * 3 * 768 * 3072));

    // What a worker is told gives the same problem.
    Options odd =
        parse_options({"--op", "linear", "--shape", "33x65", "--format", "f16", "--x", "bf16", "--y", "f32", "--bias",
                       "--cold", "--cold-bytes", "3M", "--tokens", "5", "--threads", "3", "--huge-pages"});
    for (const Problem& problem :
         {expand(odd).at(0), rows[0], rows.back(), expand(parse_options({"--op", "pack"})).at(0)}) {
        const Options told = parse_options(split(to_arguments(problem, odd), ' '));
        const std::vector<Problem> heard = expand(told);
        CHECK(heard.size() == 1);
        CHECK(to_arguments(heard.at(0), told) == to_arguments(problem, odd));
        CHECK(heard.at(0).operations() == problem.operations() && heard.at(0).cold == problem.cold);
    }

    // pack and unpack know no tokens and no cold weights.
    CHECK(expand(parse_options({"--op", "pack,unpack", "--hot", "--cold"})).size() == 2);
    // Options after, or before, a suite narrow it.
    const std::vector<Problem> narrowed = expand(
        parse_options({"--format", "int8", "--suite", "default", "--threads", "1", "--tokens", "1,128", "--hot"}));
    CHECK(narrowed.size() == 3 * 2);
    CHECK(!narrowed[0].gated && narrowed.back().gated && narrowed.back().format == fastffn::Format::int8);
    // The default suite leaves cold rows of many tokens out; asking for --cold brings them.
    CHECK(expand(parse_options({"--suite", "default", "--format", "int8", "--threads", "1"})).size() == 3 * (4 + 2));
    CHECK(expand(parse_options({"--suite", "default", "--format", "int8", "--threads", "1", "--cold"})).size() ==
          3 * 4);

    // A moe has experts and routings, and counts the work of the picks.
    const Options mixture =
        parse_options({"--op", "moe,ffn", "--shape", "64x96", "--gated", "--experts", "12", "--picks", "3", "--routing",
                       "uniform,zipf,one", "--tokens", "5", "--hot", "--cold"});
    const std::vector<Problem> mixtures = expand(mixture);
    CHECK(mixtures.size() == 3 + 2);
    CHECK(mixtures[0].experts == 12 && mixtures[0].picks == 3 && mixtures[1].routing == Routing::zipf);
    CHECK(near(mixtures[0].operations(), 2.0 * 5 * 3 * 3 * 64 * 96) && mixtures[3].experts == 0);
    const Options heard_mixture = parse_options(split(to_arguments(mixtures[1], mixture), ' '));
    CHECK(to_arguments(expand(heard_mixture).at(0), heard_mixture) == to_arguments(mixtures[1], mixture));
    const std::vector<Problem> suite = expand(parse_options({"--suite", "moe", "--threads", "1"}));
    CHECK(suite.size() == 2 * 2 * 5 && suite[0].experts == 64 && suite.back().picks == 2 && suite[0].gated);
    CHECK(contains(refusal({"--routing", "some"}), "--routing: expected uniform, zipf or one"));
    try {
        expand(parse_options({"--op", "moe", "--experts", "2", "--picks", "3"}));
        CHECK(false);
    } catch (const std::invalid_argument& error) {
        CHECK(contains(error.what(), "--picks"));
    }

    CHECK(contains(refusal({"--nonsense"}), "unknown option '--nonsense'"));
    CHECK(contains(refusal({"--shape", "768"}), "--shape: expected sizes such as 768x3072"));
    CHECK(contains(refusal({"--format", "int3"}), "'int3'"));
    CHECK(contains(refusal({"--isa", "sse"}), "--isa: expected best, ref, avx2"));
    CHECK(contains(refusal({"--tokens", "0"}), "--tokens: expected a number of 1 or more, found '0'"));
    CHECK(contains(refusal({"--tokens"}), "--tokens: expected a value"));
    CHECK(contains(refusal({"--gated=yes"}), "--gated takes no value"));
    // A tree is the smallest with so many neurons, and counts the work of a path.
    const std::vector<Problem> trees =
        expand(parse_options({"--op", "fff", "--shape", "768x3072", "--leaf", "0,32", "--gated", "--tokens", "2"}));
    CHECK(trees.size() == 2 && trees[0].leaf == 0 && trees[1].leaf == 32 && !trees[0].gated);
    CHECK(trees[0].depth() == 11 && trees[0].operations() == 2.0 * 2 * 24 * 768);
    CHECK(trees[1].depth() == 7 && trees[1].operations() == 2.0 * 2 * (7 + 64) * 768);
    CHECK(to_arguments(trees[1], parse_options({})).find("--leaf 32") != std::string::npos);
    CHECK(contains(refusal({"--leaf", "-1"}), "--leaf"));
    CHECK(contains(refusal({"--suite", "huge"}), "--suite: expected default, quick, moe, sparse24") &&
          contains(refusal({"--suite", "huge"}), "found 'huge'"));
    CHECK(contains(refusal({"--baseline", "f32/xyz"}), "--baseline"));
    CHECK(contains(refusal({"--x", "int8"}), "--x: expected f32, f16 or bf16"));
    CHECK(contains(refusal({"--cold-bytes", "lots"}), "--cold-bytes"));
    CHECK(!parse_options({"--baseline", "none"}).has_baseline);
    CHECK(parse_options({"--baseline=int8/avx2"}).baseline_isa == "avx2");
    for (const char* option : {"--op",         "--shape",      "--format",     "--isa",
                               "--threads",    "--tokens",     "--x LIST",     "--y DTYPE",
                               "--cold-bytes", "--huge-pages", "--baseline",   "--suite",
                               "--smoke",      "--seconds",    "--rounds",     "--machine-seconds",
                               "--json",       "--machine",    "--no-machine", "--list",
                               "--version",    "--help",       "--bias",       "--no-gated",
                               "--experts",    "--picks",      "--routing"}) {
        CHECK(contains(help_text(), option));
    }
}

void test_json() {
    Json json;
    json.begin_object().field("text", "a\"b\\c\n").field("number", 1.5).field("none", std::nan(""));
    json.field("flag", true).field("count", 3).key("list").begin_array().value(1).value("µ").end_array();
    json.key("empty").begin_object().end_object().end_object();
    CHECK(
        json.text() ==
        "{\n \"text\": \"a\\\"b\\\\c\\u000a\",\n \"number\": 1.5,\n \"none\": null,\n \"flag\": true,\n \"count\": 3,\n"
        " \"list\": [\n  1,\n  \"µ\"\n ],\n \"empty\": {}\n}");
}

void test_roofs() {
    using fastffn::Isa;
    CHECK(isa_of_kernel("bf16/amx") == static_cast<int>(Isa::amx));
    CHECK(isa_of_kernel("f32/avx512base") == static_cast<int>(Isa::avx512));
    CHECK(isa_of_kernel("f32/avx512") == static_cast<int>(Isa::avx512));
    CHECK(isa_of_kernel("int8/ref") == 0 && isa_of_kernel("") == 0);
    CHECK(numbers_of(fastffn::Format::f16) == Numbers::f32 && numbers_of(fastffn::Format::int8) == Numbers::int8);

    Machine machine(1 << 22, false, 1e-3);
    CHECK(machine.level_of(1, 1) == "L2");
    CHECK(machine.level_of(cache_bytes(2) * 2, 2) == "L2" && machine.level_of(cache_bytes(2) * 2, 1) == "L3");
    CHECK(machine.level_of(cache_bytes(3) + 1, 1) == "DRAM");
    // Every loop runs, computes finite numbers and takes longer for more work.
    const std::vector<const PeakLoop*> loops = Machine::peak_loops();
    CHECK(!loops.empty() && loops[0] == &ref::peak_f32);
    const fastffn::DType dtypes[] = {fastffn::DType::f32, fastffn::DType::bf16, fastffn::DType::i8};
    for (const PeakLoop* loop : loops) {
        const fastffn::DType dtype = dtypes[static_cast<int>(loop->numbers)];
        Buffer seed(peak_seed_bytes);
        fill_random(seed.data(), peak_seed_bytes / fastffn::dtype_bytes(dtype), dtype, 1, 3);
        double none = 0, some = 0, more = 0;
        loop->run(seed.data(), 0, &none);
        loop->run(seed.data(), 1, &some);
        loop->run(seed.data(), 100, &more);
        CHECK(std::isfinite(more));
        CHECK(some != none && more != some);  // the arithmetic is there: each step changes the registers
        CHECK(machine.peak_rate(loop->numbers, loop->isa, 1).best > 0);
    }
    // A better instruction set never lowers the roof.
    CHECK(machine.peak_rate(Numbers::int8, static_cast<int>(Isa::amx), 1).best >=
          machine.peak_rate(Numbers::f32, static_cast<int>(Isa::ref), 1).best);

    // The readers read every word once per pass.
    Buffer buffer(8 * read_granule);
    fill_random(buffer.data(), buffer.bytes() / 8, fastffn::DType::i64, 1, 4);
    std::uint64_t expected = 0;
    for (std::int64_t i = 0; i < buffer.bytes(); i += 8) {
        std::uint64_t word;
        std::memcpy(&word, buffer.data() + i, 8);
        expected ^= word;
    }
    std::vector<ReadLoop> readers = {ref::read};
#if BENCH_X86
    if (fastffn::cpu_report().found >= Isa::avx2) readers.insert(readers.end(), {avx2::read, avx2::read_ahead});
    if (fastffn::cpu_report().found >= Isa::avx512) readers.insert(readers.end(), {avx512::read, avx512::read_ahead});
#endif
    for (ReadLoop read : readers) {
        CHECK(read(buffer.data(), buffer.bytes(), 1) == expected);
        CHECK(read(buffer.data(), buffer.bytes(), 3) == expected);
        CHECK(read(buffer.data(), buffer.bytes(), 2) == 0);
    }
    CHECK(machine.read_rate(1 << 20, 1).best > 0 && machine.read_rate(1 << 20, 2).best > 0);
}

void test_random() {
    std::vector<float> values(1001);
    fill_random(reinterpret_cast<std::byte*>(values.data()), 1001, fastffn::DType::f32, 2.0f, 5);
    double sum = 0, largest = 0;
    for (float value : values) {
        sum += static_cast<double>(value);
        largest = std::fmax(largest, std::fabs(static_cast<double>(value)));
    }
    CHECK(largest <= 2.0 && largest > 1.9 && std::fabs(sum / 1001) < 0.2);
    std::vector<std::uint16_t> halves(1001);
    fill_random(reinterpret_cast<std::byte*>(halves.data()), 1001, fastffn::DType::f16, 1.0f, 5);
    for (std::uint16_t half : halves) CHECK((half & 0x7c00) != 0x7c00);  // no infinity, no NaN
}

void test_routings() {
    Problem problem;
    problem.op = Op::moe;
    problem.experts = 7;
    problem.picks = 3;
    for (Routing routing : {Routing::uniform, Routing::zipf, Routing::one})
        for (std::int64_t tokens : {1, 2, 50}) {
            problem.routing = routing;
            problem.tokens = tokens;
            constexpr std::int64_t calls = 20;
            std::vector<std::int32_t> ids(static_cast<std::size_t>(calls * tokens * 3), -1);
            const double used = fill_routings(problem, calls, ids.data());
            CHECK(used >= 3 && used <= 7 && (routing != Routing::one || used == 3));
            std::int64_t counts[7] = {};
            for (std::size_t i = 0; i < ids.size(); i += 3) {
                CHECK(ids[i] >= 0 && ids[i] < 7 && ids[i] != ids[i + 1] && ids[i] != ids[i + 2] &&
                      ids[i + 1] != ids[i + 2]);
                for (std::size_t j = i; j < i + 3; ++j) ++counts[ids[j]];
            }
            std::sort(counts, counts + 7);
            // With replacement 3 of 7 would hit rank 1 with 1/2.59 per pick; without, it is in most tokens.
            if (tokens == 50 && routing == Routing::zipf) CHECK(counts[6] > 2 * counts[0] && counts[6] > 700);
            if (tokens == 50 && routing == Routing::uniform) CHECK(counts[6] < 1.3 * static_cast<double>(counts[0]));
        }
}

}  // namespace

int main() {
    test_routings();
    test_statistics();
    test_text();
    test_options();
    test_json();
    test_roofs();
    test_random();
    std::printf(failures ? "%d checks failed\n" : "all checks hold\n", failures);
    return failures ? 1 : 0;
}
