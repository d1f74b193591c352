// What the emulated device says about itself.
#include <cstdlib>

#include "emulator/host_api.hpp"

namespace emulator {

namespace {
int count = 3, level = [] {
    const char* const text = std::getenv("FASTFFN_CUDA_ARCHITECTURE");
    return text ? std::atoi(text) : 80;
}();
}  // namespace

void set_multiprocessors(int value) { count = value; }
int multiprocessors() { return count; }
void set_architecture(int value) { level = value; }
int architecture() { return level; }

cudaError_t& pending_error() {
    thread_local cudaError_t error = cudaSuccess;
    return error;
}

}  // namespace emulator
