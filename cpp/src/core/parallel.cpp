// The backends of parallel_for.
//
// OpenMP comes from whichever libgomp-compatible runtime the process already has, else from libgomp.so.1, looked up at
// run time through the entry points that compilers call. So the library shares torch's pool and its thread count (two
// pools would fight for the cores: idle OpenMP workers spin), and still loads on systems without libgomp, where plain
// threads take over.
#include "core/parallel.hpp"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/stat.h>
#endif

#include "fastffn/context.hpp"

namespace fastffn {

namespace {

// Default floating-point mode (round to nearest, subnormals kept, exceptions masked) while a worker works. A caller may
// have set another, torch.set_flush_denormal for one, and the pool's threads have their own: results would then depend on
// who ran a task.
class PlainFloats {
  public:
#if defined(__x86_64__)
    PlainFloats() : saved_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(0x1f80); }
    ~PlainFloats() { __builtin_ia32_ldmxcsr(saved_); }

  private:
    unsigned saved_;
#else
    PlainFloats() {}
#endif
};

// One call's tasks, numbered through all phases. A worker draws the next number; before it runs a task of a later phase
// it waits until the tasks before that phase are done. Numbers are drawn in order, so whoever is waited for is running.
struct Region {
    const PhasedWork& work;
    int limit;  // workers are numbered below this
    alignas(64) std::atomic<std::int64_t> next{0};
    alignas(64) std::atomic<std::int64_t> done{0};

    Region(const PhasedWork& phased_work, int threads) : work(phased_work), limit(threads) {}

    void join(int worker) {
        if (worker >= limit || work.phases <= 0) return;
        const PlainFloats plain_floats;
        std::int64_t phase = 0, begin = 0, end = work.tasks(work.argument, 0);
        for (;;) {
            const std::int64_t number = next.fetch_add(1, std::memory_order_relaxed);
            while (number >= end) {
                if (++phase == work.phases) return;
                begin = end;
                end += work.tasks(work.argument, phase);
            }
            wait_for(begin);
            work.run(work.argument, phase, number - begin, worker);
            done.fetch_add(1, std::memory_order_release);
        }
    }

    void wait_for(std::int64_t count) {
        // A phase lasts microseconds; a worker that lost its core takes much longer, and then this core is better lent.
        constexpr int spins_before_yield = 4000;
        for (int spins = 0; done.load(std::memory_order_acquire) < count; ++spins) {
            if (spins < spins_before_yield) pause();
            else std::this_thread::yield();
        }
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
};

enum class Backend { openmp, threads, serial };

struct OpenMp {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*max_threads)() = nullptr;
    int (*thread_num)() = nullptr;
    int (*in_parallel)() = nullptr;

    template <class Function>
    static bool find(void* library, const char* name, Function* function) {
        void* symbol = dlsym(library, name);
        std::memcpy(function, &symbol, sizeof symbol);
        return symbol != nullptr;
    }
    bool load(void* library) {
        return find(library, "GOMP_parallel", &parallel) && find(library, "omp_get_max_threads", &max_threads) &&
               find(library, "omp_get_thread_num", &thread_num) && find(library, "omp_in_parallel", &in_parallel);
    }
};

// A fixed team of plain threads for systems without OpenMP and for ThreadSanitizer, which cannot see into libgomp.
// One region runs at a time; a second caller meanwhile works alone.
class ThreadPool {
  public:
    void run(int threads, Region* region) {
        std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
        if (!owner.owns_lock()) {
            region->join(0);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            try {
                for (; workers_ < threads - 1; ++workers_)
                    std::thread(&ThreadPool::loop, this, workers_ + 1, generation_).detach();
            } catch (const std::system_error&) {
                // No more threads to be had: those there are share the tasks.
            }
            region_ = region;
            active_ = threads;
            busy_ = workers_;
            ++generation_;
        }
        wake_.notify_all();
        inside = true;  // a call from within a task must not come back here
        region->join(0);
        inside = false;
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [&] { return busy_ == 0; });
        region_ = nullptr;
    }

  private:
    void loop(int worker, std::uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return generation_ != seen; });
            seen = generation_;
            Region* region = region_;
            const bool takes_part = worker < active_;
            lock.unlock();
            if (takes_part) {
                inside = true;
                region->join(worker);
            }
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex owner_, mutex_;
    std::condition_variable wake_, done_;
    Region* region_ = nullptr;
    std::uint64_t generation_ = 0;
    int workers_ = 0, active_ = 0, busy_ = 0;

  public:
    static thread_local bool inside;
};
thread_local bool ThreadPool::inside = false;

std::atomic<bool> forked{false};
std::atomic<ThreadPool*> child_pool{nullptr};

ThreadPool& pool_of_child() {
    ThreadPool* pool = child_pool.load();
    if (!pool) {
        auto* fresh = new ThreadPool;
        if (child_pool.compare_exchange_strong(pool, fresh)) pool = fresh;
        else delete fresh;
    }
    return *pool;
}

// A child of fork() has one thread; a pool that the parent used, ours or that of anybody else who used OpenMP before (libgomp
// keeps one for all), is gone, and waiting for it would hang. Whether there was one shows in the number of threads; such a
// child makes plain threads of its own. Registered at load time: a fork before our first call matters too.
struct ForkGuard {
    static std::atomic<bool> had_threads;

    ForkGuard() {
#if defined(__linux__)
        pthread_atfork([] { had_threads = process_has_threads(); }, nullptr,
                       [] {
                           if (had_threads) forked = true;
                           child_pool = nullptr;  // that of the parent, when it was a child itself, has no threads here
                       });
#endif
    }
#if defined(__linux__)
    static bool process_has_threads() {
        struct stat folder;  // one link for each thread, and two for the folder itself
        return stat("/proc/self/task", &folder) != 0 || folder.st_nlink > 3;
    }
#endif
};
std::atomic<bool> ForkGuard::had_threads{false};
const ForkGuard fork_guard;

struct Threading {
    Backend backend = Backend::serial;
    std::string description;
    Status status;
    OpenMp openmp;
    std::unique_ptr<ThreadPool> pool;

    Threading() {
        const char* forced = std::getenv("FASTFFN_THREADING");
        const std::string wanted = forced ? forced : "";
        if (!wanted.empty() && wanted != "openmp" && wanted != "threads" && wanted != "serial") {
            status = {StatusCode::invalid_argument,
                      "FASTFFN_THREADING='" + wanted + "' is not known; expected openmp, threads or serial"};
            description = status.message();
            return;
        }
        if (wanted == "serial" || !FASTFFN_HAS_THREADS) {
            description = wanted == "serial" ? "serial (FASTFFN_THREADING)" : "serial (built without threads)";
            return;
        }
        if (wanted != "threads") {
            if (openmp.load(RTLD_DEFAULT)) {
                backend = Backend::openmp;
                description = "openmp (the runtime this process had loaded)";
                return;
            }
            if (void* library = dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL)) {
                if (openmp.load(library)) {
                    backend = Backend::openmp;
                    description = "openmp (libgomp.so.1)";
                    return;
                }
            }
        }
        if (wanted == "openmp") {
            status = {StatusCode::unsupported, "FASTFFN_THREADING='openmp', but libgomp.so.1 cannot be loaded here"};
            description = status.message();
            return;
        }
        backend = Backend::threads;
        description = wanted == "threads" ? "threads (FASTFFN_THREADING)" : "threads (no libgomp.so.1 found)";
        pool = std::make_unique<ThreadPool>();
    }
};

// Never destroyed: in a forked child the pool's threads do not exist, and joining them would hang at exit.
Threading& threading() {
    static Threading& instance = *new Threading;
    return instance;
}

void run_openmp_worker(void* argument) { static_cast<Region*>(argument)->join(threading().openmp.thread_num()); }

}  // namespace

Status check_threading() { return threading().status; }

int usable_threads(int wanted) noexcept {
    static const int limit = [] {
        const int cores = static_cast<int>(std::thread::hardware_concurrency());
        return cores * 4 > 64 ? cores * 4 : 64;
    }();
    return wanted < 1 ? 1 : wanted > limit ? limit : wanted;
}

const char* threading_backend() noexcept { return threading().description.c_str(); }

int default_threads() noexcept {
    Threading& t = threading();
    switch (t.backend) {
        case Backend::openmp: return ThreadPool::inside || t.openmp.in_parallel() ? 1 : t.openmp.max_threads();
        case Backend::threads: {
            if (ThreadPool::inside) return 1;
            if (const char* text = std::getenv("OMP_NUM_THREADS")) {
                const int count = std::atoi(text);
                if (count > 0) return count;
            }
            const unsigned count = std::thread::hardware_concurrency();
            return count ? static_cast<int>(count) : 1;
        }
        case Backend::serial: break;
    }
    return 1;
}

void run_phases(int threads, const PhasedWork& work) noexcept {
    Region region(work, threads);
    bool shared = threads > 1 && !ThreadPool::inside;
    if (shared && work.phases == 1) shared = work.tasks(work.argument, 0) > 1;
    if (shared) {
        Threading& t = threading();
        if (forked && t.backend != Backend::serial) {
            pool_of_child().run(threads, &region);
            return;
        }
        if (t.backend == Backend::openmp && !t.openmp.in_parallel()) {
            t.openmp.parallel(&run_openmp_worker, &region, static_cast<unsigned>(threads), 0);
            return;
        }
        if (t.backend == Backend::threads) {
            t.pool->run(threads, &region);
            return;
        }
    }
    region.join(0);
}

}  // namespace fastffn
