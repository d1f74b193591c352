// What launchers of Hopper's kernels ask of the device and of their arguments.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch/dense.hpp"

namespace fastffn::cuda {

// Coordinates of a tensor map are int, its strides have 40 bits.
constexpr std::int64_t sm90_most = 0x7fffffff - 65536, sm90_most_stride = std::int64_t{1} << 40;

// Of the device that is current; 0 if it does not say.
inline int device_attribute(cudaDeviceAttr which) {
    int device = 0, value = 0;
    return cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value
                                                                                                                 : 0;
}

// Whether tensor maps of the weights are possible, and rows of x have the alignment of every copy.
inline bool fits_sm90(const DenseArgs& args) {
    const auto aligned = [](const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; };
    return aligned(args.w) && aligned(args.w_gate) && args.row_bytes > 0 && args.row_bytes % 16 == 0 &&
           args.row_bytes <= sm90_most && args.x_stride % 16 == 0 && args.w_stride % 16 == 0 &&
           args.w_stride >= args.row_bytes && args.w_stride < sm90_most_stride && args.out_features <= sm90_most;
}

}  // namespace fastffn::cuda
