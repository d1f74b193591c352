// cuda/src/ptx/registers.cuh on the CPU: checked, without effect.
#pragma once

#include "emulator/asynchronous.hpp"

namespace fastffn::ptx {

template <int registers>
inline void registers_decrease(FASTFFN_SITE) {
    static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256, "what setmaxnreg takes");
    emulator::set_registers(site, registers, false);
}

template <int registers>
inline void registers_increase(FASTFFN_SITE) {
    static_assert(registers % 8 == 0 && registers >= 24 && registers <= 256, "what setmaxnreg takes");
    emulator::set_registers(site, registers, true);
}

}  // namespace fastffn::ptx
