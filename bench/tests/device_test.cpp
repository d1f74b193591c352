// What --device cuda computes itself: options, suites, what is asked and whether it was met. Not of any speed.
#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "../../tests/cpp/check.hpp"
#include "cuda/numbers.hpp"
#include "cuda/output.hpp"
#include "cuda/run.hpp"

using namespace bench::cuda;

namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string refusal(const std::vector<std::string>& arguments) {
    try {
        parse_options(arguments);
    } catch (const std::exception& problem) {
        return problem.what();
    }
    return "";
}

// The bars that a row with these words in its name has, as text.
std::string bars(const std::vector<std::string>& words) {
    std::string text;
    for (const Case& row : suite("all", false)) {
        bool all = true;
        for (const std::string& word : words) all = all && contains(" " + row.name() + ",", word);
        if (!all) continue;
        for (const Bar& bar : row.bars) text += bar_text(bar, row) + "; ";
    }
    return text;
}

Result result(double seconds, double ratio = 0) {
    Result made;
    made.times = {seconds, seconds, seconds, seconds, 5};
    made.bytes = 1000;
    made.operations = 5000;
    made.ratio = ratio;
    return made;
}

}  // namespace

TEST(devices_are_named_as_elsewhere) {
    CHECK(device_of({}) == -1 && device_of({"--device", "cpu"}) == -1 && device_of({"--device=cuda"}) == 0);
    CHECK(device_of({"--suite", "quick", "--device", "cuda:3"}) == 3);
    for (const char* wrong : {"gpu", "cuda:", "cuda:x", "cuda1", ""}) {
        bool refused = false;
        try {
            device_of({"--device", wrong});
        } catch (const std::invalid_argument& error) {
            refused = contains(error.what(), "--device: expected cpu, cuda or cuda:NUMBER");
        }
        CHECK(refused) << wrong;
    }
}

TEST(options_that_do_not_fit_are_refused) {
    CHECK(contains(refusal({"--device", "cuda", "--threads", "2"}), "unknown option '--threads' with --device cuda"));
    CHECK(contains(refusal({"--suite", "moe"}), "--suite: expected quick, decode, prefill, all"));
    CHECK(contains(refusal({"--only", "nothing"}), "--only: no row's name contains 'nothing'"));
    CHECK(contains(refusal({"--rounds", "0"}), "--rounds") && contains(refusal({"--seconds", "no"}), "--seconds"));
    CHECK(contains(refusal({"--shape", "12"}), "--shape: expected sizes") &&
          contains(refusal({"--tokens"}), "a value"));
    CHECK(contains(refusal({"--shape", "12x34", "--format", "int3"}), "int3"));
    CHECK(contains(refusal({"--shape", "12x34", "--tokens", "0"}), "--tokens") &&
          contains(refusal({"--list=1"}), "takes no"));
    CHECK(contains(refusal({"--first", "0"}), "--first") &&
          contains(refusal({"--first", "5000"}), "--first: expected one of"));
    CHECK(parse_options({"--suite", "all", "--first", "3"}).cases[0].name() == suite("all", false)[2].name());
    const Options options = parse_options({"--shape", "64x96,128x32", "--format", "bf16,f16", "--tokens", "1,300",
                                           "--library", "/a", "--library=/b", "--device", "cuda"});
    CHECK(options.cases.size() == 8 && options.places == "/a:/b");
    CHECK(options.cases[0].part == "decode" && options.cases[1].part == "prefill");
    CHECK(options.cases[2].rivals[0].name() == "cuBLASLt f16" && options.cases[2].dtype == fastffn::DType::f16);
    CHECK(parse_options({"--smoke"}).tiny && parse_options({"--smoke"}).suite == "all");
}

TEST(every_row_has_a_name_of_its_own) {
    for (const std::string& name : suite_names())
        for (bool tiny : {false, true}) {
            std::set<std::string> names;
            for (const Case& row : suite(name, tiny)) {
                CHECK(names.insert(row.name()).second) << row.name();
                for (const Bar& bar : row.bars) CHECK(bar.rival < static_cast<int>(row.rivals.size())) << row.name();
            }
            CHECK(!names.empty());
        }
}

TEST(what_is_asked) {
    for (const char* format : {" bf16 ", " int8 ", " int4:group=128 "})
        CHECK(contains(bars({"decode linear", format, "8192x28672"}), "≥ 80 % of copy")) << format;
    CHECK(bars({"decode linear ternary", "2560x13824"}) ==
          "≥ 50 % of copy; ≥ 3.2x cuBLASLt bf16; ≥ 3.2x fastffn bf16; ");
    CHECK(contains(bars({"decode linear sparse24 "}), "≥ 1.5x cuBLASLt bf16"));
    CHECK(bars({"decode moe"}) == "≥ 40 % of copy; " && bars({"prefill moe"}) == "≥ 50 % of peak; ");
    CHECK(contains(bars({"prefill linear bf16"}), "≥ 0.9x cuBLASLt bf16"));
    CHECK(contains(bars({"prefill linear sparse24 8192x8192"}), "≥ 1.3x cuBLASLt bf16; ≥ 1x cuSPARSELt bf16"));
    CHECK(
        contains(bars({"lowrank:factors=f16:rank=384"}), "≥ 1.3x cuBLASLt f16; ≥ 75 % less memory than cuBLASLt f16"));
    CHECK(bars({"prefill fff", "768 depth 11, tokens 16384"}) == "≥ 2x cuBLASLt bf16; ");
    CHECK(contains(bars({"hadamard bf16 pow2", " 4096,"}), "≥ 0.833x memcpy"));
}

TEST(verdicts) {
    Row row;
    row.asked.rivals = {{Rival::What::cublaslt, Element::bf16, {}}, {Rival::What::cusparselt, Element::bf16, {}}};
    row.asked.bars = {{Bar::Of::bandwidth, 0.8, -1},
                      {Bar::Of::peak, 0.5, -1},
                      {Bar::Of::speed, 1.3, 0},
                      {Bar::Of::speed, 1.0, 1},
                      {Bar::Of::memory, 0.75, 0}};
    row.ours = result(1e-6);
    row.ours.memory_bytes = 20;
    row.rivals = {result(1.2e-6, 1.2), {}};
    row.rivals[0].memory_bytes = 100;
    row.rivals[1].problem = "not installed";
    row.of_copy = 0.8;
    const auto verdicts = judge(row);
    CHECK(verdicts[0].known && verdicts[0].met);
    CHECK(!verdicts[1].known && !verdicts[1].met);  // no peak was measured
    CHECK(verdicts[2].known && !verdicts[2].met && verdicts[2].measured == 1.2);
    CHECK(!verdicts[3].known && !verdicts[3].met);
    CHECK(verdicts[4].known && verdicts[4].met && std::fabs(verdicts[4].measured - 0.8) < 1e-12);
    row.ours.problem = "wrong results";
    for (const Verdict& verdict : judge(row)) CHECK(!verdict.known && !verdict.met);
    row.verdicts = judge(row);
    const std::string text = row_text(row);
    CHECK(contains(text, "failed: wrong results") && contains(text, "–  not installed") && contains(text, "not known"));
    CHECK(contains(legend({row}), "1 rows, 1 failed; of 5 bars 0 met, 0 missed, 5 not known") ||
          contains(legend({row}), "1 rows, 1 failed"));
}

TEST(two_of_four_stay) {
    using fastffn::DType;
    for (DType dtype : {DType::bf16, DType::i8}) {
        std::vector<std::byte> data(4096, std::byte{0x3f});
        const std::int64_t count = 4096 / fastffn::dtype_bytes(dtype);
        keep_two_of_four(data.data(), dtype, count);
        std::set<int> patterns;
        for (std::int64_t i = 0; i < count; i += 4) {
            int kept = 0, pattern = 0;
            for (int k = 0; k < 4; k++) {
                const bool is_kept = read_number(data.data(), dtype, i + k) != 0;
                kept += is_kept;
                pattern |= is_kept << k;
            }
            CHECK(kept == 2);
            patterns.insert(pattern);
        }
        CHECK(patterns.size() == 6);
    }
    const std::uint16_t halves[] = {0x3C00, 0xC000, 0x0001, 0x7C00};
    const auto* bytes = reinterpret_cast<const std::byte*>(halves);
    CHECK(read_number(bytes, DType::f16, 0) == 1 && read_number(bytes, DType::f16, 1) == -2);
    CHECK(read_number(bytes, DType::f16, 2) == std::ldexp(1.0f, -24) && std::isinf(read_number(bytes, DType::f16, 3)));
    const std::int32_t integer = -70000;
    CHECK(read_number(reinterpret_cast<const std::byte*>(&integer), DType::i32, 0) == -70000);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
