// parallel_for and parallel_phases: the one way the library uses threads.
//
// Workers take task numbers from a shared counter, so which worker runs a task is not fixed; callers write results that
// depend on the task alone. Inside another parallel region everything runs on the calling thread. A child forked by a process
// that had several threads uses plain threads instead of OpenMP, whose pool does not survive a fork. Tasks run in the default floating-point mode, whatever the caller's is.
#pragma once

#include <cstdint>

#include "fastffn/context.hpp"
#include "fastffn/status.hpp"

namespace fastffn {

// Phases one after another within one parallel region: a task starts when all tasks of earlier phases are done. Waking
// the team costs 1.4 µs (2 threads, libgomp); the step from phase to phase within a region is one cache line.
struct PhasedWork {
    std::int64_t phases;
    std::int64_t (*tasks)(const void* argument, std::int64_t phase);
    void (*run)(const void* argument, std::int64_t phase, std::int64_t task, int worker);
    const void* argument;
};

// FASTFFN_THREADING names a backend that exists here, or is not set.
Status check_threading();

// 0 <= worker < threads. Returns when all is done.
void run_phases(int threads, const PhasedWork& work) noexcept;

// tasks(phase) -> number of tasks, 0 allowed; run(phase, task, worker) -> void.
template <class Tasks, class Run>
void parallel_phases(int threads, std::int64_t phases, const Tasks& tasks, const Run& run) noexcept {
    struct Both {
        const Tasks& tasks;
        const Run& run;
    };
    const Both both{tasks, run};
    run_phases(threads, {phases,
                         [](const void* argument, std::int64_t phase) -> std::int64_t {
                             return static_cast<const Both*>(argument)->tasks(phase);
                         },
                         [](const void* argument, std::int64_t phase, std::int64_t task, int worker) {
                             static_cast<const Both*>(argument)->run(phase, task, worker);
                         },
                         &both});
}

// run(task, worker) for each task in [0, tasks).
template <class Run>
void parallel_for(int threads, std::int64_t tasks, const Run& run) noexcept {
    parallel_phases(
        threads, 1, [&](std::int64_t) { return tasks; },
        [&](std::int64_t, std::int64_t task, int worker) { run(task, worker); });
}

}  // namespace fastffn
