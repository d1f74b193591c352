#include "emulator/races.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "emulator/block.hpp"
#include "emulator/memory.hpp"

namespace emulator {

namespace {

using races::Agent;
using races::Clock;

// Who touched a byte, and when by its own clock.
struct Mark {
    std::uint32_t block = 0, time = 0;  // time 0: nobody
    std::uint16_t thread = 0;
    bool atomic = false;
};

struct Byte {
    Mark write, reads[2];
};

struct Array {
    const unsigned char *data, *mapping;
    std::size_t bytes, mapping_bytes;
    bool shared;
    std::uint64_t launch = 0;  // that the marks belong to
    std::vector<Byte> marks;
    std::vector<Byte> marks_before = {};  // of the launch before; empty: it did not come here
};

bool instrumented = false;  // set by the first instrumented access
std::uint64_t launch = 0;
std::uint32_t block_number = 0;
bool is_dependent = false;     // this launch could overlap with the one before
std::vector<bool> has_waited;  // for it; the block's threads
std::vector<Clock> clocks;     // of the block's threads
struct AgentSlot {
    std::uint32_t time = 0;
    bool is_free = true;
    const char* what = "";
    std::string issuer;
};
std::vector<AgentSlot> agents;
std::size_t first_agent = 0;  // in clocks and marks
Clock barrier_clocks[most_blocks][17];
std::map<const void*, Clock> atomic_clocks;
// Blocks that published with a fence before an atomic of an address, and those that this block has met in the same way.
std::map<const void*, std::set<std::uint32_t>> published;
std::set<std::uint32_t> met;
bool fenced = false;
std::map<const unsigned char*, Array>& arrays() {
    static auto* const all = new std::map<const unsigned char*, Array>;
    return *all;
}
Array dynamic_memory[most_blocks], variables;

void join(Clock& into, const Clock& from) {
    if (into.size() < from.size()) into.resize(from.size());
    for (std::size_t i = 0; i < from.size(); i++) into[i] = std::max(into[i], from[i]);
}

std::uint32_t time_in(const Clock& clock, std::size_t i) { return i < clock.size() ? clock[i] : 0; }

std::string name_of(std::size_t thread) {
    if (thread < first_agent) return thread_name(*block.pool[thread]);
    const AgentSlot& agent = agents[thread - first_agent];
    return std::string(agent.what) + " of " + agent.issuer;
}

Array* find(const unsigned char* p) {
    for (Array& dynamic : dynamic_memory)
        if (p >= dynamic.mapping && p < dynamic.mapping + dynamic.mapping_bytes) return &dynamic;
    if (p >= variables.mapping && p < variables.mapping + variables.mapping_bytes) return &variables;
    auto at = arrays().upper_bound(p);
    if (at == arrays().begin()) return nullptr;
    --at;
    return p < at->second.mapping + at->second.mapping_bytes ? &at->second : nullptr;
}

// A thread or an agent, and its clock. Slots of agents are used again: only marks of this very time are its own.
struct Actor {
    std::size_t number;
    std::uint32_t time;
    const Clock& clock;
    bool is_agent() const { return number >= first_agent; }
};

Actor running_thread() {
    const auto number = static_cast<std::size_t>(block.running->number);
    return {number, clocks[number][number], clocks[number]};
}

void join_agent(Clock& into, const Agent& agent) {
    join(into, agent.clock);
    const auto slot = static_cast<std::size_t>(agent.slot);
    if (into.size() <= slot) into.resize(slot + 1);
    into[slot] = std::max(into[slot], agent.time);
}

bool ordered(const Mark& mark, const Actor& self) {
    if (mark.time == 0) return true;
    if (mark.block != block_number) return met.count(mark.block) != 0;
    if (mark.thread == self.number && (!self.is_agent() || mark.time == self.time)) return true;
    return time_in(self.clock, mark.thread) >= mark.time;
}

void check(const Site& site, Access access, const void* data, std::size_t bytes, const void* code, const Actor& self) {
    const auto* const p = static_cast<const unsigned char*>(data);
    Array* const array = find(p);
    if (!array) return;
    const char* const what = access == Access::read ? "reads" : access == Access::write ? "writes" : "changes";
    const std::ptrdiff_t offset = p - array->data;
    const char* const where = array->shared ? "shared memory" : "a device array";
    char at[160] = "";
    Dl_info info;
    if (code && dladdr(code, &info) && info.dli_fname) {
        const char* name = std::strrchr(info.dli_fname, '/');
        std::snprintf(at, sizeof at, " (addr2line -Cfie %.80s %#tx)", name ? name + 1 : info.dli_fname,
                      static_cast<const char*>(code) - static_cast<const char*>(info.dli_fbase) - 1);
    }
    if (offset < 0 || static_cast<std::size_t>(offset) + bytes > array->bytes)
        fail(site, "%s %zu bytes at %td of %s of %zu bytes%s", what, bytes, offset, where, array->bytes, at);
    if (array->launch != launch) {
        array->marks_before.clear();
        if (array->launch + 1 == launch) array->marks_before.swap(array->marks);
        array->marks.assign(array->bytes, Byte{});
        array->launch = launch;
    }
    if (is_dependent && !array->marks_before.empty() && !has_waited[static_cast<std::size_t>(block.running->number)])
        for (std::size_t i = 0; i < bytes; i++) {
            const Byte& before = array->marks_before[static_cast<std::size_t>(offset) + i];
            if (before.write.time != 0 || (access != Access::read && before.reads[0].time != 0))
                fail(site, "%s %zu bytes at %td of %s that the launch before, for which it has not waited, has %s%s",
                     what, bytes, offset, where, before.write.time ? "written" : "read", at);
        }
    const Mark mark = {block_number, self.time, static_cast<std::uint16_t>(self.number), access == Access::atomic};
    for (std::size_t i = 0; i < bytes; i++) {
        Byte& byte = array->marks[static_cast<std::size_t>(offset) + i];
        if (array->shared && access != Access::write && byte.write.time == 0)
            fail(site, "%s %zu bytes at %td of %s that nobody has written%s", what, bytes, offset, where, at);
        const auto race = [&](const Mark& other, const char* did) {
            if (other.atomic && mark.atomic) return;
            if (ordered(other, self)) return;
            if (other.block == block_number)
                fail(site, "race: %s %zu bytes at %td of %s that %s has %s, and no barrier lies between%s", what, bytes,
                     offset, where, name_of(other.thread).c_str(), did, at);
            fail(site, "race: %s %zu bytes at %td of %s that thread %d of block %u has %s%s", what, bytes, offset,
                 where, other.thread, other.block, did, at);
        };
        race(byte.write, "written");
        if (self.is_agent() && array->shared && access == Access::read && byte.write.thread < first_agent &&
            time_in(self.clock, first_agent / 2 + byte.write.thread) < byte.write.time)
            fail(site, "%s %zu bytes at %td of %s that %s has written with no proxy fence behind%s", what, bytes,
                 offset, where, name_of(byte.write.thread).c_str(), at);
        if (access == Access::read) {
            byte.reads[ordered(byte.reads[0], self) ? 0 : 1] = mark;
            continue;
        }
        for (const Mark& read : byte.reads) race(read, "read");
        byte.write = mark;
        byte.reads[0] = byte.reads[1] = Mark{};
    }
}

}  // namespace

namespace races {

void begin_launch(bool dependent) {
    ++launch;
    is_dependent = dependent;
    block_number = 0;
    published.clear();
}

void wait_for_launch() { has_waited[static_cast<std::size_t>(block.running->number)] = true; }

void check_read_only(const Site& site, const char* name, const void* data, std::size_t bytes) {
    if (!instrumented || !is_dependent || !block.running || bytes == 0) return;
    check(site, Access::read, data, bytes, nullptr, running_thread());
    const auto* const p = static_cast<const unsigned char*>(data);
    const Array* const array = find(p);
    if (!array || array->marks_before.empty()) return;
    for (std::size_t i = 0; i < bytes; i++)
        if (array->marks_before[static_cast<std::size_t>(p - array->data) + i].write.time != 0)
            fail(site,
                 "%s takes %zu bytes at %td of a device array for read-only that the launch before, which may still "
                 "run, "
                 "has written",
                 name, bytes, p - array->data);
}

void begin_block(int threads) {
    ++block_number;
    has_waited.assign(static_cast<std::size_t>(threads), false);
    met.clear();
    fenced = false;
    atomic_clocks.clear();
    for (auto& of_block : barrier_clocks)
        for (Clock& clock : of_block) clock.clear();
    if (!instrumented) return;
    clocks.assign(static_cast<std::size_t>(threads), Clock(static_cast<std::size_t>(threads), 0));
    for (std::size_t t = 0; t < clocks.size(); t++) clocks[t][t] = 1;
    agents.clear();
    first_agent = 2 * clocks.size();
    // Shared memory is new in every block.
    for (int rank = 0; rank < most_blocks; rank++) {
        const SharedRange dynamic = rank < block.blocks ? dynamic_shared_range(rank) : SharedRange{};
        dynamic_memory[rank] = {dynamic.data, dynamic.mapping, dynamic.bytes, dynamic.mapping_bytes, true, 0, {}};
    }
    const SharedRange statics = shared_variables_range();
    variables = {statics.data, statics.mapping, statics.bytes, statics.mapping_bytes, true, 0, {}};
}

void arrive_at_barrier(int rank, int id) {
    if (!instrumented) return;
    const auto self = static_cast<std::size_t>(block.running->number);
    join(barrier_clocks[rank][id], clocks[self]);
    ++clocks[self][self];
}

void leave_barrier(int rank, int id, int thread) {
    if (instrumented) join(clocks[static_cast<std::size_t>(thread)], barrier_clocks[rank][id]);
}

void reset_barrier(int rank, int id) {
    // A barrier of the whole block: everyone has seen everything.
    barrier_clocks[rank][id].clear();
}

void join_warp(int first_thread, unsigned mask) {
    if (!instrumented) return;
    Clock all;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) join(all, clocks[static_cast<std::size_t>(first_thread + i)]);
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) {
            Clock& clock = clocks[static_cast<std::size_t>(first_thread + i)];
            clock = all;
            ++clock[static_cast<std::size_t>(first_thread + i)];
        }
}

void fence() { fenced = true; }

Agent start_agent(const Site& site, const char* what) {
    Agent agent;
    if (!instrumented) return agent;
    std::size_t slot = 0;
    while (slot < agents.size() && !agents[slot].is_free) slot++;
    if (first_agent + slot > 65535) fail(site, "%s: too much under way for the race check", what);
    if (slot == agents.size()) agents.emplace_back();
    const Thread& self = *block.running;
    Clock& own = clocks[static_cast<std::size_t>(self.number)];
    agents[slot] = {agents[slot].time + 1, false, what, thread_name(self)};
    agent.slot = static_cast<int>(first_agent + slot);
    agent.time = agents[slot].time;
    agent.clock = own;
    ++own[static_cast<std::size_t>(self.number)];
    return agent;
}

void note(const Agent& agent, const Site& site, Access access, const void* data, std::size_t bytes) {
    if (agent.slot >= 0 && bytes > 0)
        check(site, access, data, bytes, nullptr, {static_cast<std::size_t>(agent.slot), agent.time, agent.clock});
}

void wait_for_agent(const Agent& agent, int thread) {
    if (agent.slot >= 0) join_agent(clocks[static_cast<std::size_t>(thread)], agent);
}

void release_agent(Agent& agent) {
    if (agent.slot >= 0) agents[static_cast<std::size_t>(agent.slot) - first_agent].is_free = true;
    agent.slot = -1;
}

void proxy_fence() {
    if (!instrumented) return;
    const auto self = static_cast<std::size_t>(block.running->number);
    Clock& own = clocks[self];
    const std::size_t threads = clocks.size();
    if (own.size() < 2 * threads) own.resize(2 * threads);
    own[threads + self] = own[self]++;
}

void release_into(Clock& clock) {
    if (!instrumented) return;
    const auto self = static_cast<std::size_t>(block.running->number);
    join(clock, clocks[self]);
    ++clocks[self][self];
}

void release_into(Clock& clock, const Agent& agent) {
    if (agent.slot >= 0) join_agent(clock, agent);
}

void acquire_from(const Clock& clock, int thread) {
    if (instrumented) join(clocks[static_cast<std::size_t>(thread)], clock);
}

void add_allocation(const void* data, std::size_t bytes, const void* mapping, std::size_t mapping_bytes) {
    const auto* const begin = static_cast<const unsigned char*>(mapping);
    arrays()[begin] = {static_cast<const unsigned char*>(data), begin, bytes, mapping_bytes, false, 0, {}};
}

void remove_allocation(const void* mapping) { arrays().erase(static_cast<const unsigned char*>(mapping)); }

}  // namespace races

void note_access(const Site& site, Access access, const void* data, std::size_t bytes) {
    if (!instrumented || !block.running || bytes == 0) return;
    check(site, access, data, bytes, nullptr, running_thread());
    if (access != Access::atomic) return;
    const auto self = static_cast<std::size_t>(block.running->number);
    Clock& clock = atomic_clocks[data];
    join(clocks[self], clock);
    join(clock, clocks[self]);
    ++clocks[self][self];
    auto& blocks = published[data];
    met.insert(blocks.begin(), blocks.end());
    if (fenced) {
        blocks.insert(block_number);
        blocks.insert(met.begin(), met.end());
    }
}

namespace {

void seen(Access access, const void* data, std::size_t bytes, const void* code) {
    if (!block.running) return;
    const Thread& self = *block.running;
    check(self.site.file ? self.site : Site{"kernel", 0}, access, data, bytes, code, running_thread());
}

}  // namespace

}  // namespace emulator

// What instrumented code calls. The first one, before main, says that there is such code.
extern "C" {
void __tsan_init() { emulator::instrumented = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define FASTFFN_ACCESS(size)                                                                                          \
    void __tsan_read##size(void* p) { emulator::seen(emulator::Access::read, p, size, __builtin_return_address(0)); } \
    void __tsan_write##size(void* p) {                                                                                \
        emulator::seen(emulator::Access::write, p, size, __builtin_return_address(0));                                \
    }                                                                                                                 \
    void __tsan_unaligned_read##size(void* p) {                                                                       \
        emulator::seen(emulator::Access::read, p, size, __builtin_return_address(0));                                 \
    }                                                                                                                 \
    void __tsan_unaligned_write##size(void* p) {                                                                      \
        emulator::seen(emulator::Access::write, p, size, __builtin_return_address(0));                                \
    }
FASTFFN_ACCESS(1)
FASTFFN_ACCESS(2)
FASTFFN_ACCESS(4)
FASTFFN_ACCESS(8)
FASTFFN_ACCESS(16)
void __tsan_read_range(void* p, std::size_t bytes) {
    emulator::seen(emulator::Access::read, p, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* p, std::size_t bytes) {
    emulator::seen(emulator::Access::write, p, bytes, __builtin_return_address(0));
}
// Guards of static variables and atomics of the host's code.
void __tsan_atomic8_store(volatile unsigned char* p, unsigned char value, int) {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
unsigned char __tsan_atomic8_load(const volatile unsigned char* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
unsigned __tsan_atomic32_load(const volatile unsigned* p, int) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
int __tsan_atomic32_fetch_add(volatile int* p, int value, int) {
    return __atomic_fetch_add(p, value, __ATOMIC_ACQ_REL);
}
}
