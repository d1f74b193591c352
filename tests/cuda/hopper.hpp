// An emulated Hopper for a test, and in how many schedules a mistake shows.
#pragma once

#include <cstdint>

#include "support.hpp"

namespace hopper {

constexpr int seeds = 24;
// With the race check a mistake shows in every schedule, not only where it changes a result.
#ifdef FASTFFN_RACE_CHECK
constexpr int least = seeds;
#else
constexpr int least = seeds / 3;
#endif

struct Hopper {
    Hopper() { emulator::set_architecture(90); }
    ~Hopper() {
        emulator::set_architecture(80);
        emulator::set_tensor_maps(true);
        emulator::set_seed(1);
    }
};

template <class F>
int caught(F wrong) {
    int count = 0;
    for (int seed = 0; seed < seeds; seed++) {
        emulator::set_seed(static_cast<std::uint64_t>(seed));
        count += wrong() ? 1 : 0;
    }
    return count;
}

}  // namespace hopper
