// The emulated Hopper's mbarriers, bulk copies and clusters: that correct kernels run under every schedule, and that each kind of
// mistake is caught.
#include <algorithm>
#include <random>

#include "hopper.hpp"
#include "launch/launch.hpp"
#include "ptx/bulk_copy.cuh"
#include "ptx/cluster.cuh"
#include "support.hpp"

using fastffn::cuda::launch;
using support::contains;
using support::Device;
namespace ptx = fastffn::ptx;
using namespace hopper;

namespace {

struct CopyArgs {
    int rows, column, row, matrix;  // matrix < 0: a map of two dimensions
};

// A box to shared memory, and from there as it lies to y.
__global__ void copy_box(const __grid_constant__ ptx::TensorMap map, CopyArgs args, unsigned char* y) {
    unsigned char* const shared = ptx::dynamic_shared();
    const int bytes = args.rows * 128;
    auto* const barrier = reinterpret_cast<ptx::Mbarrier*>(shared + bytes);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::mbarrier_fence_init();
        ptx::mbarrier_arrive_expect(barrier, static_cast<unsigned>(bytes));
        if (args.matrix < 0) ptx::bulk_copy_box(shared, &map, args.column, args.row, barrier);
        else ptx::bulk_copy_box(shared, &map, args.column, args.row, args.matrix, barrier);
    }
    __syncthreads();
    ptx::mbarrier_wait(barrier, 0);
    for (int i = static_cast<int>(threadIdx.x); i < bytes; i += 64) y[i] = shared[i];
}

// Several copies of bytes on one barrier. `defect` 1: no wait; 2: the parity of the phase before; 3: too many bytes expected; 4: too
// few; 5: no fence behind the init; 6: no barrier behind the init; 7: a copy that nobody waits for.
template <int defect>
__global__ void copy_bytes(const unsigned char* x, unsigned char* y) {
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const barrier = reinterpret_cast<ptx::Mbarrier*>(shared + 512);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        if (defect != 5) ptx::mbarrier_fence_init();
    }
    if (defect != 6) __syncthreads();
    if (threadIdx.x == 32) {
        ptx::mbarrier_arrive_expect(barrier, defect == 3 ? 528 : defect == 4 ? 128 : defect == 7 ? 384 : 512);
        for (int i = 0; i < 4; i++) {
            ptx::Mbarrier* const own = defect == 7 && i == 3 ? barrier + 1 : barrier;
            if (own != barrier) {
                ptx::mbarrier_init(own, 1);
                ptx::mbarrier_fence_init();
            }
            ptx::bulk_copy(shared + 128 * i, x + 128 * i, 128, own);
        }
    }
    if (defect != 1) ptx::mbarrier_wait(barrier, defect == 2 ? 1 : 0);
    for (int i = static_cast<int>(threadIdx.x); i < (defect == 7 ? 384 : 512); i += 64) y[i] = shared[i];
}

std::vector<unsigned char> random_bytes(std::int64_t count) {
    std::mt19937 random(static_cast<unsigned>(count));
    std::vector<unsigned char> bytes(static_cast<std::size_t>(count));
    for (auto& b : bytes) b = static_cast<unsigned char>(random());
    return bytes;
}

template <class K>
bool bytes_are_wrong(K kernel, std::size_t checked = 512) {
    const auto bytes = random_bytes(512);
    const Device<unsigned char> x(bytes);
    Device<unsigned char> y(512);
    if (launch(kernel, {dim3(1), dim3(64), 512 + 16}, x.data(), y.data()) != cudaSuccess) return true;
    const auto found = y.host();
    return !std::equal(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(checked), bytes.begin());
}

// Two blocks, each with a box of its own and half of one that both get; they hand their stage over `rounds` times. Defect 1: a stage
// is filled again as soon as this block has done with it; 2: nobody waits for the other block's return; 3: no wait of the cluster
// behind the init; 4: only this block's half is expected.
template <int defect>
__global__ void share_boxes(const __grid_constant__ ptx::TensorMap map, int rounds, unsigned char* y) {
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const full = reinterpret_cast<ptx::Mbarrier*>(shared + 3 * 1024);
    ptx::Mbarrier* const empty = full + 1;
    const int rank = static_cast<int>(ptx::cluster_rank()), lane = static_cast<int>(threadIdx.x) % 32;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::mbarrier_init(empty, defect == 1 ? 1 : 2);
        ptx::mbarrier_fence_init();
    }
    if (defect == 3) __syncthreads();
    else ptx::cluster_sync();
    const int own = 8 * static_cast<int>(blockIdx.x), both = 8 * (static_cast<int>(blockIdx.x) & ~1);
    if (threadIdx.x == 0) {
        for (int round = 0; round < rounds; round++) {
            ptx::mbarrier_wait(empty, static_cast<unsigned>(round & 1) ^ 1);
            ptx::mbarrier_arrive_expect(full, defect == 4 ? 2048 : 3072);
            ptx::bulk_copy_box(shared, &map, 128 * round, own, full);
            ptx::bulk_copy_box_to(3, shared + 1024 * (1 + rank), &map, 128 * round, both + 8 * rank, full);
        }
    } else if (threadIdx.x >= 32) {
        for (int round = 0; round < rounds; round++) {
            ptx::mbarrier_wait(full, static_cast<unsigned>(round) & 1);
            for (int i = lane; i < 3072; i += 32)
                y[(static_cast<int>(blockIdx.x) * rounds + round) * 3072 + i] = shared[i];
            __syncwarp();
            if (defect == 1 && lane == 0) ptx::mbarrier_arrive(empty);
            if (defect != 1 && lane < 2) ptx::mbarrier_arrive_at(empty, static_cast<unsigned>(lane));
        }
    }
    __syncwarp();
    if (defect != 2) ptx::cluster_sync();
}

template <class K>
bool shared_boxes_are_wrong(K kernel) {
    constexpr int blocks = 4, rounds = 3, row_bytes = rounds * 128;
    const auto bytes = random_bytes(blocks * 8 * row_bytes);
    const Device<unsigned char> x(bytes);
    Device<unsigned char> y(blocks * rounds * 3072);
    ptx::TensorMap map = {};
    if (!ptx::make_tensor_map(&map, {x.data(), row_bytes, blocks * 8, row_bytes, 0, 0}, 8)) return true;
    if (launch(kernel, {dim3(blocks), dim3(64), 3 * 1024 + 16, nullptr, "", false, 2}, map, rounds, y.data()) !=
        cudaSuccess)
        return true;
    const auto found = y.host();
    for (int i = 0; i < static_cast<int>(found.size()); i++) {
        const int block = i / (rounds * 3072), round = i / 3072 % rounds, box = i % 3072 / 1024;
        const int row = i % 1024 / 128, chunk = i % 128 / 16 ^ row;
        const int first = box == 0 ? 8 * block : 8 * ((block & ~1) + box - 1);
        if (found[static_cast<std::size_t>(i)] !=
            bytes[static_cast<std::size_t>((first + row) * row_bytes + round * 128 + chunk * 16 + i % 16)])
            return true;
    }
    return false;
}

template <int arrivals>
__global__ void count_arrivals(int* y) {
    auto* const barrier = reinterpret_cast<ptx::Mbarrier*>(ptx::dynamic_shared());
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, arrivals);
        y[0] = 0;
        ptx::mbarrier_fence_init();
    }
    __syncthreads();
    // A third of the threads writes in each phase; the others read behind it.
    for (int round = 0; round < 3; round++) {
        if (static_cast<int>(threadIdx.x) % 3 == round) y[threadIdx.x + 1] = round;
        ptx::mbarrier_arrive(barrier);
        ptx::mbarrier_wait(barrier, static_cast<unsigned>(round) & 1);
        const int other = static_cast<int>(threadIdx.x + 1) % 64;
        if (other % 3 <= round && y[other + 1] != other % 3) y[0] = 1;
    }
}

__global__ void overwritten_mbarrier() {
    auto* const barrier = reinterpret_cast<ptx::Mbarrier*>(ptx::dynamic_shared());
    ptx::mbarrier_init(barrier, 1);
    barrier->opaque = 1;
    ptx::mbarrier_arrive(barrier);
}

__global__ void no_mbarrier() { ptx::mbarrier_arrive(reinterpret_cast<ptx::Mbarrier*>(ptx::dynamic_shared())); }

}  // namespace

TEST(boxes_of_a_tensor) {
    const Hopper hopper;
    // Rows of 400 bytes, 416 apart, of which a map knows 392: boxes inside, over each edge, and beyond.
    constexpr int rows = 21, stride = 416, row_bytes = 392, matrices = 3, matrix_bytes = rows * stride + 32;
    const auto bytes = random_bytes(matrices * matrix_bytes);
    const Device<unsigned char> x(bytes);
    for (const bool is_stack : {false, true}) {
        ptx::TensorMap map = {};
        CHECK(
            ptx::make_tensor_map(&map, {x.data(), row_bytes, rows, stride, is_stack ? matrices : 0, matrix_bytes}, 16));
        for (const auto& at : {CopyArgs{16, 0, 0, 2},
                               {16, 128, 3, 1},
                               {16, 256, 8, 0},
                               {16, 384, 16, 1},
                               {16, -64, -5, 1},
                               {16, 512, 40, 2},
                               {16, 0, 0, 3}}) {
            CopyArgs args = at;
            if (!is_stack) args.matrix = -1;
            const int matrix = is_stack ? args.matrix : 0;
            Device<unsigned char> y(16 * 128);
            CHECK(caught([&] {
                      if (launch(copy_box, {dim3(1), dim3(64), 16 * 128 + 8}, map, args, y.data()) != cudaSuccess)
                          return true;
                      const auto found = y.host();
                      for (int r = 0; r < 16; r++)
                          for (int k = 0; k < 128; k++) {
                              const int row = args.row + r, column = args.column + k;
                              const bool inside =
                                  row >= 0 && row < rows && column >= 0 && column < row_bytes && matrix < matrices;
                              const unsigned char expected =
                                  inside
                                      ? bytes[static_cast<std::size_t>(matrix * matrix_bytes + row * stride + column)]
                                      : 0;
                              const int place = r * 128 + ((k / 16) ^ (r % 8)) * 16 + k % 16;
                              if (found[static_cast<std::size_t>(place)] != expected) return true;
                          }
                      return false;
                  }) == 0)
                << emulator::last_failure();
        }
    }
}

TEST(maps_that_the_driver_refuses) {
    const Hopper hopper;
    const Device<unsigned char> x(4096);
    ptx::TensorMap map = {};
    CHECK(ptx::make_tensor_map(&map, {x.data(), 100, 8, 112, 0, 0}, 8));
    CHECK(!ptx::make_tensor_map(&map, {x.data() + 8, 100, 8, 112, 0, 0}, 8));
    CHECK(!ptx::make_tensor_map(&map, {x.data(), 100, 8, 104, 0, 0}, 8));
    CHECK(!ptx::make_tensor_map(&map, {x.data(), 0, 8, 112, 0, 0}, 8));
    CHECK(!ptx::make_tensor_map(&map, {x.data(), 100, 8, 112, 0, 0}, 257));
    CHECK(!ptx::make_tensor_map(&map, {x.data(), 100, 8, 112, 2, 1000}, 8));
    emulator::set_tensor_maps(false);
    CHECK(!ptx::make_tensor_map(&map, {x.data(), 100, 8, 112, 0, 0}, 8));
}

TEST(bulk_copies_end_at_their_mbarrier) {
    const Hopper hopper;
    CHECK(caught([] { return bytes_are_wrong(copy_bytes<0>); }) == 0) << emulator::last_failure();
    const int no_wait = caught([] { return bytes_are_wrong(copy_bytes<1>); });
    const int parity = caught([] { return bytes_are_wrong(copy_bytes<2>); });
    CHECK(no_wait >= least) << no_wait;
    CHECK(parity >= least) << parity;
    CHECK(caught([] {
              return bytes_are_wrong(copy_bytes<3>) && contains(emulator::last_failure(), "deadlock") &&
                     contains(emulator::last_failure(), "0 of 1 arrivals and 16 bytes missing");
          }) == seeds)
        << emulator::last_failure();
    CHECK(caught([] { return bytes_are_wrong(copy_bytes<4>); }) >= least) << emulator::last_failure();
    CHECK(caught([] {
              return bytes_are_wrong(copy_bytes<5>) &&
                     contains(emulator::last_failure(), "no fence lies behind the initialisation");
          }) == seeds)
        << emulator::last_failure();
    CHECK(caught([] { return bytes_are_wrong(copy_bytes<6>); }) >= least) << emulator::last_failure();
    CHECK(caught([] { return bytes_are_wrong(copy_bytes<7>, 384); }) >= seeds / 8) << emulator::last_failure();
}

TEST(mbarriers_count) {
    const Hopper hopper;
    CHECK(caught([] {
              Device<int> y(65);
              return launch(count_arrivals<64>, {dim3(1), dim3(64), 8}, y.data()) != cudaSuccess || y.host()[0] != 0;
          }) == 0)
        << emulator::last_failure();
    Device<int> y(65);
    CHECK(launch(count_arrivals<65>, {dim3(1), dim3(64), 8}, y.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "deadlock") && contains(emulator::last_failure(), "1 of 65 arrivals"))
        << emulator::last_failure();
    CHECK(launch(overwritten_mbarrier, {dim3(1), dim3(1), 8}) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "wrote over the mbarrier")) << emulator::last_failure();
    CHECK(launch(no_mbarrier, {dim3(1), dim3(1), 8}) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "no mbarrier was initialised")) << emulator::last_failure();
    emulator::set_architecture(80);
    CHECK(launch(count_arrivals<64>, {dim3(1), dim3(64), 8}, y.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "expected sm_90")) << emulator::last_failure();
}

TEST(clusters_share_boxes) {
    const Hopper hopper;
    CHECK(caught([] { return shared_boxes_are_wrong(share_boxes<0>); }) == 0) << emulator::last_failure();
    CHECK(caught([] { return shared_boxes_are_wrong(share_boxes<1>); }) >= least) << emulator::last_failure();
    CHECK(caught([] { return shared_boxes_are_wrong(share_boxes<2>); }) >= seeds / 3) << emulator::last_failure();
    CHECK(caught([] { return shared_boxes_are_wrong(share_boxes<3>); }) >= seeds / 3) << emulator::last_failure();
    CHECK(caught([] { return shared_boxes_are_wrong(share_boxes<4>); }) >= least) << emulator::last_failure();
    ptx::TensorMap map = {};
    Device<unsigned char> y(1);
    CHECK(launch(share_boxes<0>, {dim3(3), dim3(64), 4096, nullptr, "", false, 2}, map, 1, y.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "clusters of 2 in a grid of 3 blocks")) << emulator::last_failure();
    emulator::set_architecture(80);
    CHECK(launch(share_boxes<0>, {dim3(2), dim3(64), 4096, nullptr, "", false, 2}, map, 1, y.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "has no clusters")) << emulator::last_failure();
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
