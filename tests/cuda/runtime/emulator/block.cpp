// Schedules, block barriers and launches.
#include "emulator/block.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <numeric>

#include "emulator/asynchronous.hpp"
#include "emulator/control.hpp"
#include "emulator/memory.hpp"
#include "emulator/races.hpp"

// CUDA's built-in variables, those of the running thread.
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulator {

Block block;

namespace {

std::mutex one_launch_at_a_time;
std::uint64_t launch_count = 0;
std::string failure;
std::map<const void*, std::size_t> allowed_shared;

std::uint64_t& seed() {
    static std::uint64_t value = [] {
        const char* text = std::getenv("FASTFFN_CUDA_SEED");
        return text ? std::strtoull(text, nullptr, 10) : 1;
    }();
    return value;
}

void body_of_thread(void* body) {
    (*static_cast<const std::function<void()>*>(body))();
    Thread& self = *block.running;
    for (const auto& group : self.groups)
        if (!group.empty()) fail(group[0].site, "the thread returned without waiting for this cp.async");
    if (!self.open_group.empty()) fail(self.open_group[0].site, "the thread returned without committing this cp.async");
    check_waited();
    self.state = State::done;
    ++block.done;
    ++block.done_of_block[self.rank];
}

const char* base_name(const char* path) {
    const char* slash = std::strrchr(path, '/');
    return slash ? slash + 1 : path;
}

// Of the threads of one block; a second or so. Kernels of the tests take some ten thousand.
constexpr std::int64_t most_turns = 20000000;

// Every way of ordering threads shows other mistakes: a thread that runs far ahead meets memory nobody has written yet; one
// that is left behind meets memory written over already.
void make_schedule(std::uint64_t number) {
    const int n = block.threads;
    auto& order = block.thread_of_rank;
    order.resize(n);
    std::iota(order.begin(), order.end(), 0);
    const auto move_to_end = [&](int first, int count) {
        std::rotate(order.begin() + first, order.begin() + std::min(n, first + count), order.end());
    };
    block.policy = Block::Policy::order;
    switch (number % 6) {
        case 0: block.policy = Block::Policy::random; break;
        case 1: std::shuffle(order.begin(), order.end(), block.random); break;
        case 2: std::reverse(order.begin(), order.end()); break;
        case 3: break;
        case 4: move_to_end(static_cast<int>(block.random() % n), 1); break;
        case 5: move_to_end(static_cast<int>(block.random() % n) / 32 * 32, 32); break;
    }
    block.rank_of_thread.resize(n);
    for (int rank = 0; rank < n; rank++) block.rank_of_thread[order[rank]] = rank;
    block.ready.assign((n + 63) / 64, 0);
}

// One block, or a cluster of them from `index` on.
void run_block(const LaunchShape& shape, uint3 index, const std::function<void()>& body, std::uint64_t number) {
    block.blocks = static_cast<int>(shape.cluster);
    block.threads_of_block = static_cast<int>(shape.block[0] * shape.block[1] * shape.block[2]);
    block.threads = block.blocks * block.threads_of_block;
    block.done = block.conditions = 0;
    block.failure.clear();
    for (int rank = 0; rank < block.blocks; rank++) {
        block.index[rank] = {index.x + static_cast<unsigned>(rank), index.y, index.z};
        block.done_of_block[rank] = 0;
        for (Barrier& barrier : block.barriers[rank]) barrier = Barrier{};
    }
    while (static_cast<int>(block.pool.size()) < block.threads) block.pool.push_back(std::make_unique<Thread>());
    make_schedule(number);
    prepare_shared_memory(shape.shared_bytes);
    races::begin_block(block.threads);
    begin_asynchronous();
    for (int i = 0; i < block.threads; i++) {
        Thread& thread = *block.pool[i];
        thread.number = i;
        thread.rank = i / block.threads_of_block;
        const unsigned t = static_cast<unsigned>(i % block.threads_of_block);
        thread.index = {t % shape.block[0], t / shape.block[0] % shape.block[1], t / (shape.block[0] * shape.block[1])};
        thread.site = Site{};
        thread.groups.clear();
        thread.open_group.clear();
        block.set_ready(thread);
        thread.fiber.start(body_of_thread, const_cast<std::function<void()>*>(&body));
    }
    std::int64_t turns = 0;
    while (block.done < block.threads && block.failure.empty()) {
        end_copies(false);
        Thread* thread = block.choose();
        if (!thread && end_copies(true)) continue;
        if (!thread) {
            block.failure =
                "deadlock: no thread of the block can go on;" + block.describe_waiting() + describe_mbarriers();
            break;
        }
        if (!block.failure.empty()) break;
        if (++turns > most_turns) {
            block.failure = "no end in sight after " + std::to_string(most_turns) +
                            " turns: does the block wait for another one?" + block.describe_waiting();
            break;
        }
        block.running = thread;
        threadIdx = thread->index;
        blockIdx = block.index[thread->rank];
        thread->fiber.resume();
        if (thread->state == State::done) {
            block.ready[block.rank_of_thread[thread->number] / 64] &=
                ~(std::uint64_t{1} << block.rank_of_thread[thread->number] % 64);
            if (block.failure.empty()) block.check_early_exit();
        }
    }
    block.running = nullptr;
    if (const std::string copies = check_copies(); block.failure.empty()) block.failure = copies;
    if (block.failure.empty()) block.failure = check_shared_red_zone();
    release_shared_memory();
}

}  // namespace

std::string thread_name(const Thread& thread) {
    char text[96];
    const int length =
        std::snprintf(text, sizeof text, "thread (%u, %u, %u)", thread.index.x, thread.index.y, thread.index.z);
    if (block.blocks > 1)
        std::snprintf(text + length, sizeof text - static_cast<std::size_t>(length), " of rank %d", thread.rank);
    return text;
}

// The thread stops for good where it is: no exception has to find its way through code that expects none.
void fail(const Site& site, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (block.failure.empty())
        block.failure =
            thread_name(*block.running) + ", " + base_name(site.file) + ":" + std::to_string(site.line) + ": " + text;
    block.running->fiber.suspend();
    std::abort();
}

void Block::set_ready(Thread& thread) {
    thread.state = State::ready;
    const int rank = rank_of_thread[thread.number];
    ready[rank / 64] |= std::uint64_t{1} << rank % 64;
}

void Block::set_waiting(Thread& thread, State state, const Site& site, const char* doing) {
    thread.state = state;
    thread.site = site;
    thread.doing = doing;
    const int rank = rank_of_thread[thread.number];
    ready[rank / 64] &= ~(std::uint64_t{1} << rank % 64);
}

Thread* Block::choose() {
    if (conditions)
        for (int i = 0; i < threads; i++) {
            Thread& thread = *pool[i];
            if (thread.state == State::condition && thread.condition(thread.argument)) {
                --conditions;
                set_ready(thread);
            }
        }
    const int words = static_cast<int>(ready.size());
    int start = 0;
    if (policy == Policy::random) {
        start = static_cast<int>(random() % threads);
        const std::uint64_t upper = ready[start / 64] >> start % 64;
        if (upper) return pool[thread_of_rank[start + __builtin_ctzll(upper)]].get();
        start = start / 64 + 1;
    }
    for (int i = 0; i < words; i++) {
        const int word = (start + i) % words;
        if (ready[word]) return pool[thread_of_rank[word * 64 + __builtin_ctzll(ready[word])]].get();
    }
    return nullptr;
}

std::string Block::describe_waiting() const {
    // Threads that wait for the same, as one entry with its first thread.
    std::map<std::string, std::pair<int, int>> groups;
    for (int i = 0; i < threads; i++) {
        const Thread& thread = *pool[i];
        std::string what = "returned";
        if (thread.state == State::ready) what = "could run";
        else if (thread.state != State::done)
            what = std::string("at ") + thread.doing + " of " + base_name(thread.site.file) + ":" +
                   std::to_string(thread.site.line);
        const auto at = groups.emplace(what, std::make_pair(0, i)).first;
        ++at->second.first;
    }
    std::string text;
    for (const auto& [what, count] : groups)
        text += " " + std::to_string(count.first) + " " + what + " (" + thread_name(*pool[count.second]) +
                (count.first > 1 ? ", …)" : ")") + ",";
    if (!text.empty()) text.pop_back();
    return text;
}

void Block::check_early_exit() {
    for (int rank = 0; rank < blocks; rank++)
        if (done_of_block[rank] && barriers[rank][0].arrived &&
            done_of_block[rank] + barriers[rank][0].arrived == threads_of_block)
            failure = "threads returned while the others wait at a barrier of the whole block:" + describe_waiting();
}

int lane() { return block.running->number % 32; }

std::uint32_t random_bits() { return static_cast<std::uint32_t>(block.random()); }

void yield() { block.running->fiber.suspend(); }

void fence() {
    races::fence();
    yield();
}

void wait_for(const Site& site, const char* what, bool (*ready)(void*), void* argument) {
    if (ready(argument)) return yield();
    Thread& self = *block.running;
    block.set_waiting(self, State::condition, site, what);
    self.condition = ready;
    self.argument = argument;
    ++block.conditions;
    self.fiber.suspend();
}

int barrier(const Site& site, const char* name, int id, int threads, int value, bool waits) {
    Thread& self = *block.running;
    if (id < 0 || id > cluster_barrier) fail(site, "%s: barrier %d; there are 0 to 15", name, id);
    const bool of_cluster = id == cluster_barrier;
    const int rank = of_cluster ? 0 : self.rank;
    Barrier& barrier = block.barriers[rank][id];
    if (id != 0 && (threads <= 0 || threads % 32))
        fail(site, "%s: %d threads; expected a multiple of 32", name, threads);
    if (barrier.arrived == 0) {
        barrier.expected = threads;
        barrier.sum = 0;
        barrier.site = site;
        barrier.name = name;
    } else if (barrier.expected != threads) {
        fail(site, "%s: barrier %d for %d threads, but others came to it for %d", name, id, threads, barrier.expected);
    } else if ((id == 0 || of_cluster) &&
               (barrier.site.line != site.line || std::strcmp(barrier.site.file, site.file) != 0)) {
        fail(site, "%s: divergent: other threads of the block wait at %s of %s:%d", name, barrier.name,
             base_name(barrier.site.file), barrier.site.line);
    }
    ++barrier.arrived;
    barrier.sum += value;
    races::arrive_at_barrier(rank, id);
    if (barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        const int sum = barrier.sum;
        for (int i = 0; i < block.threads; i++) {
            Thread& thread = *block.pool[i];
            if (thread.state == State::barrier && thread.barrier_id == id && (of_cluster || thread.rank == rank)) {
                thread.barrier_sum = sum;
                block.set_ready(thread);
                races::leave_barrier(rank, id, thread.number);
            }
        }
        if (waits) races::leave_barrier(rank, id, self.number);
        races::reset_barrier(rank, id);
        yield();
        return sum;
    }
    if (!waits) return 0;
    block.set_waiting(self, State::barrier, site, name);
    self.barrier_id = id;
    block.check_early_exit();
    self.fiber.suspend();
    return self.barrier_sum;
}

int cluster_rank() { return block.running->rank; }
int cluster_blocks() { return block.blocks; }
void cluster_sync(const Site& site) { barrier(site, "barrier.cluster", cluster_barrier, block.threads, 0, true); }

// ---- launches ----

void set_seed(std::uint64_t value) {
    seed() = value;
    launch_count = 0;
}

const char* last_failure() { return failure.c_str(); }
int threads_of_last_block() { return block.threads_of_block; }
int blocks_of_last_cluster() { return block.blocks; }
std::uint64_t launches() { return launch_count; }
void allow_shared_bytes(const void* kernel, std::size_t bytes) { allowed_shared[kernel] = bytes; }

bool run_launch(const LaunchShape& shape, const std::function<void()>& body) {
    const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
    const DeviceAccess access;
    failure.clear();
    const auto refuse = [](const std::string& why) {
        failure = "launch refused: " + why;
        return false;
    };
    const std::uint64_t threads = std::uint64_t{1} * shape.block[0] * shape.block[1] * shape.block[2];
    if (threads == 0 || threads > 1024 || shape.block[2] > 64)
        return refuse("a block of " + std::to_string(threads) + " threads; 1 to 1024 are possible");
    const std::uint64_t blocks = std::uint64_t{1} * shape.grid[0] * shape.grid[1] * shape.grid[2];
    if (blocks == 0 || shape.grid[0] > 0x7fffffffu || shape.grid[1] > 65535 || shape.grid[2] > 65535)
        return refuse("a grid of " + std::to_string(shape.grid[0]) + " x " + std::to_string(shape.grid[1]) + " x " +
                      std::to_string(shape.grid[2]) + " blocks");
    std::size_t most_shared = 48 * 1024;
    if (const auto allowed = allowed_shared.find(shape.kernel); allowed != allowed_shared.end())
        most_shared = std::max(most_shared, allowed->second);
    if (shape.shared_bytes > most_shared)
        return refuse(std::to_string(shape.shared_bytes) + " bytes of dynamic shared memory; this kernel may have " +
                      std::to_string(most_shared));

    if (shape.cluster < 1 || shape.cluster > most_blocks || shape.grid[0] % shape.cluster)
        return refuse("clusters of " + std::to_string(shape.cluster) + " in a grid of " +
                      std::to_string(shape.grid[0]) + " blocks; up to " + std::to_string(most_blocks) +
                      " that divide it are emulated");
    if (shape.cluster > 1 && architecture() < 90)
        return refuse("sm_" + std::to_string(architecture()) + " has no clusters; expected sm_90");

    block.random.seed(seed() * 0x9E3779B97F4A7C15u + launch_count);
    ++launch_count;
    gridDim = dim3(shape.grid[0], shape.grid[1], shape.grid[2]);
    blockDim = dim3(shape.block[0], shape.block[1], shape.block[2]);
    // A random first block and a stride without a common factor with their number: every block once, in no useful order.
    const std::uint64_t clusters = blocks / shape.cluster;
    const std::uint64_t first = block.random() % clusters, policy = block.random();
    std::uint64_t stride = clusters > 2 ? 1 + block.random() % (clusters - 1) : 1;
    while (std::gcd(stride, clusters) != 1) ++stride;
    races::begin_launch(shape.is_dependent);
    for (std::uint64_t i = 0; i < clusters; i++) {
        const std::uint64_t b = (first + i * stride) % clusters * shape.cluster;
        const uint3 index = {static_cast<unsigned>(b % shape.grid[0]),
                             static_cast<unsigned>(b / shape.grid[0] % shape.grid[1]),
                             static_cast<unsigned>(b / shape.grid[0] / shape.grid[1])};
        run_block(shape, index, body, policy + i);
        if (!block.failure.empty()) {
            char where[96];
            std::snprintf(where, sizeof where, "block (%u, %u, %u) of %u x %u x %u, ", index.x, index.y, index.z,
                          shape.grid[0], shape.grid[1], shape.grid[2]);
            failure = where + block.failure;
            return false;
        }
    }
    return true;
}

}  // namespace emulator
