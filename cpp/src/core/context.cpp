#include "fastffn/context.hpp"

#include <cstdlib>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastffn {

namespace {
// From this size on, ask for huge pages: a 6 MiB workspace is 1536 small pages, about the reach of a second-level TLB.
constexpr std::int64_t huge_page_bytes = std::int64_t{2} << 20;
}  // namespace

Context::Context(int threads) noexcept : threads_(threads) {}

Context::~Context() { release(); }

Context::Context(Context&& other) noexcept { *this = std::move(other); }

Context& Context::operator=(Context&& other) noexcept {
    std::swap(threads_, other.threads_);
    std::swap(memory_, other.memory_);
    std::swap(capacity_, other.capacity_);
    std::swap(last_kernel_, other.last_kernel_);
    return *this;
}

std::byte* Context::workspace(std::int64_t bytes) noexcept {
    if (bytes <= capacity_) return memory_;
    release();
    const bool huge = bytes >= huge_page_bytes;
    const std::int64_t rounded = (bytes + 63) / 64 * 64;
    memory_ = static_cast<std::byte*>(std::aligned_alloc(64, static_cast<std::size_t>(rounded)));
    if (!memory_) return nullptr;
    capacity_ = rounded;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (huge) {
        const auto address = reinterpret_cast<std::uintptr_t>(memory_);
        const std::uintptr_t begin = (address + 4095) / 4096 * 4096, end = (address + rounded) / 4096 * 4096;
        (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: failure changes nothing
    }
#else
    (void)huge;
#endif
    return memory_;
}

void Context::release() noexcept {
    std::free(memory_);
    memory_ = nullptr;
    capacity_ = 0;
}

}  // namespace fastffn
