// Device memory of the emulated plugin, for programs that load it: arrays that host code cannot touch with FASTFFN_CUDA_HIDE=1, but
// while access is on. (Any other memory of the host's is device memory to it too.)
#include <new>

#include "emulator/control.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void* fastffn_emulated_allocate(std::size_t bytes) { return emulator::allocate(bytes); }
EXPORT void fastffn_emulated_release(void* data) { emulator::release(data); }

// On and off in pairs, from one thread.
EXPORT void fastffn_emulated_access(int on) {
    alignas(emulator::DeviceAccess) static unsigned char place[sizeof(emulator::DeviceAccess)];
    static int depth = 0;
    if (on && depth++ == 0) new (place) emulator::DeviceAccess;
    if (!on && --depth == 0) reinterpret_cast<emulator::DeviceAccess*>(place)->~DeviceAccess();
}
