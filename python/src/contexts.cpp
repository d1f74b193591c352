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
    // One context outside the lock: a single caller, the common case, pays two atomic exchanges instead of two locked
    // sections (measured 15 ns against 60).
    std::atomic<Context*> spare{nullptr};
    std::mutex mutex;
    std::vector<std::unique_ptr<Context>> idle;
    std::atomic<int> threads{0};
    std::atomic<const char*> last_kernel{""};

    Pool();

    std::unique_ptr<Context> take() {
        if (Context* context = spare.exchange(nullptr, std::memory_order_acquire))
            return std::unique_ptr<Context>(context);
        {
            const std::lock_guard<std::mutex> lock(mutex);
            if (!idle.empty()) {
                std::unique_ptr<Context> context = std::move(idle.back());
                idle.pop_back();
                return context;
            }
            idle.reserve(idle.capacity() + 1);  // room for this one's return, so that returning cannot fail
        }
        return std::make_unique<Context>();
    }

    void give_back(std::unique_ptr<Context> context) {
        Context* expected = nullptr;
        if (spare.compare_exchange_strong(expected, context.get(), std::memory_order_release)) {
            (void)context.release();
            return;
        }
        const std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(context));
    }
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

}  // namespace

ContextLease::ContextLease() : context_(pool().take()) {
    context_->set_threads(pool().threads.load(std::memory_order_relaxed));
}

ContextLease::~ContextLease() {
    pool().last_kernel.store(context_->last_kernel(), std::memory_order_relaxed);
    pool().give_back(std::move(context_));
}

void set_thread_setting(int threads) noexcept { pool().threads.store(threads, std::memory_order_relaxed); }

int thread_setting() noexcept { return pool().threads.load(std::memory_order_relaxed); }

const char* last_kernel() noexcept { return pool().last_kernel.load(std::memory_order_relaxed); }

}  // namespace fastffn::python
