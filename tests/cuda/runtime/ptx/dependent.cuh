// cuda/src/ptx/dependent.cuh on the CPU: launches follow each other, but the race check knows which of them could overlap.
#pragma once

#include <cuda_runtime.h>

#include "emulator/races.hpp"

namespace fastffn::ptx {

inline void wait_for_launch() { emulator::races::wait_for_launch(); }
inline void let_next_launch_begin() {}

}  // namespace fastffn::ptx
