#include <algorithm>
#include <cstring>
#include <vector>

#include "emulator/asynchronous.hpp"
#include "emulator/block.hpp"
#include "emulator/control.hpp"
#include "emulator/mbarrier.hpp"
#include "emulator/memory.hpp"

namespace emulator {

void begin_mbarriers();
void begin_wgmma();

namespace {

constexpr std::uint64_t map_magic = 0x70616d726f736e74u;
bool tensor_maps = true;

struct BulkCopy {
    Site site;
    unsigned char* shared;
    void* barrier;
    // Rows of `bytes` in shared memory one behind the other: of the first `valid` rows the first `valid_bytes` from `first` on
    // are read, the rest are zeros.
    const unsigned char* global;
    std::int64_t stride, rows, bytes, row_begin, row_end, byte_begin, byte_end;
    int swizzle;
    races::Agent agent;
};
std::vector<BulkCopy> under_way;
// How soon copies end, by block: one in so many turns of the threads; 0: when nobody else can go on.
unsigned turns_of_copy = 0;

// The bits of an address that tell the row of a pattern change those that tell the chunk of 16 bytes.
std::uintptr_t swizzled(std::uintptr_t address, int swizzle) {
    if (swizzle == 0) return address;
    const std::uintptr_t chunks = static_cast<std::uintptr_t>(swizzle / 16 - 1);
    return address ^ ((address >> 7 & chunks) << 4);
}

void start(BulkCopy copy) {
    if (architecture() < 90) fail(copy.site, "cp.async.bulk: sm_%d has none; expected sm_90", architecture());
    if (!mbarrier_at(copy.site, "cp.async.bulk", copy.barrier).is_fenced)
        fail(copy.site, "cp.async.bulk: no fence lies behind the initialisation of its mbarrier");
    copy.agent = races::start_agent(copy.site, "a bulk copy");
    races::note(copy.agent, copy.site, Access::write, copy.shared, static_cast<std::size_t>(copy.rows * copy.bytes));
    for (std::int64_t r = copy.row_begin; r < copy.row_end; r++)
        if (copy.byte_end > copy.byte_begin)
            races::note(copy.agent, copy.site, Access::read, copy.global + r * copy.stride + copy.byte_begin,
                        static_cast<std::size_t>(copy.byte_end - copy.byte_begin));
    fill_with_garbage(copy.shared, static_cast<std::size_t>(copy.rows * copy.bytes));
    under_way.push_back(std::move(copy));
    yield();
}

void end_one(std::size_t i) {
    BulkCopy copy = std::move(under_way[i]);
    under_way.erase(under_way.begin() + static_cast<std::ptrdiff_t>(i));
    for (std::int64_t r = 0; r < copy.rows; r++)
        for (std::int64_t k = 0; k < copy.bytes; k += 16) {
            unsigned char chunk[16] = {};
            if (r >= copy.row_begin && r < copy.row_end) {
                const std::int64_t from = std::max(k, copy.byte_begin), to = std::min(k + 16, copy.byte_end);
                if (to > from)
                    std::memcpy(chunk + (from - k), copy.global + r * copy.stride + from,
                                static_cast<std::size_t>(to - from));
            }
            // The window's address is 1024-aligned where the arena's is.
            const auto address = reinterpret_cast<std::uintptr_t>(copy.shared + r * copy.bytes + k);
            std::memcpy(reinterpret_cast<void*>(swizzled(address, copy.swizzle)), chunk, 16);
        }
    const int rank = static_cast<int>((copy.shared - block.dynamic) / shared_span());
    if (block.done_of_block[rank] == block.threads_of_block && block.failure.empty())
        block.failure = "line " + std::to_string(copy.site.line) + ": a bulk copy ended in a block that has returned";
    const std::string wrong = complete_bytes(copy.barrier, copy.rows * copy.bytes, copy.agent);
    if (!wrong.empty() && block.failure.empty())
        block.failure = "line " + std::to_string(copy.site.line) + ": " + wrong;
    races::release_agent(copy.agent);
}

}  // namespace

void set_tensor_maps(bool available) { tensor_maps = available; }

bool make_tensor_map(TensorMap* map, const void* data, const std::int64_t (&sizes)[3], const std::int64_t (&strides)[2],
                     int rank, int box_bytes, int box_rows, int swizzle) {
    if (!tensor_maps || reinterpret_cast<std::uintptr_t>(data) % 16 || (rank != 2 && rank != 3)) return false;
    for (int i = 0; i < rank; i++)
        if (sizes[i] < 1 || sizes[i] > std::int64_t{1} << 32) return false;
    for (int i = 0; i + 1 < rank; i++)
        if (strides[i] % 16 || strides[i] < 0 || strides[i] >= std::int64_t{1} << 40) return false;
    if (box_bytes % 16 || box_bytes < 16 || box_bytes > 256 || box_rows < 1 || box_rows > 256) return false;
    if (swizzle != 0 && box_bytes > swizzle) return false;
    *map = {map_magic,
            static_cast<const unsigned char*>(data),
            {sizes[0], sizes[1], rank == 3 ? sizes[2] : 1},
            {strides[0], rank == 3 ? strides[1] : 0},
            {box_bytes, box_rows},
            rank,
            swizzle,
            {}};
    return true;
}

void bulk_copy(const Site& site, void* shared, const void* global, unsigned bytes, void* barrier) {
    if (bytes == 0 || bytes % 16) fail(site, "cp.async.bulk: %u bytes; expected a multiple of 16", bytes);
    check_shared(site, "cp.async.bulk destination", shared, bytes, 16);
    check_aligned(site, "cp.async.bulk source", global, 16);
    check_shared(site, "cp.async.bulk mbarrier", barrier, 8, 8);
    start({site,
           static_cast<unsigned char*>(shared),
           barrier,
           static_cast<const unsigned char*>(global),
           0,
           1,
           bytes,
           0,
           1,
           0,
           bytes,
           0,
           {}});
}

void bulk_copy_box(const Site& site, void* shared, const TensorMap* map, int rank, const int (&at)[3], void* barrier,
                   unsigned blocks) {
    check_aligned(site, "cp.async.bulk.tensor: the map", map, 64);
    if (map->magic != map_magic) fail(site, "cp.async.bulk.tensor: this is no tensor map");
    if (map->rank != rank) fail(site, "cp.async.bulk.tensor: %d coordinates for a map of %d", rank, map->rank);
    const std::int64_t bytes = map->box[0], rows = map->box[1];
    // A pattern of 8 rows that begins elsewhere would be another one.
    check_shared(site, "cp.async.bulk.tensor destination", shared, static_cast<std::size_t>(rows * bytes),
                 map->swizzle ? static_cast<std::size_t>(8 * map->swizzle) : 128);
    if (map->swizzle && bytes != map->swizzle)
        fail(site, "cp.async.bulk.tensor: boxes of %d bytes with a swizzle of %d are not emulated", map->box[0],
             map->swizzle);
    check_shared(site, "cp.async.bulk.tensor mbarrier", barrier, 8, 8);
    const bool inside = at[2] >= 0 && at[2] < map->sizes[2];
    const std::int64_t first_row = at[1], first_byte = at[0];
    const auto clip = [](std::int64_t value, std::int64_t most) {
        return std::min(std::max<std::int64_t>(value, 0), most);
    };
    const BulkCopy copy = {site,
                           static_cast<unsigned char*>(shared),
                           barrier,
                           map->data + at[2] * map->strides[1] + first_row * map->strides[0] + first_byte,
                           map->strides[0],
                           rows,
                           bytes,
                           inside ? clip(-first_row, rows) : 0,
                           inside ? clip(map->sizes[1] - first_row, rows) : 0,
                           clip(-first_byte, bytes),
                           clip(map->sizes[0] - first_byte, bytes),
                           map->swizzle,
                           {}};
    if (blocks == 0) return start(copy);
    // Each block's bytes arrive in their own time.
    for (int rank_of_block = 0; blocks >> rank_of_block; rank_of_block++)
        if (blocks >> rank_of_block & 1) {
            BulkCopy other = copy;
            other.shared = static_cast<unsigned char*>(in_block(site, "cp.async.bulk.tensor", shared, rank_of_block));
            other.barrier = in_block(site, "cp.async.bulk.tensor", barrier, rank_of_block);
            start(other);
        }
}

void begin_asynchronous() {
    under_way.clear();
    begin_mbarriers();
    begin_wgmma();
    static constexpr unsigned speeds[] = {0, 1, 4, 64};
    turns_of_copy = speeds[random_bits() % 4];
}

bool end_copies(bool must) {
    if (under_way.empty()) return false;
    if (must || (turns_of_copy && random_bits() % turns_of_copy == 0)) end_one(random_bits() % under_way.size());
    return true;
}

std::string check_copies() {
    if (under_way.empty()) return {};
    const std::string line = std::to_string(under_way[0].site.line);
    under_way.clear();
    return "line " + line + ": the block ended before this bulk copy did";
}

}  // namespace emulator
