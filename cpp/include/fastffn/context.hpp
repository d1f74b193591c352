// Context: the threads and the workspace of a call. Use one per calling thread, or one per call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace fastffn {

// Threads a call uses when its context names no number: OMP_NUM_THREADS, torch.set_num_threads() and omp_set_num_threads()
// set it, as the pool is OpenMP's. 1 inside another parallel region.
int default_threads() noexcept;

// What runs the threads and why, such as "openmp (libgomp.so.1)". FASTFFN_THREADING forces one: openmp,
// threads, serial; a name that is unknown or cannot be had is an error in every call that runs kernels.
const char* threading_backend() noexcept;

// `wanted`, but at least 1 and no more than 64 or four per core: beyond that threads only cost memory, and a runtime that
// cannot make them ends the process. Every call applies it to its number of threads.
int usable_threads(int wanted) noexcept;

class Context {
  public:
    // threads = 0: default_threads() at each call. Calls use at most 64, or four per core if that is more.
    explicit Context(int threads = 0) noexcept;
    ~Context();
    Context(Context&&) noexcept;
    Context& operator=(Context&&) noexcept;
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    int threads() const noexcept { return threads_; }
    void set_threads(int threads) noexcept { threads_ = threads; }

    // Memory for the calls to come: grows to the largest call, kept until release() or destruction.
    // 64-byte aligned; nullptr when memory ran out.
    std::byte* workspace(std::int64_t bytes) noexcept;
    std::int64_t workspace_bytes() const noexcept { return capacity_; }
    void release() noexcept;

    // The kernels that the last call ran for its first weight, such as "bf16/amx"; empty before the first call. For tests and reports.
    const char* last_kernel() const noexcept { return last_kernel_; }
    void set_last_kernel(const char* name) noexcept { last_kernel_ = name; }

  private:
    int threads_ = 0;
    std::byte* memory_ = nullptr;
    std::int64_t capacity_ = 0;
    const char* last_kernel_ = "";
};

}  // namespace fastffn
