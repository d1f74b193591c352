#include "emulator/mbarrier.hpp"

#include <algorithm>
#include <map>
#include <string>

#include "emulator/asynchronous.hpp"
#include "emulator/block.hpp"
#include "emulator/control.hpp"
#include "emulator/memory.hpp"

namespace emulator {

namespace {

// What the eight bytes hold: whoever writes over them is found.
constexpr std::uint64_t magic = 0x7265697272616262u;
std::map<void*, Mbarrier> mbarriers;

void end_phase(void* at, Mbarrier& barrier) {
    barrier.missing = barrier.arrivals;
    ++barrier.phase;
    for (std::size_t i = 0; i < barrier.gathering.size(); i++) {
        if (barrier.passed.size() <= i) barrier.passed.resize(i + 1);
        barrier.passed[i] = std::max(barrier.passed[i], barrier.gathering[i]);
    }
    barrier.gathering.clear();
    for (int i = 0; i < block.threads; i++) {
        Thread& thread = *block.pool[i];
        if (thread.state == State::phase && thread.mbarrier == at && (barrier.phase & 1) != thread.parity)
            block.set_ready(thread);
    }
}

void end_phase_if_complete(void* at, Mbarrier& barrier) {
    if (barrier.missing == 0 && barrier.bytes == 0) end_phase(at, barrier);
}

void mbarrier_arrive_known(const Site& site, void* at, Mbarrier& barrier, unsigned expected_bytes) {
    if (barrier.missing == 0)
        fail(site, "mbarrier.arrive: all %d arrivals of phase %u have come already", barrier.arrivals, barrier.phase);
    barrier.bytes += expected_bytes;
    if (barrier.bytes >= 1 << 20) fail(site, "mbarrier.arrive: more than 2^20 - 1 bytes expected");
    --barrier.missing;
    races::release_into(barrier.gathering);
    end_phase_if_complete(at, barrier);
    yield();
}

}  // namespace

void begin_mbarriers() { mbarriers.clear(); }

void* in_block(const Site& site, const char* name, void* local, int rank) {
    if (rank < 0 || rank >= block.blocks) fail(site, "%s: rank %d in a cluster of %d blocks", name, rank, block.blocks);
    if (block.done_of_block[rank] == block.threads_of_block)
        fail(site, "%s: all threads of rank %d have returned, and with them its shared memory", name, rank);
    return static_cast<unsigned char*>(local) + (rank - block.running->rank) * shared_span();
}

Mbarrier& mbarrier_at(const Site& site, const char* name, void* barrier) {
    const auto found = mbarriers.find(barrier);
    if (found == mbarriers.end()) fail(site, "%s: no mbarrier was initialised there", name);
    std::uint64_t bits;
    copy_unseen(&bits, barrier, 8);
    if (bits != magic) fail(site, "%s: someone wrote over the mbarrier", name);
    note_access(site, Access::read, barrier, 8);
    return found->second;
}

void mbarrier_init(const Site& site, void* barrier, unsigned arrivals) {
    if (architecture() < 90) fail(site, "mbarrier.try_wait: sm_%d has none; expected sm_90", architecture());
    check_shared(site, "mbarrier.init", barrier, 8, 8);
    if (arrivals == 0 || arrivals >= 1u << 20) fail(site, "mbarrier.init: %u arrivals; 1 to 2^20 - 1", arrivals);
    if (mbarriers.count(barrier)) fail(site, "mbarrier.init: there is one already");
    note_access(site, Access::write, barrier, 8);
    copy_unseen(barrier, &magic, 8);
    Mbarrier& made = mbarriers[barrier];
    made.arrivals = made.missing = static_cast<int>(arrivals);
    made.init_thread = block.running->number;
}

void mbarrier_fence_init() {
    for (auto& [at, barrier] : mbarriers)
        if (barrier.init_thread == block.running->number) barrier.is_fenced = true;
}

void fence_proxy_async() {
    races::proxy_fence();
    mbarrier_fence_init();
}

void mbarrier_arrive_at(const Site& site, void* local, int rank) {
    void* const at = in_block(site, "mbarrier.arrive", local, rank);
    mbarrier_arrive_known(site, at, mbarrier_at(site, "mbarrier.arrive", at), 0);
}

void mbarrier_arrive(const Site& site, void* at, unsigned expected_bytes) {
    check_shared(site, "mbarrier.arrive", at, 8, 8);
    mbarrier_arrive_known(site, at, mbarrier_at(site, "mbarrier.arrive", at), expected_bytes);
}

void mbarrier_wait(const Site& site, void* at, unsigned parity) {
    check_shared(site, "mbarrier.try_wait", at, 8, 8);
    const Mbarrier& barrier = mbarrier_at(site, "mbarrier.try_wait", at);
    if (parity > 1) fail(site, "mbarrier.try_wait: parity %u; 0 or 1", parity);
    Thread& self = *block.running;
    if ((barrier.phase & 1) == parity) {
        block.set_waiting(self, State::phase, site, "mbarrier.try_wait");
        self.mbarrier = at;
        self.parity = parity;
        self.fiber.suspend();
    } else {
        yield();
    }
    races::acquire_from(barrier.passed, self.number);
}

std::string complete_bytes(void* at, std::int64_t bytes, const races::Agent& agent) {
    Mbarrier& barrier = mbarriers.at(at);
    barrier.bytes -= bytes;
    races::release_into(barrier.gathering, agent);
    if (barrier.missing == 0 && barrier.bytes < 0)
        return "cp.async.bulk: " + std::to_string(-barrier.bytes) + " bytes more than its mbarrier expects";
    end_phase_if_complete(at, barrier);
    return {};
}

std::string describe_mbarriers() {
    std::string text;
    for (const auto& [at, barrier] : mbarriers) {
        bool awaited = false;
        for (int i = 0; i < block.threads; i++)
            awaited = awaited || (block.pool[i]->state == State::phase && block.pool[i]->mbarrier == at);
        if (awaited)
            text += "; the mbarrier at " +
                    std::to_string((static_cast<unsigned char*>(at) - block.dynamic) % shared_span()) +
                    " is in phase " + std::to_string(barrier.phase) + ", " + std::to_string(barrier.missing) + " of " +
                    std::to_string(barrier.arrivals) + " arrivals and " + std::to_string(barrier.bytes) +
                    " bytes missing";
    }
    return text;
}

}  // namespace emulator
