// The emulated device itself: that correct kernels run under every schedule, and that each kind of mistake is caught.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <numeric>

#include "launch/launch.hpp"
#include "ptx/barrier.cuh"
#include "ptx/cp_async.cuh"
#include "support.hpp"

using fastffn::cuda::launch;
using support::contains;
using support::Device;
namespace ptx = fastffn::ptx;

namespace {

constexpr int seeds = 24;
// With the race check a mistake shows in every schedule, not only where it changes a result.
#ifdef FASTFFN_RACE_CHECK
constexpr int least = seeds;
#else
constexpr int least = seeds / 3;
#endif
constexpr unsigned all = 0xFFFFFFFFu;

// ---- kernels ----

// Sums over the block through shared memory. `defect` leaves one barrier out.
template <int defect>
__global__ void block_sum(const float* x, float* y) {
    __shared__ float partial[256];
    const int t = static_cast<int>(threadIdx.x);
    partial[t] = x[blockIdx.x * 256 + t];
    if (defect != 1) __syncthreads();
    for (int half = 128; half > 0; half /= 2) {
        if (t < half) partial[t] += partial[t + half];
        if (defect != 2) __syncthreads();
    }
    if (t == 0) y[blockIdx.x] = partial[0];
}

// Two rounds through one buffer: what defect 1 leaves out keeps round 2's writers from round 1's readers.
template <int defect>
__global__ void rotate_twice(int* y) {
    __shared__ int buffer[64];
    const int t = static_cast<int>(threadIdx.x);
    buffer[t] = t;
    __syncthreads();
    const int first = buffer[(t + 1) % 64];
    if (defect != 1) __syncthreads();
    buffer[t] = 1000 + t;
    __syncthreads();
    y[t] = first + buffer[(t + 2) % 64];
}

template <int defect>
__global__ void warp_exchange(int* y) {
    int* const shared = reinterpret_cast<int*>(ptx::dynamic_shared());
    const int t = static_cast<int>(threadIdx.x);
    shared[t] = 3 * t;
    if (defect == 0) __syncwarp();
    if (defect == 2) y[t] = __shfl_sync(0xffffffffu, t, 0);  // orders no memory
    y[t] = shared[t ^ 1];
}

__global__ void shuffles(int* y) {
    const int t = static_cast<int>(threadIdx.x);
    int* out = y + t * 10;
    out[0] = __shfl_sync(all, t, 5);
    out[1] = __shfl_sync(all, t, 3, 8);
    out[2] = __shfl_up_sync(all, t, 2);
    out[3] = __shfl_down_sync(all, t, 4, 16);
    out[4] = __shfl_xor_sync(all, t, 16);
    out[5] = static_cast<int>(__ballot_sync(all, t % 3 == 0));
    out[6] = __any_sync(all, t == 31) * 2 + __all_sync(all, t < 31);
    out[7] = __reduce_add_sync(all, t);
    out[8] = static_cast<int>(__match_any_sync(all, t / 5));
    // Both halves at once, each with a mask of its own.
    const unsigned half = t < 16 ? 0xFFFFu : 0xFFFF0000u;
    out[9] = __reduce_max_sync(half, t) + __shfl_xor_sync(half, t, 8);
}

template <int defect>
__global__ void divergent_shuffle(int* y) {
    const int t = static_cast<int>(threadIdx.x);
    int v = t;
    if (defect == 1 && t == 7) return;
    if (defect == 2) {
        if (t < 16) v = __shfl_xor_sync(all, v, 1);
        else v = __shfl_xor_sync(all, v, 2);
    } else if (defect == 3) {
        if (t < 16) v = __shfl_xor_sync(all, v, 1);
    } else if (defect == 4) {
        v = __shfl_xor_sync(0xFFFFu, v, 16);
    } else if (defect == 5) {
        v = __shfl_xor_sync(t < 16 ? all : all, v, 1, t < 4 ? 3 : 32);
    } else {
        v = __shfl_xor_sync(all, v, 1);
    }
    y[t] = v;
}

template <int defect>
__global__ void broken_barrier(int* y) {
    const int t = static_cast<int>(threadIdx.x);
    if (defect == 1 && t >= 40) return;
    if (defect == 2) {
        if (t < 32) __syncthreads();
        else __syncthreads();
    } else if (defect == 3) {
        if (t < 32) __syncthreads();
        else __syncwarp(), ptx::barrier_sync(1, 64);
    } else {
        __syncthreads();
    }
    y[t] = t;
}

template <int defect>
__global__ void copy_through_shared(const float4* x, float4* y) {
    auto* const shared = reinterpret_cast<float4*>(ptx::dynamic_shared());
    const int t = static_cast<int>(threadIdx.x);
    ptx::cp_async_16(shared + t, x + t);
    ptx::cp_async_commit();
    ptx::cp_async_16(shared + 32 + t, x + 32 + t, 8);
    ptx::cp_async_commit();
    // Own data only needs no barrier.
    if (defect != 1) ptx::cp_async_wait<1>();
    y[t] = shared[t];
    if (defect != 2) ptx::cp_async_wait<0>();
    if (defect != 3) __syncwarp();
    y[32 + t] = shared[32 + (t ^ 1)];
    if (defect == 1 || defect == 2) ptx::cp_async_wait<0>();
}

__global__ void read_global(const float* x, float* y, int offset) {
    y[threadIdx.x] = x[static_cast<int>(threadIdx.x) + offset];
}

__global__ void read_behind_shared(float* y, int offset) {
    auto* const shared = reinterpret_cast<float*>(ptx::dynamic_shared());
    shared[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = shared[static_cast<int>(threadIdx.x) + offset];
}

template <int>
__global__ void first_shared(float* y) {
    auto* const shared = reinterpret_cast<float*>(ptx::dynamic_shared());
    shared[threadIdx.x] = 1;
    y[threadIdx.x] = shared[threadIdx.x];
}

__global__ void write_behind_shared(int offset) {
    reinterpret_cast<float*>(ptx::dynamic_shared())[static_cast<int>(threadIdx.x) + offset] = 1;
}

__global__ void read_behind_variable(float* y, int offset) {
    __shared__ float a[32];
    a[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = a[static_cast<int>(threadIdx.x) + offset];
}

__global__ void count_atomically(int* total, unsigned* order) {
    atomicAdd(total, 1);
    order[blockIdx.x * blockDim.x + threadIdx.x] = atomicInc(order + gridDim.x * blockDim.x, 1u << 30);
}

// Blocks leave partial sums; the last one to count itself adds them up. Defect 1: no fence before the count.
template <int defect>
__global__ void last_block_adds(int* partial, unsigned* count, int* y) {
    __shared__ unsigned place;
    partial[blockIdx.x * 32 + threadIdx.x] = static_cast<int>(blockIdx.x + threadIdx.x);
    if (defect != 1) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) place = atomicAdd(count, 1u);
    __syncthreads();
    if (place != gridDim.x - 1) return;
    int sum = 0;
    for (unsigned b = 0; b < gridDim.x; b++) sum += partial[b * 32 + threadIdx.x];
    y[threadIdx.x] = sum;
}

// Defect 1: two threads write one element of device memory; 2: two blocks do.
template <int defect>
__global__ void write_twice(int* y) {
    const unsigned t = threadIdx.x + 32 * blockIdx.x;
    y[defect == 1 ? t / 2 : defect == 2 ? threadIdx.x : t] = 1;
}

__global__ void wait_for_another_block(int* flag) {
    while (atomicAdd(flag, 0) == 0) {}
}

__global__ void producer_consumer(int* y) {
    __shared__ int box[32];
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    for (int round = 0; round < 4; round++) {
        if (warp == 0) {
            box[lane] = round * 100 + lane;
            ptx::barrier_arrive(1, 64);  // full
            ptx::barrier_sync(2, 64);    // empty
        } else {
            ptx::barrier_sync(1, 64);
            y[round * 32 + lane] = box[31 - lane];
            ptx::barrier_arrive(2, 64);
        }
    }
}

__global__ void uninitialised(float* y) {
    __shared__ float variable[32];
    auto* const dynamic = reinterpret_cast<float*>(ptx::dynamic_shared());
    y[threadIdx.x] = variable[threadIdx.x] + dynamic[threadIdx.x];
    variable[threadIdx.x] = dynamic[threadIdx.x] = 0;
}

__global__ void indices(int* y) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<int>(block * 1000 + thread);
}

bool run_ok(cudaError_t status) { return status == cudaSuccess && *emulator::last_failure() == 0; }

// In how many of the schedules `wrong` sees something.
template <class F>
int caught(F wrong) {
    int count = 0;
    for (int seed = 0; seed < seeds; seed++) {
        emulator::set_seed(static_cast<std::uint64_t>(seed));
        count += wrong() ? 1 : 0;
    }
    emulator::set_seed(1);
    return count;
}

std::vector<float> numbers(int count) {
    std::vector<float> x(static_cast<std::size_t>(count));
    std::iota(x.begin(), x.end(), 1.0f);
    return x;
}

template <class K>
bool sums_are_wrong(K kernel) {
    const Device<float> x(numbers(1024));
    Device<float> y(4);
    if (launch(kernel, {dim3(4), dim3(256)}, x.data(), y.data()) != cudaSuccess) return true;
    const auto sums = y.host();
    for (int b = 0; b < 4; b++)
        if (!(sums[b] == 256.0f * (256 * b + 128.5f))) return true;
    return false;
}

template <class K>
bool rotation_is_wrong(K kernel) {
    Device<int> y(64);
    if (launch(kernel, {dim3(1), dim3(64)}, y.data()) != cudaSuccess) return true;
    const auto values = y.host();
    for (int t = 0; t < 64; t++)
        if (values[t] != (t + 1) % 64 + 1000 + (t + 2) % 64) return true;
    return false;
}

template <class K>
bool exchange_is_wrong(K kernel) {
    Device<int> y(96);
    if (launch(kernel, {dim3(1), dim3(96), 96 * 4}, y.data()) != cudaSuccess) return true;
    const auto values = y.host();
    for (int t = 0; t < 96; t++)
        if (values[t] != 3 * (t ^ 1)) return true;
    return false;
}

template <class K>
bool copies_are_wrong(K kernel) {
    const Device<float> x(numbers(256));
    Device<float> y(256);
    if (launch(kernel, {dim3(1), dim3(32), 1024}, reinterpret_cast<const float4*>(x.data()),
               reinterpret_cast<float4*>(y.data())) != cudaSuccess)
        return true;
    const auto values = y.host();
    for (int i = 0; i < 256; i++) {
        const int source = i < 128 ? i : i ^ 4;
        const float expected = i >= 128 && i % 4 >= 2 ? 0 : static_cast<float>(source + 1);
        if (!(values[static_cast<std::size_t>(i)] == expected)) return true;
    }
    return false;
}

template <class K>
std::string failure_of(K kernel, int threads = 32) {
    Device<int> y(64);
    launch(kernel, {dim3(1), dim3(static_cast<unsigned>(threads))}, y.data());
    return emulator::last_failure();
}

}  // namespace

TEST(correct_kernels_run_under_every_schedule) {
    CHECK(caught([] { return sums_are_wrong(block_sum<0>); }) == 0) << emulator::last_failure();
    CHECK(caught([] { return rotation_is_wrong(rotate_twice<0>); }) == 0) << emulator::last_failure();
    CHECK(caught([] { return exchange_is_wrong(warp_exchange<0>); }) == 0) << emulator::last_failure();
    CHECK(caught([] { return copies_are_wrong(copy_through_shared<0>); }) == 0) << emulator::last_failure();
}

TEST(a_missing_barrier_shows) {
    // Without the race check not in every schedule: one in which the writers come first hides it.
    const int first = caught([] { return sums_are_wrong(block_sum<1>); });
    const int second = caught([] { return sums_are_wrong(block_sum<2>); });
    const int reuse = caught([] { return rotation_is_wrong(rotate_twice<1>); });
    const int warp = caught([] { return exchange_is_wrong(warp_exchange<1>); });
    CHECK(first >= least) << first;
    CHECK(second >= least) << second;
    CHECK(reuse >= least) << reuse;
    CHECK(warp >= least) << warp;
#ifdef FASTFFN_RACE_CHECK
    const int shuffle = caught([] { return exchange_is_wrong(warp_exchange<2>); });
    CHECK(shuffle >= least) << shuffle;
#endif
}

TEST(a_missing_wait_for_cp_async_shows) {
    const int own = caught([] { return copies_are_wrong(copy_through_shared<1>); });
    const int last = caught([] { return copies_are_wrong(copy_through_shared<2>); });
    const int barrier = caught([] { return copies_are_wrong(copy_through_shared<3>); });
    CHECK(own == seeds) << own;
    CHECK(last == seeds) << last;
    CHECK(barrier >= least) << barrier;
}

TEST(shuffles_votes_and_reductions) {
    for (int seed = 0; seed < seeds; seed++) {
        emulator::set_seed(static_cast<std::uint64_t>(seed));
        Device<int> y(320);
        CHECK(run_ok(launch(shuffles, {dim3(1), dim3(32)}, y.data()))) << emulator::last_failure();
        const auto out = y.host();
        for (int t = 0; t < 32; t++) {
            const int* o = out.data() + 10 * t;
            const unsigned same = [&] {
                unsigned mask = 0;
                for (int i = 0; i < 32; i++) mask |= static_cast<unsigned>(i / 5 == t / 5) << i;
                return mask;
            }();
            CHECK(o[0] == 5 && o[1] == t / 8 * 8 + 3 && o[2] == (t < 2 ? t : t - 2)) << t;
            CHECK(o[3] == (t % 16 + 4 < 16 ? t + 4 : t) && o[4] == (t ^ 16)) << t;
            CHECK(static_cast<unsigned>(o[5]) == 0x49249249u && o[6] == 2 && o[7] == 496) << t;
            CHECK(static_cast<unsigned>(o[8]) == same) << t;
            CHECK(o[9] == (t < 16 ? 15 : 31) + (t ^ 8)) << t;
        }
    }
    emulator::set_seed(1);
}

TEST(a_divergent_shuffle_is_an_error) {
    CHECK(failure_of(divergent_shuffle<0>).empty());
    for (int seed = 0; seed < seeds; seed++) {
        emulator::set_seed(static_cast<std::uint64_t>(seed));
        const std::string returned = failure_of(divergent_shuffle<1>);
        // Whether lane 7 is seen to have returned, or everyone waits for it.
        CHECK(contains(returned, "lane 7, which has returned") || contains(returned, "deadlock")) << returned;
        CHECK(contains(failure_of(divergent_shuffle<2>), "divergent: lane")) << emulator::last_failure();
        CHECK(contains(failure_of(divergent_shuffle<3>), "__shfl_xor_sync")) << emulator::last_failure();
        CHECK(contains(failure_of(divergent_shuffle<4>), "leaves out")) << emulator::last_failure();
        CHECK(contains(failure_of(divergent_shuffle<5>), "width 3")) << emulator::last_failure();
        CHECK(contains(failure_of(divergent_shuffle<0>, 24), "the block ends before it")) << emulator::last_failure();
    }
    emulator::set_seed(1);
}

TEST(a_divergent_barrier_is_an_error) {
    CHECK(failure_of(broken_barrier<0>, 64).empty());
    for (int seed = 0; seed < seeds; seed++) {
        emulator::set_seed(static_cast<std::uint64_t>(seed));
        CHECK(contains(failure_of(broken_barrier<1>, 64), "24 returned")) << emulator::last_failure();
        CHECK(
            contains(failure_of(broken_barrier<2>, 64), "divergent: other threads of the block wait at __syncthreads"))
            << emulator::last_failure();
        const std::string deadlock = failure_of(broken_barrier<3>, 64);
        CHECK(contains(deadlock, "deadlock: no thread of the block can go on; 32 at __syncthreads")) << deadlock;
        CHECK(contains(deadlock, "32 at barrier.sync")) << deadlock;
        CHECK(contains(deadlock, "block (") && contains(deadlock, "test_runtime.cpp:")) << deadlock;
    }
    emulator::set_seed(1);
}

TEST(a_read_behind_an_array_is_caught) {
    const Device<float> x(numbers(64));
    Device<float> y(64);
    const auto run = [&](int offset) { launch(read_global, {dim3(1), dim3(64)}, x.data(), y.data(), offset); };
    CHECK(!support::dies([&] { run(0); }));
#ifdef FASTFFN_RACE_CHECK
    run(1);
    CHECK(contains(emulator::last_failure(), "reads 4 bytes at 256 of a device array of 256 bytes"))
        << emulator::last_failure();
    run(-1);
    CHECK(contains(emulator::last_failure(), "reads 4 bytes at -4 of a device array")) << emulator::last_failure();
#else
    CHECK(support::dies([&] { run(1); }));
#endif
}

TEST(shared_memory_ends_where_it_ends) {
    Device<float> y(32);
    CHECK(run_ok(launch(read_behind_shared, {dim3(1), dim3(32), 128}, y.data(), 0))) << emulator::last_failure();
    CHECK(run_ok(launch(read_behind_variable, {dim3(1), dim3(32)}, y.data(), 0))) << emulator::last_failure();
    const auto write = [] { return launch(write_behind_shared, {dim3(1), dim3(32), 128}, 1); };
#if defined(FASTFFN_RACE_CHECK)
    const auto read = [&](int offset) {
        return launch(read_behind_shared, {dim3(1), dim3(32), 128}, y.data(), offset);
    };
    CHECK(read(1) != cudaSuccess &&
          contains(emulator::last_failure(), "reads 4 bytes at 128 of shared memory of 128 bytes"))
        << emulator::last_failure();
    CHECK(read(-1) != cudaSuccess && contains(emulator::last_failure(), "reads 4 bytes at -4"))
        << emulator::last_failure();
    CHECK(launch(read_behind_variable, {dim3(1), dim3(32)}, y.data(), 1) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "that nobody has written")) << emulator::last_failure();
    CHECK(write() != cudaSuccess && contains(emulator::last_failure(), "writes 4 bytes at 128 of shared memory"));
#elif defined(__SANITIZE_ADDRESS__)
    CHECK(support::dies([&] { launch(read_behind_shared, {dim3(1), dim3(32), 128}, y.data(), 1); }));
    CHECK(support::dies([&] { launch(read_behind_variable, {dim3(1), dim3(32)}, y.data(), 1); }));
    CHECK(support::dies(write));
#else
    CHECK(write() != cudaSuccess && contains(emulator::last_failure(), "behind the end of 128 bytes"))
        << emulator::last_failure();
#endif
    CHECK(launch(write_behind_shared, {dim3(1), dim3(32), 300 * 1024}, 0) == cudaErrorInvalidValue);
    cudaGetLastError();
}

TEST(shared_memory_starts_as_garbage) {
    CHECK(caught([] {
              Device<float> y(32);
              if (launch(uninitialised, {dim3(3), dim3(32), 128}, y.data()) != cudaSuccess)
                  return contains(emulator::last_failure(), "that nobody has written");
              for (float v : y.host())
                  if (std::isfinite(v) && std::fabs(v) < 1e30f) return false;
              return true;
          }) == seeds);
}

TEST(atomics_and_blocks_in_any_order) {
    bool in_order = true;
    for (int seed = 0; seed < seeds; seed++) {
        emulator::set_seed(static_cast<std::uint64_t>(seed));
        Device<int> total(std::vector<int>{0});
        Device<unsigned> order(std::vector<unsigned>(161));
        CHECK(run_ok(launch(count_atomically, {dim3(5), dim3(32)}, total.data(), order.data())))
            << emulator::last_failure();
        CHECK(total.host()[0] == 160);
        auto places = order.host();
        CHECK(places.back() == 160);
        places.pop_back();
        in_order = in_order && std::is_sorted(places.begin(), places.end());
        std::sort(places.begin(), places.end());
        for (unsigned i = 0; i < 160; i++) CHECK(places[i] == i);
    }
    CHECK(!in_order);
    emulator::set_seed(1);
}

TEST(races_between_blocks) {
    const auto last_block = [](auto kernel) {
        Device<int> partial(96), y(32);
        Device<unsigned> count(std::vector<unsigned>{0});
        if (launch(kernel, {dim3(3), dim3(32)}, partial.data(), count.data(), y.data()) != cudaSuccess) return true;
        const auto sums = y.host();
        for (int t = 0; t < 32; t++)
            if (sums[static_cast<std::size_t>(t)] != 3 + 3 * t) return true;
        return false;
    };
    CHECK(caught([&] { return last_block(last_block_adds<0>); }) == 0) << emulator::last_failure();
    const auto writes = [](auto kernel) {
        Device<int> y(64);
        return launch(kernel, {dim3(2), dim3(32)}, y.data()) != cudaSuccess;
    };
    CHECK(caught([&] { return writes(write_twice<0>); }) == 0) << emulator::last_failure();
#ifdef FASTFFN_RACE_CHECK
    CHECK(caught([&] { return last_block(last_block_adds<1>); }) == seeds);
    CHECK(caught([&] { return writes(write_twice<1>); }) == seeds);
    CHECK(caught([&] {
              return writes(write_twice<2>) && contains(emulator::last_failure(), "race: writes 4 bytes");
          }) == seeds);
#endif
}

TEST(named_barriers) {
    CHECK(caught([] {
              Device<int> y(128);
              if (!run_ok(launch(producer_consumer, {dim3(1), dim3(64)}, y.data()))) return true;
              const auto values = y.host();
              for (int round = 0; round < 4; round++)
                  for (int lane = 0; lane < 32; lane++)
                      if (values[static_cast<std::size_t>(round * 32 + lane)] != round * 100 + 31 - lane) return true;
              return false;
          }) == 0)
        << emulator::last_failure();
}

TEST(indices_of_three_dimensions) {
    Device<int> y(2 * 3 * 2 * 4 * 2 * 3);
    CHECK(run_ok(launch(indices, {dim3(2, 3, 2), dim3(4, 2, 3)}, y.data()))) << emulator::last_failure();
    const auto values = y.host();
    for (int i = 0; i < static_cast<int>(values.size()); i++)
        CHECK(values[static_cast<std::size_t>(i)] == i / 24 * 1000 + i % 24) << i;
}

TEST(a_block_that_waits_for_another_is_an_error) {
    Device<int> flag(std::vector<int>{0});
    CHECK(launch(wait_for_another_block, {dim3(2), dim3(1)}, flag.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "no end in sight")) << emulator::last_failure();
    cudaGetLastError();
}

TEST(host_code_cannot_touch_device_memory) {
    if (!std::getenv("FASTFFN_CUDA_HIDE")) return check::skip("FASTFFN_CUDA_HIDE=1");
    Device<int> total(std::vector<int>{0});
    Device<unsigned> order(std::vector<unsigned>(161));
    CHECK(run_ok(launch(count_atomically, {dim3(5), dim3(32)}, total.data(), order.data())));
    CHECK(total.host()[0] == 160);
    CHECK(support::dies([&] { std::fprintf(stderr, "%d", *total.data()); }));
    CHECK(support::dies([&] { *total.data() = 1; }));
    Device<int> unused(3);
    CHECK(support::dies([&] { unused.data()[2] = 1; }));
    CHECK(total.host()[0] == 160);
}

TEST(refused_launches) {
    Device<int> y(1);
    CHECK(launch(indices, {dim3(1), dim3(1025)}, y.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "a block of 1025 threads")) << emulator::last_failure();
    CHECK(launch(indices, {dim3(1, 65536), dim3(1)}, y.data()) != cudaSuccess);
    CHECK(launch(indices, {dim3(0), dim3(32)}, y.data()) == cudaSuccess);
    CHECK(cudaGetLastError() != cudaSuccess && cudaGetLastError() == cudaSuccess);
}

// Less than half as much on consumer devices as on sm_80: what a kernel takes there must not be what fits an A100.
TEST(shared_memory_of_each_architecture) {
    Device<float> y(32);
    // A kernel each: launch() remembers what it asked for a kernel on a device, whose architecture does not change elsewhere.
    using Kernel = void (*)(float*);
    struct {
        int architecture, kib;
        Kernel kernel;
    } const cases[] = {{80, 163, first_shared<80>}, {86, 99, first_shared<86>},    {89, 99, first_shared<89>},
                       {90, 227, first_shared<90>}, {100, 227, first_shared<100>}, {120, 99, first_shared<120>}};
    for (const auto& [architecture, kib, kernel] : cases) {
        emulator::set_architecture(architecture);
        int most = 0;
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
        CHECK(most == kib * 1024) << architecture;
        CHECK(run_ok(launch(kernel, {dim3(1), dim3(32), kib * 1024}, y.data()))) << architecture;
        CHECK(launch(kernel, {dim3(1), dim3(32), kib * 1024 + 16}, y.data()) == cudaErrorInvalidValue) << architecture;
        cudaGetLastError();
    }
    emulator::set_architecture(80);
}

TEST(half_and_bfloat16) {
    CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(1.00390625f)) == 0x3F80);  // a tie goes to even
    CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(1.01171875f)) == 0x3F82);
    CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(NAN)) == 0x7FFF && __half_as_ushort(__float2half_rn(NAN)) == 0x7FFF);
    CHECK(__half_as_ushort(__float2half_rn(65520.0f)) == 0x7C00 &&
          __half_as_ushort(__float2half_rn(65519.0f)) == 0x7BFF);
    for (unsigned bits = 0; bits < 65536; bits++) {
        const auto h = __ushort_as_half(static_cast<unsigned short>(bits));
        const auto b = __ushort_as_bfloat16(static_cast<unsigned short>(bits));
        if (!std::isnan(__half2float(h))) CHECK(__half_as_ushort(__float2half_rn(__half2float(h))) == bits) << bits;
        if (!std::isnan(__bfloat162float(b)))
            CHECK(__bfloat16_as_ushort(__float2bfloat16_rn(__bfloat162float(b))) == bits) << bits;
    }
    const float2 sum = __bfloat1622float2(
        __hfma2(__floats2bfloat162_rn(1, 2), __floats2bfloat162_rn(3, 4), __floats2bfloat162_rn(5, 6)));
    CHECK(sum.x == 8 && sum.y == 14);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
