// What goes on beside the threads of a block: mbarriers, bulk copies, wgmma. Bulk copies are under way until the schedule lets
// them end, in any order, or nobody else can go on; their destination is garbage until then. A wgmma reads its tiles somewhere between
// its issue and the wait for its group; until that wait its sums are garbage.
#pragma once

#include <cstdint>
#include <string>

#include "emulator/device.hpp"
#include "emulator/matrix.hpp"

namespace emulator {

// ---- mbarrier ----

void mbarrier_init(const Site& site, void* barrier, unsigned arrivals);
void mbarrier_fence_init();
void mbarrier_arrive(const Site& site, void* barrier, unsigned expected_bytes);
// The mbarrier at the same place in another block of the cluster.
void mbarrier_arrive_at(const Site& site, void* local, int rank);
void mbarrier_wait(const Site& site, void* barrier, unsigned parity);
void fence_proxy_async();

// ---- bulk copies ----

// In place of the driver's opaque 128 bytes.
struct alignas(64) TensorMap {
    std::uint64_t magic;
    const unsigned char* data;
    std::int64_t sizes[3], strides[2];  // bytes or rows or matrices; bytes
    std::int32_t box[2], rank;          // bytes, rows
    std::int32_t swizzle;               // bytes of a row of the pattern: 128, 64, 32; 0: none
    unsigned char rest[128 - 72];
};
static_assert(sizeof(TensorMap) == 128, "as CUtensorMap");

// What the driver would refuse is refused, and everything after set_tensor_maps(false).
bool make_tensor_map(TensorMap* map, const void* data, const std::int64_t (&sizes)[3], const std::int64_t (&strides)[2],
                     int rank, int box_bytes, int box_rows, int swizzle);
void bulk_copy(const Site& site, void* shared, const void* global, unsigned bytes, void* barrier);
// `blocks`: a bit for each block of the cluster that gets the box, at the same place, and its bytes counted; 0: this one.
void bulk_copy_box(const Site& site, void* shared, const TensorMap* map, int rank, const int (&at)[3], void* barrier,
                   unsigned blocks = 0);

// ---- wgmma ----

struct Wgmma {
    const char* name;
    int columns;
    Element element;
    bool sparse = false;
};

void wgmma(const Site& site, const Wgmma& shape, void* acc, std::uint64_t a, std::uint64_t b);
// wgmma.sp: kept elements and their positions in registers, which are read when the operation is done rather than issued.
void wgmma(const Site& site, const Wgmma& shape, void* acc, const unsigned* a, const unsigned* positions,
           std::uint64_t b);
void wgmma_fence(const Site& site);
void wgmma_commit(const Site& site);
void wgmma_wait(const Site& site, int pending);
// setmaxnreg; `more`: an increase.
void set_registers(const Site& site, int registers, bool more);

// ---- the scheduler's ----

void begin_asynchronous();
// Before a thread goes on: copies may end. `must`: nobody else can go on. False if there is none to end.
bool end_copies(bool must);
// At the end of a thread, in it: a wgmma that nobody waited for.
void check_waited();
// At the end of a block: copies that nobody waited for.
std::string check_copies();
// For the message of a deadlock.
std::string describe_mbarriers();

}  // namespace emulator
