// The running block, for the emulator's own files.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulator/device.hpp"
#include "emulator/fiber.hpp"

namespace emulator {

struct AsyncCopy {
    void* shared;
    const void* global;
    int size, bytes;
    bool read_early;
    unsigned char early[16];
    Site site;
};

enum class State { ready, barrier, warp, condition, phase, done };

struct Thread {
    Fiber fiber;
    int number = 0;  // in its cluster: those of its first block, of its second …
    int rank = 0;    // of its block in the cluster
    uint3 index{};
    State state = State::done;
    Site site{};
    const char* doing = "";
    // State::warp
    unsigned mask = 0;
    void* operand = nullptr;
    // State::condition
    bool (*condition)(void*) = nullptr;
    void* argument = nullptr;
    // State::barrier
    int barrier_id = 0, barrier_sum = 0;
    // State::phase
    void* mbarrier = nullptr;
    unsigned parity = 0;
    // cp.async: committed groups, oldest first, and what is not committed yet.
    std::vector<std::vector<AsyncCopy>> groups;
    std::vector<AsyncCopy> open_group;
};

struct Barrier {
    int arrived = 0, expected = 0, sum = 0;
    Site site{};
    const char* name = "";
};

// Blocks of a cluster, which run together: mostly one.
constexpr int most_blocks = 4;
// Beside the 16 barriers of a block: that of its cluster.
constexpr int cluster_barrier = 16;

struct Block {
    std::vector<std::unique_ptr<Thread>> pool;  // only grows
    int threads = 0, done = 0;                  // of all blocks
    int blocks = 1, threads_of_block = 0, done_of_block[most_blocks] = {};
    uint3 index[most_blocks] = {};
    Thread* running = nullptr;
    std::string failure;
    Barrier barriers[most_blocks][17];
    std::mt19937_64 random;
    // The schedule: thread number by rank; the first ready rank goes on, or one from a random place.
    enum class Policy { random, order } policy = Policy::random;
    std::vector<int> thread_of_rank, rank_of_thread;
    std::vector<std::uint64_t> ready;  // bits by rank
    int conditions = 0;                // threads in State::condition

    unsigned char* dynamic = nullptr;  // of the first block; the others' are shared_span() apart
    std::size_t dynamic_bytes = 0;

    void set_ready(Thread& thread);
    void set_waiting(Thread& thread, State state, const Site& site, const char* doing);
    Thread* choose();
    void check_early_exit();
    std::string describe_waiting() const;
};

extern Block block;

std::string thread_name(const Thread& thread);

}  // namespace emulator
