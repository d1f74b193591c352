// The mbarriers of a block, for the emulator's own files.
#pragma once

#include <cstdint>
#include <string>

#include "emulator/races.hpp"

namespace emulator {

struct Mbarrier {
    int arrivals = 0, missing = 0;  // of a phase; of this phase
    std::int64_t bytes = 0;         // expected and not there yet
    unsigned phase = 0;
    int init_thread = 0;
    bool is_fenced = false;  // known to bulk copies
    races::Clock gathering, passed;
};

// Fails where there is none.
Mbarrier& mbarrier_at(const Site& site, const char* name, void* barrier);
// The same place in the shared memory of another block of the cluster; fails where that has returned.
void* in_block(const Site& site, const char* name, void* local, int rank);
// Bytes of a copy that has ended; a message if that cannot be.
std::string complete_bytes(void* barrier, std::int64_t bytes, const races::Agent& agent);

}  // namespace emulator
