// The device of a call, and back to the caller's.
#pragma once

#include <cuda_runtime.h>

#include "ptx/driver_context.cuh"

namespace fastffn::cuda {

// Sets the device for a call and puts back what the caller had: its context, or none. On the device where the caller is, it touches
// nothing. cudaSetDevice instead would leave the device's primary context in place of one that the caller made, and would make one
// on device 0 for a thread that has none.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        if (cudaGetDevice(&previous_) == cudaSuccess && device == previous_) return;
        context_ = ptx::DriverContext::current();
        status_ = cudaSetDevice(device);
        is_changed_ = status_ == cudaSuccess;
    }
    ~DeviceGuard() {
        if (!is_changed_) return;
        if (context_.is_known()) context_.restore();
        else cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    cudaError_t status() const { return status_; }

  private:
    int previous_ = 0;
    bool is_changed_ = false;
    ptx::DriverContext context_;
    cudaError_t status_ = cudaSuccess;
};

}  // namespace fastffn::cuda
