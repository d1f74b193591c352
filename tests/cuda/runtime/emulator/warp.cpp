// Operations of a warp: each lane leaves its operand and waits; the last to come works for all.
#include <cstring>

#include "emulator/block.hpp"
#include "emulator/races.hpp"

namespace emulator {

void warp_operation(const Site& site, const char* name, unsigned mask, void* operand, void (*run)(const Lanes&)) {
    Thread& self = *block.running;
    const int first = self.number / 32 * 32, own = self.number - first;
    if (!(mask >> own & 1)) fail(site, "%s: the mask %08x leaves out the calling lane %d", name, mask, own);
    Lanes lanes{{}, mask, site};
    bool all_here = true;
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1) || i == own) continue;
        if (first + i >= block.threads)
            fail(site, "%s: the mask %08x names lane %d, but the block ends before it", name, mask, i);
        const Thread& other = *block.pool[first + i];
        if (other.state == State::done)
            fail(site, "%s: the mask %08x names lane %d, which has returned", name, mask, i);
        if (other.state == State::warp && (other.mask >> own & 1)) {
            if (std::strcmp(other.doing, name) != 0 || other.site.line != site.line ||
                std::strcmp(other.site.file, site.file) != 0)
                fail(site, "%s: divergent: lane %d waits at %s of line %d", name, i, other.doing, other.site.line);
            if (other.mask != mask)
                fail(site, "%s: lane %d came with the mask %08x, lane %d with %08x", name, own, mask, i, other.mask);
            lanes.operand[i] = other.operand;
        } else {
            all_here = false;
        }
    }
    if (!all_here) {
        block.set_waiting(self, State::warp, site, name);
        self.mask = mask;
        self.operand = operand;
        self.fiber.suspend();
        return;
    }
    lanes.operand[own] = operand;
    if (run) run(lanes);
    // "Shuffles, votes, matches and reductions imply no memory barrier" (CUDA C++ Programming Guide); __syncwarp does.
    if (std::strncmp(name, "__", 2) != 0 || std::strcmp(name, "__syncwarp") == 0) races::join_warp(first, mask);
    for (int i = 0; i < 32; i++)
        if ((mask >> i & 1) && i != own) block.set_ready(*block.pool[first + i]);
    yield();
}

}  // namespace emulator
