// The device as kernels and their instructions see it: threads of the running block, barriers, warps, shared memory.
// Blocks of a cluster run together, as one block of all their threads with barriers and dynamic shared memory for each; they may
// have no __shared__ variables, which would be the same for all.
//
// A block's threads are fibers that run one at a time, from one synchronising call to the next; which one goes on is the
// schedule's choice. Blocks run one after another, in an order that the schedule shuffles: no kernel may wait for another
// block. Whatever is wrong ends the launch with a message that says thread, source line and what the others were doing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/vector_types.hpp"

namespace emulator {

// Where in a kernel: default arguments of every instruction fill it in.
struct Site {
    const char* file;
    int line;
};
#define FASTFFN_SITE ::emulator::Site site = {__builtin_FILE(), __builtin_LINE()}

// Ends the launch. printf-like; "block (0, 0, 0), thread (1, 0, 0), kernel.cuh:12: " goes before it.
[[noreturn]] void fail(const Site& site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// ---- the running thread ----

int lane();
// Where any thread may go on: what takes time on a GPU calls it.
void yield();
void fence();
// Stops the running thread until another wakes it: `what` is for the message of a deadlock.
void wait_for(const Site& site, const char* what, bool (*ready)(void*), void* argument);

// ---- block barriers ----

// Barrier 0 takes all threads of the block, others `threads` of them. Returns the sum of `value` over all that came.
int barrier(const Site& site, const char* name, int id, int threads, int value, bool waits);

// ---- clusters ----

int cluster_rank();
int cluster_blocks();
// Waits for all threads of the cluster.
void cluster_sync(const Site& site);

// ---- warp operations ----

struct Lanes {
    void* operand[32];  // nullptr for lanes that the mask leaves out
    unsigned mask;
    const Site& site;
};
// Waits until every lane of `mask` calls this with the same name, line and mask; the last to come calls `run` for all.
void warp_operation(const Site& site, const char* name, unsigned mask, void* operand, void (*run)(const Lanes&));

// ---- memory ----

// Whether [data, data + bytes) is shared memory of the running block; the launch fails otherwise.
void check_shared(const Site& site, const char* name, const void* data, std::size_t bytes, std::size_t alignment);
void check_aligned(const Site& site, const char* name, const void* data, std::size_t alignment);
unsigned char* dynamic_shared_memory();
std::uint32_t shared_window_address(const void* data);
// What memory holds before anyone has written to it: NaN in every float format, or a huge number.
void fill_with_garbage(void* data, std::size_t bytes);
// memcpy that the race check does not see.
void copy_unseen(void* to, const void* from, std::size_t bytes);

// What the running thread does to memory: for the race check, where it is on (see races.hpp).
enum class Access { read, write, atomic };
void note_access(const Site& site, Access access, const void* data, std::size_t bytes);
namespace races {
void check_read_only(const Site& site, const char* name, const void* data, std::size_t bytes);
}

// ---- cp.async ----

void async_copy(const Site& site, void* shared, const void* global, int size, int bytes);
void async_commit();
void async_wait(int pending);

// A random number of the schedule.
std::uint32_t random_bits();

}  // namespace emulator
