// run_together: the same function on several threads at once, for measuring the machine itself.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace bench {

inline double seconds_now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// Spins: sleeping threads would start at different times.
class SpinBarrier {
  public:
    explicit SpinBarrier(int threads) : threads_(threads) {}
    void wait() {
        const int phase = phase_.load(std::memory_order_acquire);
        if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            waiting_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
            if (spins > 1000) std::this_thread::yield();
        }
    }

  private:
    const int threads_;
    std::atomic<int> waiting_{0}, phase_{0};
};

// Runs work(thread) `repeats` times on every thread; returns the seconds of each repeat from the first start to the
// last end.
template <typename Work>
std::vector<double> run_together(int threads, int repeats, const Work& work) {
    SpinBarrier barrier(threads);
    std::vector<std::vector<double>> starts(static_cast<std::size_t>(threads)), ends(static_cast<std::size_t>(threads));
    const auto member = [&](int thread) {
        for (int repeat = 0; repeat < repeats; ++repeat) {
            barrier.wait();
            starts[static_cast<std::size_t>(thread)].push_back(seconds_now());
            work(thread);
            ends[static_cast<std::size_t>(thread)].push_back(seconds_now());
        }
    };
    std::vector<std::thread> helpers;
    for (int thread = 1; thread < threads; ++thread) helpers.emplace_back(member, thread);
    member(0);
    for (std::thread& helper : helpers) helper.join();

    std::vector<double> elapsed;
    for (std::size_t repeat = 0; repeat < static_cast<std::size_t>(repeats); ++repeat) {
        double first = starts[0][repeat], last = ends[0][repeat];
        for (std::size_t thread = 1; thread < static_cast<std::size_t>(threads); ++thread) {
            if (starts[thread][repeat] < first) first = starts[thread][repeat];
            if (ends[thread][repeat] > last) last = ends[thread][repeat];
        }
        elapsed.push_back(last - first);
    }
    return elapsed;
}

}  // namespace bench
