// Shared memory and device memory, with what makes wrong accesses show.
#include "emulator/memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "emulator/block.hpp"
#include "emulator/control.hpp"
#include "emulator/races.hpp"
#include "emulator/sanitizer.hpp"

// Variables that kernels declare __shared__ lie in a section of their own; the linker marks its ends.
extern "C" {
extern unsigned char __start_cuda_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_cuda_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulator {

namespace {

// Behind the last variable: this library is linked last. No one writes here, so the race check knows a read for a mistake.
__attribute__((section("cuda_shared"), used)) unsigned char behind_variables[256] = {};

constexpr std::size_t most_dynamic = 228 * 1024, red_zone = 1024;
unsigned char garbage = 0xFF;

constexpr std::size_t page = 4096, mapped = (most_dynamic + red_zone + page - 1) / page * page;

// Of the blocks of a cluster, one behind the other: 1024-aligned, a page that may not be touched behind each.
unsigned char* arena(int rank) {
    static unsigned char* const begin = [] {
        void* map =
            mmap(nullptr, most_blocks * (mapped + page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) throw std::bad_alloc();
        for (int i = 1; i <= most_blocks; i++)
            mprotect(static_cast<unsigned char*>(map) + i * static_cast<std::ptrdiff_t>(mapped + page) - page, page,
                     PROT_NONE);
        return static_cast<unsigned char*>(map) + mapped - most_dynamic - red_zone;
    }();
    static_assert((most_dynamic + red_zone) % 1024 == 0, "keeps the alignment");
    return begin + rank * static_cast<std::ptrdiff_t>(mapped + page);
}

// The red zones between variables, where AddressSanitizer puts them, are filled too: no one may read them.
__attribute__((no_sanitize("address"))) void fill(unsigned char* data, std::size_t bytes) {
    volatile unsigned char* const p = data;
    for (std::size_t i = 0; i < bytes; i++) p[i] = garbage;
}

std::map<void*, std::pair<void*, std::size_t>>& mappings() {
    static auto* const all = new std::map<void*, std::pair<void*, std::size_t>>;
    return *all;
}

}  // namespace

void fill_with_garbage(void* data, std::size_t bytes) { std::memset(data, garbage, bytes); }

void copy_unseen(void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); }

void prepare_shared_memory(std::size_t dynamic_bytes) {
    // All ones: NaN as float, half and bf16, -1 as an integer. 0x7F…: huge as bf16 and f32, 127 as an integer.
    garbage = block.random() % 4 ? 0xFF : 0x7F;
    // The end of the array, not its begin, lies against the red zone; 1024-alignment leaves a gap of up to 1023 bytes.
    const std::size_t rounded = (dynamic_bytes + 1023) / 1024 * 1024;
    block.dynamic = arena(0) + most_dynamic - rounded;
    block.dynamic_bytes = dynamic_bytes;
    for (int rank = 0; rank < block.blocks; rank++) {
        unsigned char* const dynamic = block.dynamic + rank * shared_span();
        unpoison(arena(rank), most_dynamic + red_zone);
        fill(dynamic, rounded + red_zone);
        poison(dynamic + dynamic_bytes, rounded - dynamic_bytes + red_zone);
        if (dynamic > arena(rank)) poison(arena(rank), static_cast<std::size_t>(dynamic - arena(rank)));
    }
    if (__start_cuda_shared)
        fill(__start_cuda_shared, static_cast<std::size_t>(__stop_cuda_shared - __start_cuda_shared));
}

std::ptrdiff_t shared_span() { return static_cast<std::ptrdiff_t>(mapped + page); }

SharedRange dynamic_shared_range(int rank) {
    return {block.dynamic + rank * shared_span(), arena(rank), block.dynamic_bytes, most_dynamic + red_zone};
}

SharedRange shared_variables_range() {
    const auto bytes = __start_cuda_shared ? static_cast<std::size_t>(__stop_cuda_shared - __start_cuda_shared) : 0;
    return {__start_cuda_shared, __start_cuda_shared, bytes, bytes};
}

void release_shared_memory() {
    for (int rank = 0; rank < block.blocks; rank++) poison(arena(rank), most_dynamic + red_zone);
}

std::string check_shared_red_zone() {
    for (int rank = 0; rank < block.blocks; rank++) {
        unpoison(arena(rank), most_dynamic + red_zone);
        const unsigned char* const behind =
            block.dynamic + rank * shared_span() + static_cast<std::ptrdiff_t>(block.dynamic_bytes);
        for (const unsigned char* p = behind; p < arena(rank) + most_dynamic + red_zone; p++)
            if (*p != garbage)
                return "someone wrote " + std::to_string(p - behind) + " bytes behind the end of " +
                       std::to_string(block.dynamic_bytes) + " bytes of dynamic shared memory";
    }
    return {};
}

bool in_shared_memory(const void* data, std::size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    const unsigned char* const dynamic = dynamic_shared_memory();
    if (p >= dynamic && p + bytes <= dynamic + block.dynamic_bytes) return true;
    return __start_cuda_shared && p >= __start_cuda_shared && p + bytes <= __stop_cuda_shared;
}

void check_aligned(const Site& site, const char* name, const void* data, std::size_t alignment) {
    if (reinterpret_cast<std::uintptr_t>(data) % alignment)
        fail(site, "%s: address %p is not aligned to %zu bytes", name, data, alignment);
}

void check_shared(const Site& site, const char* name, const void* data, std::size_t bytes, std::size_t alignment) {
    if (!in_shared_memory(data, bytes)) {
        const auto offset = static_cast<const unsigned char*>(data) - dynamic_shared_memory();
        fail(site, "%s: %zu bytes at %td of the %zu bytes of dynamic shared memory, and in no __shared__ variable",
             name, bytes, offset, block.dynamic_bytes);
    }
    check_aligned(site, name, data, alignment);
}

unsigned char* dynamic_shared_memory() { return block.dynamic + block.running->rank * shared_span(); }

unsigned char* shared_window_begin() { return arena(block.running->rank); }

std::uint32_t shared_window_address(const void* data) {
    return static_cast<std::uint32_t>(static_cast<const unsigned char*>(data) - shared_window_begin());
}

// ---- device memory ----

namespace {

std::recursive_mutex device_memory;
int device_accesses = 0;

bool hides() {
    static const bool asked = [] {
        const char* setting = std::getenv("FASTFFN_CUDA_HIDE");
        return !FASTFFN_ASAN && setting && std::strcmp(setting, "1") == 0;
    }();
    return asked;
}

// The pages between the guards.
void protect(const std::pair<void*, std::size_t>& mapping, int protection) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mprotect(static_cast<unsigned char*>(mapping.first) + page, mapping.second - 2 * page, protection);
}

}  // namespace

DeviceAccess::DeviceAccess() {
    if (!hides()) return;
    device_memory.lock();
    if (device_accesses++ == 0)
        for (const auto& entry : mappings()) protect(entry.second, PROT_READ | PROT_WRITE);
}

DeviceAccess::~DeviceAccess() {
    if (!hides()) return;
    if (--device_accesses == 0)
        for (const auto& entry : mappings()) protect(entry.second, PROT_NONE);
    device_memory.unlock();
}

void* allocate(std::size_t bytes) {
    const std::lock_guard<std::recursive_mutex> lock(device_memory);
#if FASTFFN_ASAN
    void* const data = std::aligned_alloc(256, (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256);
    if (data) {
        fill(static_cast<unsigned char*>(data), bytes);
        const std::size_t rounded = (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256;
        poison(static_cast<unsigned char*>(data) + bytes, rounded - bytes);
        mappings()[data] = {data, rounded};
    }
    return data;
#else
    // 16-aligned, so that vectors of the last elements end at the guard page; cudaMalloc's 256 would hide what is behind.
    const std::size_t rounded = (bytes + 15) / 16 * 16;
    const std::size_t inner = std::max(page, (rounded + page - 1) / page * page);
    void* const map = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    auto* const base = static_cast<unsigned char*>(map) + page;
    mprotect(base, inner, PROT_READ | PROT_WRITE);
    unsigned char* const data = base + inner - rounded;
    fill(data, bytes);
    mappings()[data] = {map, inner + 2 * page};
    races::add_allocation(data, bytes, map, inner + 2 * page);
    if (hides() && device_accesses == 0) mprotect(base, inner, PROT_NONE);
    return data;
#endif
}

void release(void* data) {
    const std::lock_guard<std::recursive_mutex> lock(device_memory);
    const auto at = mappings().find(data);
    if (at == mappings().end()) return;
#if FASTFFN_ASAN
    unpoison(data, at->second.second);
    std::free(data);
#else
    races::remove_allocation(at->second.first);
    munmap(at->second.first, at->second.second);
#endif
    mappings().erase(at);
}

}  // namespace emulator
