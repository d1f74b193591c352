// What this machine can do: read bandwidth by buffer size, and peak arithmetic by instruction set. The roofs that rows
// are compared with, measured in the same run.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "buffer.hpp"
#include "loops/loops.hpp"

namespace bench {

// Bytes of cache level 1 (data) to 3 that one core can use: what the kernel lists, else what the CPU says, else a usual
// size.
std::int64_t cache_bytes(int level);

struct Rate {
    double best = 0, median = 0;  // bytes or operations per second
};

struct LevelRate {
    std::string level;  // "L1", "L2", "L3", "DRAM"
    int threads;
    std::int64_t bytes;  // read in turn by all threads together, each its own part
    Rate rate;
};

struct PeakRate {
    const PeakLoop* loop;
    int threads;
    Rate rate;
};

class Machine {
  public:
    // dram_bytes: size of the buffer that stands for DRAM. repeat_seconds: how long each single number is measured.
    Machine(std::int64_t dram_bytes, bool huge_pages, double repeat_seconds);

    // Every level and every peak, at each number of threads. `step` is called before each of measurements(threads).
    // In two sweeps, of which the better counts: one busy moment cannot spoil a roof.
    template <typename Step>
    void measure_all(const std::vector<int>& thread_counts, const Step& step) {
        for (int sweep = 0; sweep < sweeps; ++sweep) {
            for (int threads : thread_counts) {
                for (int level = 0; level < level_count; ++level) {
                    step(level_name(level) + " read, threads " + std::to_string(threads));
                    measure_level(level, threads);
                }
                for (const PeakLoop* loop : peak_loops()) {
                    step(std::string("peak of ") + loop->what + ", threads " + std::to_string(threads));
                    measure_peak(loop, threads);
                }
            }
        }
    }
    static int measurements(std::size_t thread_counts) {
        return sweeps * static_cast<int>(thread_counts * (level_count + peak_loops().size()));
    }

    // Bandwidth of reading `bytes` again and again: the best seen in this run. Every request measures it anew for a
    // moment, so that a roof taken in a busy moment is corrected later.
    Rate read_rate(std::int64_t bytes, int threads);
    Rate dram_rate(int threads) { return read_rate(dram_bytes_, threads); }
    // Peak of the instruction set `isa` for weights of these numbers: the best loop that needs no more than `isa`.
    // Zero rate where there is none.
    Rate peak_rate(Numbers numbers, int isa, int threads);
    // Smallest level that holds `bytes` spread over the threads' caches: "L2", "L3" or "DRAM" (never L1: a layer's
    // inputs and outputs live there).
    std::string level_of(std::int64_t bytes, int threads) const;

    const std::vector<LevelRate>& levels() const { return levels_; }
    const std::vector<PeakRate>& peaks() const { return peaks_; }
    std::int64_t dram_bytes() const { return dram_bytes_; }

    // The loops that this CPU can run, slowest instruction set first.
    static std::vector<const PeakLoop*> peak_loops();

  private:
    static constexpr int level_count = 4, sweeps = 2;
    static std::string level_name(int level);
    std::int64_t level_bytes(int level, int threads) const;
    void measure_level(int level, int threads);
    Rate measure_peak(const PeakLoop* loop, int threads, double seconds);
    void measure_peak(const PeakLoop* loop, int threads) { measure_peak(loop, threads, repeat_seconds_ / sweeps); }
    Rate measure_read(std::int64_t bytes, int threads, double seconds);
    void reserve(std::int64_t bytes);

    std::int64_t dram_bytes_;
    bool huge_pages_;
    double repeat_seconds_;
    Buffer buffer_;
    std::vector<LevelRate> levels_;
    std::vector<PeakRate> peaks_;
    std::map<std::pair<std::int64_t, int>, Rate> read_rates_;
    std::map<const PeakLoop*, std::int64_t> peak_steps_;
};

}  // namespace bench
