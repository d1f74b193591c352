#include "contexts.hpp"

#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fastffn::python {

namespace {

// Never destroyed: daemon threads may call while the interpreter shuts down.
struct Pool {
    std::mutex mutex;
    std::vector<std::unique_ptr<Context>> idle;
    std::atomic<int> threads{0};

    Pool();
};

Pool& pool() {
    static Pool& instance = *new Pool;
    return instance;
}

Pool::Pool() {
#if defined(__unix__) || defined(__APPLE__)
    // fork() copies the mutex as it is, and in the child nobody would unlock it. Contexts that other threads hold at
    // that moment are lost to the child: a little memory.
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
#endif
}

thread_local const char* last_kernel_of_thread = "";

}  // namespace

ContextLease::ContextLease() {
    Pool& p = pool();
    {
        const std::lock_guard<std::mutex> lock(p.mutex);
        if (!p.idle.empty()) {
            context_ = std::move(p.idle.back());
            p.idle.pop_back();
        } else {
            p.idle.reserve(p.idle.capacity() + 1);  // room for this one's return, so that returning cannot fail
        }
    }
    if (!context_) context_ = std::make_unique<Context>();
    context_->set_threads(p.threads.load(std::memory_order_relaxed));
}

ContextLease::~ContextLease() {
    last_kernel_of_thread = context_->last_kernel();
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    p.idle.push_back(std::move(context_));
}

void set_thread_setting(int threads) noexcept {
    pool().threads.store(threads, std::memory_order_relaxed);
}

int thread_setting() noexcept {
    return pool().threads.load(std::memory_order_relaxed);
}

const char* last_kernel() noexcept {
    return last_kernel_of_thread;
}

}  // namespace fastffn::python
