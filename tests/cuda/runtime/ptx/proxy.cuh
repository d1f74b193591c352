// cuda/src/ptx/proxy.cuh on the CPU.
#pragma once

#include "emulator/asynchronous.hpp"

namespace fastffn::ptx {

inline void fence_proxy_async() { emulator::fence_proxy_async(); }

}  // namespace fastffn::ptx
