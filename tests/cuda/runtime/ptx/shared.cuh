// cuda/src/ptx/shared.cuh on the CPU.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

inline unsigned char* dynamic_shared() { return emulator::dynamic_shared_memory(); }
inline unsigned shared_address(const void* shared) { return emulator::shared_window_address(shared); }

}  // namespace fastffn::ptx
