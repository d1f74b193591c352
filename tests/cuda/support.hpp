// What the CUDA tests share: arrays in device memory, and children that are expected to die.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "../cpp/check.hpp"
#include "cuda_runtime.h"
#ifdef FASTFFN_ON_GPU
#include "gpu/device.hpp"
#endif

namespace support {

#ifdef FASTFFN_ON_GPU
constexpr bool on_gpu = true;
#else
constexpr bool on_gpu = false;  // on the emulated device
#endif

// An array in device memory: a guard page, or AddressSanitizer's red zone, follows its last element.
template <class T>
class Device {
  public:
    explicit Device(std::size_t count) : count_(count), data_(static_cast<T*>(emulator::allocate(count * sizeof(T)))) {}
    explicit Device(const std::vector<T>& values) : Device(values.size()) {
        if (count_) cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice);
    }
    ~Device() { emulator::release(data_); }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    T* data() { return data_; }
    const T* data() const { return data_; }
    std::size_t size() const { return count_; }
    std::vector<T> host() const {
        std::vector<T> values(count_);
        if (count_) cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost);
        return values;
    }

  private:
    std::size_t count_;
    T* data_;
};

// Runs f in a child. True if it dies of a signal, or with the status of a sanitizer that found something.
template <class F>
bool dies(F f) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) _exit(0);
        f();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0);
}

inline bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

}  // namespace support
