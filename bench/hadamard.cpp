#include "hadamard.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "buffer.hpp"
#include "machine.hpp"
#include "report.hpp"
#include "stats.hpp"
#include "team.hpp"
#include "text.hpp"

namespace bench {

namespace {

using fastffn::DType;
using fastffn::Hadamard;
using fastffn::TensorView;

struct Width {
    Hadamard mode;
    std::int64_t n, out;  // out: rows of the down projection that such a row goes into
};
// Powers of two as H-BitLinear has them; the hidden widths of BitNet 2B4T, Llama 7B and Llama 3 8B, by both ways.
const Width widths[] = {
    {Hadamard::pow2, 4096, 4096},  {Hadamard::pow2, 8192, 4096},   {Hadamard::pow2, 16384, 4096},
    {Hadamard::block, 6912, 2560}, {Hadamard::kron, 6912, 2560},   {Hadamard::block, 11008, 4096},
    {Hadamard::kron, 11008, 4096}, {Hadamard::block, 14336, 4096}, {Hadamard::kron, 14336, 4096},
};

struct Side {
    std::function<void()> call;
    int calls = 1;
    std::vector<double> seconds{};  // per call, one per round

    void round(double budget) {
        call();
        const double begin = seconds_now();
        int done = 0;
        do {
            for (int i = 0; i < calls; ++i) call();
            done += calls;
        } while (seconds_now() - begin < budget);
        seconds.push_back((seconds_now() - begin) / done);
    }
    void tune() {
        call();
        const double begin = seconds_now();
        call();
        calls = static_cast<int>(std::clamp(20e-6 / std::max(seconds_now() - begin, 1e-9), 1.0, 1000.0));
    }
};

// Both sides in turns. Median of the rounds' ratios, and each side's median.
double in_turns(const Options& options, Side& a, Side& b) {
    a.tune();
    b.tune();
    std::vector<double> ratios;
    for (int round = 0; round < options.rounds; ++round) {
        a.round(options.row_seconds / options.rounds);
        b.round(options.row_seconds / options.rounds);
        ratios.push_back(a.seconds.back() / b.seconds.back());
    }
    return median(ratios);
}

std::string name_of(const Width& width) {
    return std::string(fastffn::hadamard_name(width.mode)) + " " + std::to_string(width.n);
}

void print_alone(const Options& options) {
    const std::int64_t budget = cache_bytes(2) / 4;  // x and y together fill half of L2
    std::printf("\nalone: f32 rows, x and y together in half of L2, one thread\n");
    std::printf("%-12s %6s %10s %10s %8s\n", "mode, n", "rows", "per row", "memcpy", "ratio");
    for (const Width& width : widths) {
        const std::int64_t rows = std::max<std::int64_t>(1, budget / (width.n * 4)), bytes = rows * width.n * 4;
        Buffer x(bytes), y(bytes);
        fill_random(x.data(), rows * width.n, DType::f32, 1.0f, 1);
        fastffn::Context context(1);
        const TensorView from(x.data(), DType::f32, {rows, width.n}), to(y.data(), DType::f32, {rows, width.n});
        Side transform{[&] { fastffn::hadamard(context, from, {width.mode}, to).value(); }};
        Side copy{[&] {
            std::memcpy(y.data(), x.data(), static_cast<std::size_t>(bytes));
            asm volatile("" ::"r"(y.data()) : "memory");
        }};
        const double ratio = in_turns(options, transform, copy);
        const auto count = static_cast<double>(rows);
        std::printf("%-12s %6lld %10s %10s %8.2f\n", name_of(width).c_str(), static_cast<long long>(rows),
                    format_time(median(transform.seconds) / count).c_str(),
                    format_time(median(copy.seconds) / count).c_str(), ratio);
        std::fflush(stdout);
    }
}

void print_fused(const Options& options, int threads) {
    std::printf(
        "\nin ternary down projections, f32 rows in and out, threads %d; \"added\" is what hadamard= makes a call "
        "longer\n",
        threads);
    std::printf("%-12s %8s %8s %12s %12s %8s %8s\n", "mode, n", "out", "tokens", "without", "with", "added", "alone");
    for (const Width& width : widths) {
        Buffer source(width.n * width.out * 4);
        fill_random(source.data(), width.n * width.out, DType::f32, 1.7f / std::sqrt(static_cast<float>(width.n)), 1);
        const TensorView w(source.data(), DType::f32, {width.out, width.n});
        const auto pack = [&](Hadamard mode) {
            const fastffn::PackOptions keywords = {{"hadamard", fastffn::hadamard_name(mode)}};
            std::int64_t bytes = 0;
            fastffn::packed_bytes(w, fastffn::Format::ternary, keywords, &bytes).value();
            Buffer packed(bytes);
            fastffn::pack(w, fastffn::Format::ternary, keywords, packed.data(), bytes).value();
            return packed;
        };
        const Buffer plain = pack(Hadamard::none), rotated = pack(width.mode);
        for (const std::int64_t tokens : {std::int64_t{1}, std::int64_t{16}, std::int64_t{128}}) {
            Buffer x(tokens * width.n * 4), y(tokens * width.out * 4);
            fill_random(x.data(), tokens * width.n, DType::f32, 1.0f, 2);
            const TensorView from(x.data(), DType::f32, {tokens, width.n}),
                to(y.data(), DType::f32, {tokens, width.out});
            fastffn::Context context(threads);
            const auto call = [&](const Buffer& packed) {
                fastffn::linear(context, from, {packed.data(), packed.bytes()}, nullptr, to).value();
            };
            Side with{[&] { call(rotated); }}, without{[&] { call(plain); }}, again{[&] { call(plain); }};
            const double ratio = in_turns(options, with, without);
            Buffer moved(x.bytes());
            const TensorView to_moved(moved.data(), DType::f32, {tokens, width.n});
            Side transform{[&] { fastffn::hadamard(context, from, {width.mode}, to_moved).value(); }};
            const double share = in_turns(options, transform, again);
            std::printf("%-12s %8lld %8lld %12s %12s %7.1f%% %7.1f%%\n", name_of(width).c_str(),
                        static_cast<long long>(width.out), static_cast<long long>(tokens),
                        format_time(median(without.seconds)).c_str(), format_time(median(with.seconds)).c_str(),
                        100 * (ratio - 1), 100 * share);
            std::fflush(stdout);
        }
    }
}

}  // namespace

int run_hadamard(const Options& options) {
    fastffn::check_isa().value();
    std::printf("%s", environment_text().c_str());
    print_alone(options);
    for (int threads : options.threads) print_fused(options, threads);
    return 0;
}

}  // namespace bench
