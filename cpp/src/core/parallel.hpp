// parallel_for: the one way the library uses threads.
//
// Workers take task numbers from a shared counter, so which worker runs a task is not fixed; callers write results that
// depend on the task alone. Inside another parallel region, and in a child forked after the pool was used, everything
// runs on the calling thread.
#pragma once

#include <cstdint>
#include <type_traits>

namespace fastffn {

using TaskFunction = void (*)(void* argument, std::int64_t task, int worker);

// Runs function(argument, task, worker) for each task in [0, tasks); 0 <= worker < threads. Returns when all are done.
void run_tasks(int threads, std::int64_t tasks, TaskFunction function, void* argument) noexcept;

// The same for a callable (task, worker) -> void.
template <class Callable>
void parallel_for(int threads, std::int64_t tasks, Callable&& callable) noexcept {
    using Plain = std::remove_reference_t<Callable>;
    run_tasks(
        threads, tasks,
        [](void* argument, std::int64_t task, int worker) { (*static_cast<Plain*>(argument))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&callable)));
}

}  // namespace fastffn
