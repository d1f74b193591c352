// What programs for a GPU share: experiments in device memory, and how their differences are printed.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <random>
#include <vector>

#include "launch/launch.hpp"

namespace gpu {

inline int failures = 0;

inline bool report(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return true;
    std::printf("FAILED  %s: %s\n", what, cudaGetErrorString(status));
    failures++;
    return false;
}

// One block for each experiment, which it gets and gives back.
template <class Experiment>
bool run(const char* name, void (*kernel)(Experiment*), int threads, int shared_bytes,
         std::vector<Experiment>& experiments) {
    void* memory = nullptr;
    const std::size_t bytes = experiments.size() * sizeof(Experiment);
    if (!report(cudaMalloc(&memory, bytes), "cudaMalloc")) return false;
    const fastffn::cuda::Grid grid = {dim3(static_cast<unsigned>(experiments.size())),
                                      dim3(static_cast<unsigned>(threads)), shared_bytes, nullptr, name};
    const bool ok =
        report(cudaMemcpy(memory, experiments.data(), bytes, cudaMemcpyHostToDevice), "copy to the device") &&
        report(fastffn::cuda::launch(kernel, grid, static_cast<Experiment*>(memory)), name) &&
        report(cudaDeviceSynchronize(), name) &&
        report(cudaMemcpy(experiments.data(), memory, bytes, cudaMemcpyDeviceToHost), "copy to the host");
    cudaFree(memory);
    return ok;
}

// Counts differences; another() is true for the first few, which are worth a line each.
struct Differences {
    const char *name, *what;
    int count = 0;
    bool another() { return ++count <= 8; }
    ~Differences() {
        failures += count != 0;
        std::printf("%s  %s: %s", count ? "FAILED" : "ok    ", name, what);
        if (count) std::printf(", %d differences", count);
        std::printf("\n");
    }
};

// Four bits: two positions of four, ascending.
inline unsigned random_code(std::mt19937& random) {
    constexpr unsigned codes[] = {0x4, 0x8, 0xC, 0x9, 0xD, 0xE};
    return codes[random() % 6];
}
inline unsigned random_codes(std::mt19937& random) {
    unsigned word = 0;
    for (int i = 0; i < 8; i++) word |= random_code(random) << 4 * i;
    return word;
}

// False, with the reason, where there is no device.
inline bool has_device() {
    int devices = 0;
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaSuccess && devices > 0) return true;
    std::printf("no CUDA device: %s\n", cudaGetErrorString(status));
    cudaGetLastError();
    return false;
}

}  // namespace gpu
