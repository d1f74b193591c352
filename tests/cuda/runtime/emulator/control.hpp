// What tests say to the emulated device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulator {

// The next launches take their schedules from this seed. FASTFFN_CUDA_SEED in the environment is the first one.
void set_seed(std::uint64_t seed);
// What cudaDeviceGetAttribute says; 3 at first, so that persistent kernels go round.
void set_multiprocessors(int count);
// 80, 90, …: how much shared memory a block may ask for, and which instructions exist. FASTFFN_CUDA_ARCHITECTURE in the environment
// is the first one.
void set_architecture(int architecture);
int architecture();
// Whether the driver can make tensor maps; true at first.
void set_tensor_maps(bool available);

// Why the last launch failed; empty if it did not.
const char* last_failure();

// Of the last launch: which kernel a launcher chose.
int threads_of_last_block();
int blocks_of_last_cluster();

// Launches of this process so far.
std::uint64_t launches();

// Device memory whose end, or begin, lies against a page that may not be touched (or in AddressSanitizer's red zone).
void* allocate(std::size_t bytes);
void release(void* data);

// With FASTFFN_CUDA_HIDE=1 device memory may be touched only while one of these lives, as launches and copies have it: host code
// that reads an array of the device ends the program, as it would with a GPU. (Not under AddressSanitizer.)
class DeviceAccess {
  public:
    DeviceAccess();
    ~DeviceAccess();
    DeviceAccess(const DeviceAccess&) = delete;
};

// Used by cudaLaunchKernelEx: `body` runs once per thread.
struct LaunchShape {
    unsigned grid[3], block[3];
    std::size_t shared_bytes;
    const void* kernel;
    bool is_dependent = false;  // could overlap with the launch before
    unsigned cluster = 1;       // blocks, in direction x
};
bool run_launch(const LaunchShape& shape, const std::function<void()>& body);
void allow_shared_bytes(const void* kernel, std::size_t bytes);

}  // namespace emulator
