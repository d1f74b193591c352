#include "machine.hpp"

#include <algorithm>
#include <cstdio>

#include "fastffn/cpu.hpp"
#include "stats.hpp"
#include "team.hpp"
#include "text.hpp"

namespace bench {

namespace {

std::vector<ReadLoop> read_loops() {
    std::vector<ReadLoop> loops = {ref::read};
#if BENCH_X86
    const fastffn::Isa found = fastffn::cpu_report().found;
    if (found >= fastffn::Isa::avx2) loops = {avx2::read, avx2::read_ahead};
    if (found >= fastffn::Isa::avx512) loops = {avx512::read, avx512::read_ahead};
#endif
    return loops;
}

// Best and median rate of `work` per repeat, which moves or computes `amount` on each thread.
template <typename Work>
Rate best_of(int threads, double seconds, double amount, const Work& work) {
    const double once = std::max(minimum(run_together(threads, 2, work)), 1e-9);
    const int repeats = static_cast<int>(std::clamp(seconds / once, 2.0, 200.0));
    const std::vector<double> elapsed = run_together(threads, repeats, work);
    const double total = amount * threads;
    return {total / minimum(elapsed), total / median(elapsed)};
}

Rate better(const Rate& a, const Rate& b) { return {std::max(a.best, b.best), std::max(a.median, b.median)}; }

constexpr double repeat_at_least = 1e-3;  // one timed repeat: long against the clock and the barrier
constexpr double again_seconds = 0.02;    // for a look at a known rate, beside a row

// The sizes that the kernel lists for the first core: sysconf() may give the caches of the whole host to a virtual
// machine.
std::int64_t listed_cache_bytes(int level) {
    for (int index = 0; index < 8; ++index) {
        const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
        const auto word = [&](const char* name) {
            char text[32] = {};
            if (std::FILE* file = std::fopen((folder + name).c_str(), "r")) {
                if (std::fscanf(file, "%31s", text) != 1) text[0] = 0;
                std::fclose(file);
            }
            return std::string(text);
        };
        std::int64_t bytes = 0;
        if (word("level") == std::to_string(level) && word("type") != "Instruction" &&
            parse_bytes(word("size"), &bytes)) {
            return bytes;
        }
    }
    return 0;
}

}  // namespace

std::int64_t cache_bytes(int level) {
    const std::int64_t listed = listed_cache_bytes(level);
    if (listed > 0) return listed;
    const fastffn::CpuReport& report = fastffn::cpu_report();
    const std::int64_t said = level == 1 ? report.l1d_bytes : level == 2 ? report.l2_bytes : report.l3_bytes;
    const std::int64_t usual[] = {32 << 10, 1 << 20, 32 << 20};
    return said > 0 ? said : usual[level - 1];
}

Machine::Machine(std::int64_t dram_bytes, bool huge_pages, double repeat_seconds)
    : dram_bytes_(dram_bytes), huge_pages_(huge_pages), repeat_seconds_(repeat_seconds) {}

std::string Machine::level_name(int level) {
    const char* names[] = {"L1", "L2", "L3", "DRAM"};
    return names[level];
}

// Half of a private cache; for L3 a size that neither fits the L2s nor meets the edge of L3.
std::int64_t Machine::level_bytes(int level, int threads) const {
    if (level < 2) return cache_bytes(level + 1) / 2 * threads;
    if (level == 2) return std::min(std::max(cache_bytes(3) / 4, 4 * cache_bytes(2) * threads), cache_bytes(3) * 3 / 4);
    return dram_bytes_;
}

std::string Machine::level_of(std::int64_t bytes, int threads) const {
    if (bytes <= cache_bytes(2) * threads) return "L2";
    return bytes <= cache_bytes(3) ? "L3" : "DRAM";
}

void Machine::reserve(std::int64_t bytes) {
    if (buffer_.bytes() >= bytes) return;
    buffer_ = Buffer();  // give the old one back first
    buffer_ = Buffer(bytes, huge_pages_);
    fill_random(buffer_.data(), bytes / 8, fastffn::DType::i64, 1, 1);
}

Rate Machine::read_rate(std::int64_t bytes, int threads) {
    const bool known = read_rates_.count({bytes, threads}) > 0;
    return measure_read(bytes, threads, known ? std::min(again_seconds, repeat_seconds_) : repeat_seconds_);
}

Rate Machine::measure_read(std::int64_t bytes, int threads, double seconds) {
    const std::int64_t part = std::max(bytes / threads / read_granule, std::int64_t{1}) * read_granule;
    reserve(part * threads);
    Rate rate;
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads) * 8);  // a cache line each
    for (ReadLoop loop : read_loops()) {
        // About 100 GB/s to begin with; small buffers get enough passes to last for a millisecond.
        const std::int64_t passes =
            std::max(std::int64_t{1}, static_cast<std::int64_t>(repeat_at_least * 100e9 / static_cast<double>(part)));
        const auto work = [&](int thread) {
            const std::byte* data = buffer_.data() + part * thread;
            sums[static_cast<std::size_t>(thread) * 8] ^= loop(data, part, passes);
        };
        rate = better(rate, best_of(threads, seconds, static_cast<double>(part * passes), work));
    }
    volatile std::uint64_t kept = sums[0];
    (void)kept;
    Rate& kept_rate = read_rates_[{bytes, threads}];
    return kept_rate = better(kept_rate, rate);
}

void Machine::measure_level(int level, int threads) {
    const std::int64_t bytes = level_bytes(level, threads);
    const Rate rate = measure_read(bytes, threads, repeat_seconds_ / sweeps);
    for (LevelRate& known : levels_) {
        if (known.level == level_name(level) && known.threads == threads) {
            known.rate = rate;
            return;
        }
    }
    levels_.push_back({level_name(level), threads, bytes, rate});
}

std::vector<const PeakLoop*> Machine::peak_loops() {
    const PeakLoop* all[] = {
        &ref::peak_f32,
#if BENCH_X86
        &avx2::peak_f32,        &avx2::peak_int8,       &avx512::peak_f32, &avx512::peak_int8,
        &avx512vnni::peak_int8, &avx512bf16::peak_bf16, &amx::peak_bf16,   &amx::peak_int8,
#endif
    };
    std::vector<const PeakLoop*> loops;
    for (const PeakLoop* loop : all) {
        // `found` is amx only once the operating system has granted the tile registers to this process.
        if (loop->isa <= static_cast<int>(fastffn::cpu_report().found)) loops.push_back(loop);
    }
    return loops;
}

Rate Machine::measure_peak(const PeakLoop* loop, int threads, double seconds) {
    const fastffn::DType dtypes[] = {fastffn::DType::f32, fastffn::DType::bf16, fastffn::DType::i8};
    const fastffn::DType dtype = dtypes[static_cast<int>(loop->numbers)];
    Buffer seed(peak_seed_bytes);
    fill_random(seed.data(), peak_seed_bytes / fastffn::dtype_bytes(dtype), dtype, 1, 2);
    std::vector<double> sinks(static_cast<std::size_t>(threads) * 8);

    std::int64_t& steps = peak_steps_[loop];
    if (steps == 0) {
        double elapsed = 0;
        for (steps = 64; elapsed < repeat_at_least; steps *= 2) {
            const double start = seconds_now();
            loop->run(seed.data(), steps, &sinks[0]);
            elapsed = seconds_now() - start;
        }
    }
    const auto work = [&](int thread) { loop->run(seed.data(), steps, &sinks[static_cast<std::size_t>(thread) * 8]); };
    const Rate rate = best_of(threads, seconds, loop->ops_per_step * static_cast<double>(steps), work);
    volatile double kept = sinks[0];
    (void)kept;
    for (PeakRate& known : peaks_) {
        if (known.loop == loop && known.threads == threads) return known.rate = better(known.rate, rate);
    }
    peaks_.push_back({loop, threads, rate});
    return rate;
}

Rate Machine::peak_rate(Numbers numbers, int isa, int threads) {
    Rate best;
    for (const PeakLoop* loop : peak_loops()) {
        // bf16 and int8 weights may also be widened and multiplied as f32.
        const bool serves = loop->numbers == numbers || loop->numbers == Numbers::f32;
        if (!serves || loop->isa > isa) continue;
        best = better(best, measure_peak(loop, threads, std::min(again_seconds, repeat_seconds_)));
    }
    return best;
}

}  // namespace bench
