// What AddressSanitizer is told about stacks and shared memory; nothing without it.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define FASTFFN_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTFFN_ASAN 1
#endif
#endif
#ifndef FASTFFN_ASAN
#define FASTFFN_ASAN 0
#endif

#if FASTFFN_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

inline void poison([[maybe_unused]] const void* data, [[maybe_unused]] std::size_t bytes) {
#if FASTFFN_ASAN
    __asan_poison_memory_region(data, bytes);
#endif
}

inline void unpoison([[maybe_unused]] const void* data, [[maybe_unused]] std::size_t bytes) {
#if FASTFFN_ASAN
    __asan_unpoison_memory_region(data, bytes);
#endif
}

inline void start_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* bottom,
                         [[maybe_unused]] std::size_t bytes) {
#if FASTFFN_ASAN
    __sanitizer_start_switch_fiber(fake, bottom, bytes);
#endif
}

inline void finish_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** bottom,
                          [[maybe_unused]] std::size_t* bytes) {
#if FASTFFN_ASAN
    __sanitizer_finish_switch_fiber(fake, bottom, bytes);
#endif
}

}  // namespace emulator
