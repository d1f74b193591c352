// wgmma, warp by warp: each computes its 16 rows of the 64. Its sums live here from the issue to the wait.
#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "emulator/asynchronous.hpp"
#include "emulator/block.hpp"
#include "emulator/control.hpp"
#include "emulator/memory.hpp"
#include "emulator/races.hpp"

namespace emulator {

namespace {

constexpr unsigned all_lanes = 0xFFFFFFFFu;
constexpr int most_sums = 128;

// The registers of a warp while wgmma uses them, by the address of lane 0's.
struct Sums {
    void* registers[32];
    std::uint32_t values[32][most_sums];
    int count = 0, users = 0;  // operations under way
};

// Of a sparse one: each lane's registers, and what they held when it was issued.
struct Kept {
    const unsigned *elements[32], *positions[32];
    unsigned held[32][5];
};

struct Operation {
    Site site;
    const Wgmma* shape;
    std::uint64_t a, b;
    Kept kept;
    Sums* sums;
    bool is_done = false;
};

struct Group {
    std::vector<Operation> operations;
    races::Agent agent;
};

struct Warp {
    bool is_fenced = false;
    std::size_t issued = 0;
    Group open;
    std::deque<Group> groups;
    std::map<void*, std::unique_ptr<Sums>> sums;
};

std::vector<Warp> warps;
// What the warps of a warpgroup issue, in order: all four the same.
struct Issue {
    const char* name;
    std::uint64_t a, b;
};
std::vector<std::vector<Issue>> warpgroups;
std::vector<int> registers_of_warp;
std::vector<std::uint32_t> garbage_sums;

Warp& own_warp() { return warps[static_cast<std::size_t>(block.running->number / 32)]; }

// A tile's rows as its descriptor has them: PTX ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout" and "Strides".
struct Tile {
    std::uint32_t begin, leading, stride;
    int swizzle;  // bytes
};

Tile tile_of(const Site& site, const char* which, std::uint64_t descriptor) {
    static constexpr int swizzles[] = {0, 128, 64, 32};
    const Tile tile = {static_cast<std::uint32_t>(descriptor & 0x3FFF) << 4,
                       static_cast<std::uint32_t>(descriptor >> 16 & 0x3FFF) << 4,
                       static_cast<std::uint32_t>(descriptor >> 32 & 0x3FFF) << 4, swizzles[descriptor >> 62]};
    if (descriptor >> 49 & 7)
        fail(site, "wgmma: the descriptor of %s has a base offset; tiles begin where their pattern begins", which);
    if (tile.swizzle && (tile.begin & 0x3FF & ~static_cast<std::uint32_t>(tile.swizzle - 1)))
        fail(site, "wgmma: the tile of %s begins %u bytes into its swizzle pattern", which, tile.begin & 0x3FF);
    return tile;
}

// Chunk `chunk` of 16 bytes of row `row`.
const unsigned char* chunk_of(const Tile& tile, int row, int chunk) {
    std::uint32_t address = tile.begin + static_cast<std::uint32_t>(row / 8) * tile.stride;
    if (tile.swizzle == 0) {
        address += static_cast<std::uint32_t>(row % 8 * 16 + chunk * static_cast<int>(tile.leading));
    } else {
        address += static_cast<std::uint32_t>(row % 8 * tile.swizzle + chunk * 16);
        address ^= (address >> 7 & static_cast<std::uint32_t>(tile.swizzle / 16 - 1)) << 4;
    }
    return shared_window_begin() + address;
}

double element(Element e, const unsigned char* data) {
    if (e == Element::s8) return static_cast<signed char>(*data);
    std::uint16_t bits;
    std::memcpy(&bits, data, 2);
    return half_value(e, bits);
}

// The warp's 16 rows of a; what is not kept meets nothing.
struct Rows {
    double value[16][64];
    bool meets[16][64];
};

Rows dense_rows(const Operation& operation, int warp, int depth) {
    const int bytes = operation.shape->element == Element::s8 ? 1 : 2, per_chunk = 16 / bytes;
    const Tile tile = tile_of(operation.site, "a", operation.a);
    Rows rows = {};
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < depth; k++) {
            rows.value[row][k] = element(operation.shape->element,
                                         chunk_of(tile, warp % 4 * 16 + row, k / per_chunk) + k % per_chunk * bytes);
            rows.meets[row][k] = true;
        }
    return rows;
}

// Kept element k of a row: registers as of a dense mma, positions as of mma.sp (PTX ISA, "Matrix fragments for warpgroup-level
// multiply-accumulate operation with sparse matrix A").
Rows sparse_rows(const Operation& operation, int depth) {
    const bool is_s8 = operation.shape->element == Element::s8;
    const int bytes = is_s8 ? 1 : 2, per_register = 4 / bytes;
    Rows rows = {};
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < depth / 2; k++) {
            const int g = row % 8, upper = row / 8, group = k / 2;
            const unsigned* const registers = operation.kept.elements[4 * g + k / per_register % 4];
            const unsigned word = registers[k / (4 * per_register) * 2 + upper];
            unsigned char bits[4];
            std::memcpy(bits, &word, 4);
            const int lane = 4 * g + (is_s8 ? group / 8 * 2 + upper : group / 4);
            const int shift = is_s8 ? group % 8 * 4 : 16 * upper + group % 4 * 4;
            const unsigned nibble = *operation.kept.positions[lane] >> shift & 15, low = nibble & 3, high = nibble >> 2;
            if (low >= high)
                fail(operation.site,
                     "%s: positions of row %d, columns %d to %d are %u and %u; expected ascending ones (lane %d, bit "
                     "%d)",
                     operation.shape->name, row, 4 * group, 4 * group + 3, low, high, lane, shift);
            const unsigned column = static_cast<unsigned>(4 * group) + (k % 2 ? high : low);
            rows.value[row][column] = element(operation.shape->element, bits + k % per_register * bytes);
            rows.meets[row][column] = true;
        }
    return rows;
}

void compute(int warp, Operation& operation) {
    operation.is_done = true;
    const Wgmma& shape = *operation.shape;
    const int bytes = shape.element == Element::s8 ? 1 : 2, depth = (shape.sparse ? 64 : 32) / bytes,
              per_chunk = 16 / bytes;
    const Tile b_tile = tile_of(operation.site, "b", operation.b);
    const Rows a = shape.sparse ? sparse_rows(operation, depth) : dense_rows(operation, warp, depth);
    for (int column = 0; column < shape.columns; column++) {
        double b[64];
        for (int k = 0; k < depth; k++)
            b[k] = element(shape.element, chunk_of(b_tile, column, k / per_chunk) + k % per_chunk * bytes);
        for (int row = 0; row < 16; row++) {
            double sum = 0;
            for (int k = 0; k < depth; k++)
                if (a.meets[row][k]) sum += a.value[row][k] * b[k];
            std::uint32_t& bits =
                operation.sums->values[row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row / 8 * 2 + column % 2];
            if (shape.element == Element::s8) {
                bits += static_cast<std::uint32_t>(static_cast<long long>(sum));
            } else {
                float acc;
                std::memcpy(&acc, &bits, 4);
                acc = toward_zero(sum + static_cast<double>(acc));
                std::memcpy(&bits, &acc, 4);
            }
        }
    }
}

void compute_all(int warp, Warp& state) {
    for (Group& group : state.groups)
        for (Operation& operation : group.operations)
            if (!operation.is_done) compute(warp, operation);
    for (Operation& operation : state.open.operations)
        if (!operation.is_done) compute(warp, operation);
}

struct Call {
    const Wgmma* shape;
    void* acc;
    std::uint64_t a, b;
    const unsigned *elements = nullptr, *positions = nullptr;
};

const Call& call_of(const Lanes& lanes, int lane) { return *static_cast<const Call*>(lanes.operand[lane]); }

void check_untouched(const Site& site, const Sums& sums) {
    for (int lane = 0; lane < 32; lane++)
        if (std::memcmp(sums.registers[lane], garbage_sums.data(), static_cast<std::size_t>(sums.count) * 4) != 0)
            fail(site, "wgmma: lane %d has written sums that a wgmma under way has", lane);
}

void check_untouched(const Operation& operation) {
    if (!operation.shape->sparse) return;
    const Kept& kept = operation.kept;
    for (int lane = 0; lane < 32; lane++)
        if (std::memcmp(kept.held[lane], kept.elements[lane], 16) != 0 || kept.held[lane][4] != *kept.positions[lane])
            fail(operation.site, "%s: lane %d has written registers of a that it reads", operation.shape->name, lane);
}

void run_wgmma(const Lanes& lanes) {
    const Call& call = call_of(lanes, 0);
    const int warp = block.running->number / 32;
    Warp& state = own_warp();
    for (int lane = 1; lane < 32; lane++)
        if (call_of(lanes, lane).a != call.a || call_of(lanes, lane).b != call.b)
            fail(lanes.site, "%s: descriptors of lane %d differ from lane 0's", call.shape->name, lane);
    auto& issues = warpgroups[static_cast<std::size_t>(warp / 4)];
    if (issues.size() == state.issued) issues.push_back({call.shape->name, call.a, call.b});
    const Issue& first = issues[state.issued++];
    if (first.a != call.a || first.b != call.b || std::strcmp(first.name, call.shape->name) != 0)
        fail(lanes.site, "%s: the warps of the warpgroup issue different ones", call.shape->name);

    std::unique_ptr<Sums>& sums = state.sums[call.acc];
    const int count = call.shape->columns / 2;
    if (!sums) {
        if (!state.is_fenced) fail(lanes.site, "%s: no wgmma.fence since its sums were touched", call.shape->name);
        sums = std::make_unique<Sums>();
        sums->count = count;
        garbage_sums.resize(most_sums);
        fill_with_garbage(garbage_sums.data(), most_sums * 4);
        for (int lane = 0; lane < 32; lane++) {
            sums->registers[lane] = call_of(lanes, lane).acc;
            std::memcpy(sums->values[lane], sums->registers[lane], static_cast<std::size_t>(count) * 4);
            std::memcpy(sums->registers[lane], garbage_sums.data(), static_cast<std::size_t>(count) * 4);
        }
    } else {
        if (sums->count != count) fail(lanes.site, "%s: its sums are those of another shape", call.shape->name);
        check_untouched(lanes.site, *sums);
    }
    sums->users++;
    Operation operation{lanes.site, call.shape, call.a, call.b, {}, sums.get()};
    for (int lane = 0; lane < 32; lane++) {
        operation.kept.elements[lane] = call_of(lanes, lane).elements;
        operation.kept.positions[lane] = call_of(lanes, lane).positions;
        if (!call.shape->sparse) continue;
        std::memcpy(operation.kept.held[lane], operation.kept.elements[lane], 16);
        operation.kept.held[lane][4] = *operation.kept.positions[lane];
    }
    state.open.operations.push_back(operation);
    if (state.open.agent.slot < 0) state.open.agent = races::start_agent(lanes.site, "wgmma");
    const Tile a = tile_of(lanes.site, "a", call.a), b = tile_of(lanes.site, "b", call.b);
    for (int chunk = 0; chunk < (call.shape->sparse ? 4 : 2); chunk++) {
        for (int row = 0; row < 16 && !call.shape->sparse; row++) {
            const unsigned char* const data = chunk_of(a, warp % 4 * 16 + row, chunk);
            check_shared(lanes.site, "wgmma a", data, 16, 16);
            races::note(state.open.agent, lanes.site, Access::read, data, 16);
        }
        for (int row = 0; row < call.shape->columns; row++) {
            const unsigned char* const data = chunk_of(b, row, chunk);
            check_shared(lanes.site, "wgmma b", data, 16, 16);
            races::note(state.open.agent, lanes.site, Access::read, data, 16);
        }
    }
    if (random_bits() % 4 == 0) compute_all(warp, state);
}

void run_wait(const Lanes& lanes) {
    const int pending = *static_cast<int*>(lanes.operand[0]), warp = block.running->number / 32;
    Warp& state = own_warp();
    while (static_cast<int>(state.groups.size()) > pending) {
        Group& group = state.groups.front();
        for (Operation& operation : group.operations) {
            check_untouched(operation);
            if (!operation.is_done) compute(warp, operation);
            Sums& sums = *operation.sums;
            if (--sums.users > 0) continue;
            check_untouched(lanes.site, sums);
            for (int lane = 0; lane < 32; lane++)
                std::memcpy(sums.registers[lane], sums.values[lane], static_cast<std::size_t>(sums.count) * 4);
            state.is_fenced = false;
            state.sums.erase(sums.registers[0]);
        }
        for (int lane = 0; lane < 32; lane++) races::wait_for_agent(group.agent, warp * 32 + lane);
        races::release_agent(group.agent);
        state.groups.pop_front();
    }
}

void check_wgmma(const Site& site, const char* name) {
    if (architecture() != 90) fail(site, "%s: sm_%d has none; expected sm_90a", name, architecture());
    if (block.threads_of_block % 128)
        fail(site, "%s: a block of %d threads has warps outside of warpgroups", name, block.threads_of_block);
}

}  // namespace

void begin_wgmma() {
    warps = std::vector<Warp>(static_cast<std::size_t>((block.threads + 31) / 32));
    warpgroups.assign(static_cast<std::size_t>((block.threads + 127) / 128), {});
    registers_of_warp.assign(warps.size(), 0);
}

void wgmma(const Site& site, const Wgmma& shape, void* acc, std::uint64_t a, std::uint64_t b) {
    check_wgmma(site, shape.name);
    Call call{&shape, acc, a, b};
    warp_operation(site, shape.name, all_lanes, &call, run_wgmma);
}

void wgmma(const Site& site, const Wgmma& shape, void* acc, const unsigned* a, const unsigned* positions,
           std::uint64_t b) {
    check_wgmma(site, shape.name);
    Call call{&shape, acc, 0, b, a, positions};
    warp_operation(site, shape.name, all_lanes, &call, run_wgmma);
}

void wgmma_fence(const Site& site) {
    check_wgmma(site, "wgmma.fence");
    warp_operation(site, "wgmma.fence", all_lanes, nullptr, [](const Lanes&) { own_warp().is_fenced = true; });
}

void wgmma_commit(const Site& site) {
    check_wgmma(site, "wgmma.commit_group");
    warp_operation(site, "wgmma.commit_group", all_lanes, nullptr, [](const Lanes&) {
        Warp& state = own_warp();
        state.groups.push_back(std::move(state.open));
        state.open = Group();
    });
}

void wgmma_wait(const Site& site, int pending) {
    check_wgmma(site, "wgmma.wait_group");
    warp_operation(site, "wgmma.wait_group", all_lanes, &pending, run_wait);
}

void check_waited() {
    const Warp& state = own_warp();
    for (const Group& group : state.groups)
        if (!group.operations.empty())
            fail(group.operations[0].site, "the thread returned without waiting for this wgmma");
    if (!state.open.operations.empty())
        fail(state.open.operations[0].site, "the thread returned without committing this wgmma");
}

void set_registers(const Site& site, int registers, bool more) {
    const char* const name = more ? "setmaxnreg.inc" : "setmaxnreg.dec";
    check_wgmma(site, name);
    struct Wish {
        int registers;
        bool more;
    } wish{registers, more};
    warp_operation(site, name, all_lanes, &wish, [](const Lanes& lanes) {
        const auto& [count, grows] = *static_cast<const Wish*>(lanes.operand[0]);
        int& own = registers_of_warp[static_cast<std::size_t>(block.running->number / 32)];
        if (own && (grows ? count < own : count > own))
            fail(lanes.site, "setmaxnreg: from %d to %d registers", own, count);
        own = count;
        int of_threads = 0;
        const int warps_of_block = block.threads_of_block / 32, first = block.running->rank * warps_of_block;
        for (int i = 0; i < warps_of_block; i++)
            of_threads += registers_of_warp[static_cast<std::size_t>(first + i)] * 32;
        if (of_threads > 65536) fail(lanes.site, "setmaxnreg: %d registers in all; there are 65536", of_threads);
    });
}

}  // namespace emulator
