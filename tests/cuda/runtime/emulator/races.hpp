// The race check: which accesses of a launch's threads nothing puts in order.
//
// Kernels compiled with -fsanitize=thread call a function for every load and store. Those functions are defined here, not in
// ThreadSanitizer's library, for CUDA threads instead of the operating system's: every thread has a vector clock; barriers,
// warp operations and atomics join clocks. Two accesses to one byte of shared or device memory, one of them a write, of which
// neither thread's clock has seen the other fail the launch; so do accesses outside of an array, and reads of shared memory
// that nobody wrote. One schedule is enough for that. Without -fsanitize=thread nothing is checked.
//
// What goes on beside the threads (bulk copies, wgmma) is an Agent: a thread of its own that has seen what its issuer had seen, and
// that others have seen once they wait for it. Agents see what a thread stored to shared memory only behind its proxy fence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulator/device.hpp"

namespace emulator::races {

// Of threads 0 … n - 1: what is seen of each; n … 2n - 1: what of that lies before a proxy fence of theirs; then of agents. Short
// where the rest is 0.
using Clock = std::vector<std::uint32_t>;

struct Agent {
    int slot = -1;  // -1: nothing is checked
    std::uint32_t time = 0;
    Clock clock;
};

// A dependent launch could have begun during the one before: until a thread has waited for that, it may touch nothing that it wrote.
void begin_launch(bool is_dependent);
void wait_for_launch();
// A load that wants memory which nothing writes while the kernel runs: a dependent runs while the launch before it writes, so this
// fails for what that has written, waited or not.
void check_read_only(const Site& site, const char* name, const void* data, std::size_t bytes);
void begin_block(int threads);
// Of the block of this rank in its cluster.
void arrive_at_barrier(int rank, int id);
void leave_barrier(int rank, int id, int thread);
void reset_barrier(int rank, int id);
void join_warp(int first_thread, unsigned mask);
void fence();

// The running thread's: one that has seen what it has. `what` and where for messages; released when nobody waits for it any more.
Agent start_agent(const Site& site, const char* what);
void note(const Agent& agent, const Site& site, Access access, const void* data, std::size_t bytes);
void wait_for_agent(const Agent& agent, int thread);
void release_agent(Agent& agent);
void proxy_fence();
// Clocks of mbarriers: what arrives, and what those see who wait.
void release_into(Clock& clock);
void release_into(Clock& clock, const Agent& agent);
void acquire_from(const Clock& clock, int thread);

// [data, data + bytes) inside of a mapping whose other bytes belong to nobody.
void add_allocation(const void* data, std::size_t bytes, const void* mapping, std::size_t mapping_bytes);
void remove_allocation(const void* data);

}  // namespace emulator::races
