// The emulated wgmma against plain loops; a pipeline of bulk copies and products, and each mistake that can be made in it.
#include <cmath>
#include <random>

#include "core/convert.hpp"
#include "hopper.hpp"
#include "launch/launch.hpp"
#include "ptx/bulk_copy.cuh"
#include "ptx/proxy.cuh"
#include "ptx/registers.cuh"
#include "ptx/wgmma_sp.cuh"
#include "support.hpp"

using fastffn::cuda::launch;
using support::contains;
using support::Device;
namespace ptx = fastffn::ptx;
using namespace hopper;

namespace {

enum class Kind { bf16, f16, s8 };

struct Tiles {
    unsigned long long a, b;  // descriptors, but for where shared memory begins
    int steps;                // of depth, 32 bytes each
    unsigned long long a_step, b_step;
};

// Tiles that lie in `image` as their descriptors say, by one warpgroup; y: [64, columns] by the PTX ISA's figure of D.
template <Kind kind, int columns, class Sum>
__global__ void multiply_tiles(const unsigned* image, int words, Tiles tiles, Sum* y) {
    auto* const shared = reinterpret_cast<unsigned*>(ptx::dynamic_shared());
    for (int i = static_cast<int>(threadIdx.x); i < words; i += 128) shared[i] = image[i];
    ptx::fence_proxy_async();
    __syncthreads();
    const unsigned long long begin = ptx::shared_address(shared) >> 4;
    Sum acc[columns / 2];
    for (int i = 0; i < columns / 2; i++) acc[i] = static_cast<Sum>(i);
    ptx::wgmma_fence();
    for (int step = 0; step < tiles.steps; step++) {
        const unsigned long long k = static_cast<unsigned long long>(step);
        const unsigned long long a = tiles.a + begin + k * tiles.a_step, b = tiles.b + begin + k * tiles.b_step;
        if constexpr (kind == Kind::bf16 && columns == 128) ptx::wgmma_m64n128k16_bf16(acc, a, b);
        if constexpr (kind == Kind::bf16 && columns == 256) ptx::wgmma_m64n256k16_bf16(acc, a, b);
        if constexpr (kind == Kind::f16 && columns == 128) ptx::wgmma_m64n128k16_f16(acc, a, b);
        if constexpr (kind == Kind::f16 && columns == 256) ptx::wgmma_m64n256k16_f16(acc, a, b);
        if constexpr (kind == Kind::s8 && columns == 128) ptx::wgmma_m64n128k32_s8(acc, a, b);
        if constexpr (kind == Kind::s8 && columns == 256) ptx::wgmma_m64n256k32_s8(acc, a, b);
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait_all(acc);
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int i = 0; i < columns / 2; i++) {
        const int row = 16 * warp + lane / 4 + (i % 4 < 2 ? 0 : 8), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        y[row * columns + column] = acc[i];
    }
}

// Where 16-byte chunk `chunk` of row `row` lies in a tile: PTX ISA, "Shared Memory Matrix Layout", and the figures of its swizzles.
struct Layout {
    int mode, leading, stride;
    int chunk_place(int row, int chunk) const {
        switch (mode) {
            case 1: return row / 8 * stride + row % 8 * 128 + (chunk ^ (row % 8)) * 16;
            case 2: return row / 8 * stride + row % 8 * 64 + (chunk ^ (row % 8 / 2)) * 16;
            case 3: return row / 8 * stride + row % 8 * 32 + (chunk ^ (row % 8 / 4)) * 16;
            default: return row / 8 * stride + row % 8 * 16 + chunk * leading;
        }
    }
    unsigned long long descriptor(int begin) const {
        return static_cast<unsigned long long>(begin >> 4) | static_cast<unsigned long long>(leading >> 4) << 16 |
               static_cast<unsigned long long>(stride >> 4) << 32 | static_cast<unsigned long long>(mode) << 62;
    }
};

template <Kind kind, int columns, class Sum>
void check_products(const Layout& layout, int chunks) {
    constexpr int bytes = kind == Kind::s8 ? 1 : 2;
    const int depth = chunks * 16 / bytes;
    std::mt19937 random(static_cast<unsigned>(columns + layout.mode));
    const auto size = [&](int rows) { return layout.chunk_place(rows - 1, chunks - 1) + 1024; };
    const int a_bytes = size(64), b_bytes = (size(columns) + 15) / 16 * 16;
    const int b_begin = (a_bytes + 1023) / 1024 * 1024;
    std::vector<unsigned> image(static_cast<std::size_t>((b_begin + b_bytes) / 4));
    auto* const raw = reinterpret_cast<unsigned char*>(image.data());
    const auto fill = [&](int rows, int begin) {
        std::vector<double> values(static_cast<std::size_t>(rows * depth));
        for (int row = 0; row < rows; row++)
            for (int k = 0; k < depth; k++) {
                const int number = static_cast<int>(random() % 255) - 127;
                values[static_cast<std::size_t>(row * depth + k)] = number;
                unsigned char* const at = raw + begin + layout.chunk_place(row, k * bytes / 16) + k * bytes % 16;
                const std::uint16_t half = kind == Kind::bf16 ? fastffn::f32_to_bf16(static_cast<float>(number))
                                                              : fastffn::f32_to_f16(static_cast<float>(number));
                if (kind == Kind::s8) *at = static_cast<unsigned char>(number);
                else std::memcpy(at, &half, 2);
            }
        return values;
    };
    const auto a = fill(64, 0), b = fill(columns, b_begin);
    const Device<unsigned> device_image(image);
    Device<Sum> y(64 * columns);
    const auto step = static_cast<unsigned long long>(layout.mode == 0 ? 2 * layout.leading / 16 : 2);
    const Tiles tiles = {layout.descriptor(0), layout.descriptor(b_begin), chunks / 2, step, step};
    const auto status = launch(multiply_tiles<kind, columns, Sum>, {dim3(1), dim3(128), b_begin + b_bytes},
                               device_image.data(), static_cast<int>(image.size()), tiles, y.data());
    CHECK(status == cudaSuccess) << emulator::last_failure();
    const auto found = y.host();
    for (int row = 0; row < 64; row++)
        for (int column = 0; column < columns; column++) {
            const int i = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
            double sum = i;
            for (int k = 0; k < depth; k++)
                sum += a[static_cast<std::size_t>(row * depth + k)] * b[static_cast<std::size_t>(column * depth + k)];
            // All sums are whole and below 2^24.
            CHECK(static_cast<double>(found[static_cast<std::size_t>(row * columns + column)]) == sum)
                << "mode " << layout.mode << ", row " << row << ", column " << column;
        }
}

// ---- a pipeline ----

constexpr int stages = 2, tile_rows = 64, tile_columns = 128, stage_bytes = (tile_rows + tile_columns) * 128;

enum class Defect {
    none,
    no_wait,              // for the copies of a stage
    wrong_parity,         // of that wait
    early_release,        // of a stage, before its wgmma has read it
    no_wait_for_release,  // before a stage is filled again
    wrong_swizzle,        // of the descriptor
    too_few_bytes,        // expected
    too_many_bytes,
    no_init_fence,
    no_wgmma_fence,
    no_commit,
    no_wgmma_wait,
    touched_sums,      // while a wgmma has them
    too_few_arrivals,  // a stage counts as free before all warps have done with it
    too_many_arrivals,
    other_descriptor,  // in one warp of the four
};

// y[64, 128] = x · wᵀ of bf16: warp 4 copies, warps 0 to 3 multiply.
template <Defect defect>
__global__ void pipeline(const __grid_constant__ ptx::TensorMap x, const __grid_constant__ ptx::TensorMap w, int steps,
                         float* y) {
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const full = reinterpret_cast<ptx::Mbarrier*>(shared + stages * stage_bytes);
    ptx::Mbarrier* const empty = full + stages;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < stages; stage++) {
            ptx::mbarrier_init(full + stage, 1);
            ptx::mbarrier_init(empty + stage, defect == Defect::too_few_arrivals    ? 1
                                              : defect == Defect::too_many_arrivals ? 5
                                                                                    : 4);
        }
        if (defect != Defect::no_init_fence) ptx::mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x > 128) return;
        for (int step = 0; step < steps; step++) {
            const int stage = step % stages;
            const unsigned parity = static_cast<unsigned>(step / stages) & 1;
            if (defect != Defect::no_wait_for_release) ptx::mbarrier_wait(empty + stage, parity ^ 1);
            ptx::mbarrier_arrive_expect(full + stage, stage_bytes - (defect == Defect::too_few_bytes ? 128 * 128 : 0) +
                                                          (defect == Defect::too_many_bytes ? 16 : 0));
            ptx::bulk_copy_box(shared + stage * stage_bytes, &x, step * 128, 0, full + stage);
            ptx::bulk_copy_box(shared + stage * stage_bytes + tile_rows * 128, &w, step * 128, 0, full + stage);
        }
        return;
    }
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    float acc[tile_columns / 2] = {};
    for (int step = 0; step < steps; step++) {
        const int stage = step % stages;
        const unsigned parity = static_cast<unsigned>(step / stages) & 1;
        if (defect != Defect::no_wait)
            ptx::mbarrier_wait(full + stage, defect == Defect::wrong_parity ? parity ^ 1 : parity);
        unsigned long long a = ptx::matrix_descriptor(shared + stage * stage_bytes),
                           b = ptx::matrix_descriptor(shared + stage * stage_bytes + tile_rows * 128);
        if (defect == Defect::wrong_swizzle) b ^= 3ull << 62;
        if (defect == Defect::other_descriptor && warp == 2) b += 2;
        if (defect != Defect::no_wgmma_fence) ptx::wgmma_fence();
        for (int k = 0; k < 4; k++) ptx::wgmma_m64n128k16_bf16(acc, a + 2 * k, b + 2 * k);
        if (defect != Defect::no_commit) ptx::wgmma_commit();
        if (defect == Defect::touched_sums && step == 1) acc[5] = 0;
        if (defect == Defect::early_release && lane == 0) ptx::mbarrier_arrive(empty + stage);
        if (defect != Defect::no_wgmma_wait) ptx::wgmma_wait<0>();
        if (defect != Defect::early_release && lane == 0) ptx::mbarrier_arrive(empty + stage);
    }
    for (int i = 0; i < tile_columns / 2; i++)
        y[(16 * warp + lane / 4 + i % 4 / 2 * 8) * tile_columns + i / 4 * 8 + lane % 4 * 2 + i % 2] = acc[i];
    if (defect == Defect::no_wgmma_wait) ptx::wgmma_wait_all(acc);
}

std::vector<std::uint16_t> small_numbers(int count, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<std::uint16_t> bits(static_cast<std::size_t>(count));
    for (auto& b : bits) b = fastffn::f32_to_bf16(static_cast<float>(random() % 15) - 7);
    return bits;
}

template <Defect defect>
bool pipeline_is_wrong() {
    constexpr int depth = 300, padded = 304, steps = (depth * 2 + 127) / 128;
    const auto x = small_numbers(tile_rows * padded, 1), w = small_numbers(tile_columns * padded, 2);
    const Device<std::uint16_t> device_x(x), device_w(w);
    Device<float> y(tile_rows * tile_columns);
    ptx::TensorMap x_map = {}, w_map = {};
    // The last four columns of a row are beyond the tensor, and so zeros.
    if (!ptx::make_tensor_map(&x_map, {device_x.data(), depth * 2, tile_rows, padded * 2, 0, 0}, tile_rows) ||
        !ptx::make_tensor_map(&w_map, {device_w.data(), depth * 2, tile_columns, padded * 2, 0, 0}, tile_columns))
        return true;
    if (launch(pipeline<defect>, {dim3(1), dim3(160 + 96), stages * stage_bytes + 2 * stages * 8}, x_map, w_map, steps,
               y.data()) != cudaSuccess)
        return true;
    const auto found = y.host();
    for (int row = 0; row < tile_rows; row++)
        for (int column = 0; column < tile_columns; column++) {
            float sum = 0;
            for (int k = 0; k < depth; k++)
                sum += fastffn::bf16_to_f32(x[static_cast<std::size_t>(row * padded + k)]) *
                       fastffn::bf16_to_f32(w[static_cast<std::size_t>(column * padded + k)]);
            if (!(found[static_cast<std::size_t>(row * tile_columns + column)] == sum)) return true;
        }
    return false;
}

template <Defect defect>
std::string failure_of_pipeline() {
    return pipeline_is_wrong<defect>() ? emulator::last_failure() : "nothing";
}

// wgmma reads what threads have stored. Defect 1: no proxy fence; 2: one behind the barrier; 3: no barrier.
template <int defect>
__global__ void stored_tiles(float* y) {
    auto* const shared = reinterpret_cast<unsigned*>(ptx::dynamic_shared());
    for (int i = static_cast<int>(threadIdx.x); i < stage_bytes / 4; i += 128) shared[i] = 0x3F803F80u;
    if (defect != 1 && defect != 2) ptx::fence_proxy_async();
    if (defect != 3) __syncthreads();
    if (defect == 2 && threadIdx.x == 0) ptx::fence_proxy_async();
    float acc[64] = {};
    ptx::wgmma_fence();
    ptx::wgmma_m64n128k16_bf16(acc, ptx::matrix_descriptor(shared), ptx::matrix_descriptor(shared + 64 * 32));
    ptx::wgmma_commit();
    ptx::wgmma_wait_all(acc);
    for (int i = 0; i < 64; i++) y[static_cast<int>(threadIdx.x) * 64 + i] = acc[i];
}

template <class K>
bool stored_tiles_are_wrong(K kernel) {
    Device<float> y(128 * 64);
    if (launch(kernel, {dim3(1), dim3(128), stage_bytes}, y.data()) != cudaSuccess) return true;
    for (const float v : y.host())
        if (v != 16) return true;
    return false;
}

// wgmma.sp of ones with ones. Defect 1: a register of a is written while it is read; 2: positions are; 3: two positions are equal.
template <int defect>
__global__ void kept_in_registers(float* y) {
    auto* const shared = reinterpret_cast<unsigned*>(ptx::dynamic_shared());
    for (int i = static_cast<int>(threadIdx.x); i < 192 * 32; i += 128) shared[i] = 0x3F803F80u;
    ptx::fence_proxy_async();
    __syncthreads();
    unsigned a[4] = {0x3F803F80u, 0x3F803F80u, 0x3F803F80u, 0x3F803F80u}, positions = 0x44444444u;
    if (defect == 3 && threadIdx.x == 5) positions = 0x44445444u;
    float acc[96] = {};
    ptx::wgmma_fence();
    ptx::wgmma_sp_m64n192k32_bf16(acc, a, positions, ptx::matrix_descriptor(shared));
    ptx::wgmma_commit();
    if (defect == 1 && threadIdx.x == 77) a[2] = 0;
    if (defect == 2 && threadIdx.x == 77) positions = 0xEEEEEEEEu;
    ptx::wgmma_wait_all(acc);
    for (int i = 0; i < 96; i++) y[static_cast<int>(threadIdx.x) * 96 + i] = acc[i];
}

template <int defect>
std::string failure_of_kept() {
    Device<float> y(128 * 96);
    if (launch(kept_in_registers<defect>, {dim3(1), dim3(128), 192 * 128}, y.data()) != cudaSuccess)
        return emulator::last_failure();
    for (const float v : y.host())
        if (v != 16) return "wrong";
    return "nothing";
}

// Defect 1: more registers than there are; 2: a decrease that increases.
template <int defect>
__global__ void move_registers(int* y) {
    if (threadIdx.x < 128) {
        ptx::registers_decrease<40>();
        if (defect == 2) ptx::registers_decrease<48>();
    } else {
        ptx::registers_increase<defect == 1 ? 256 : 232>();
    }
    y[threadIdx.x] = 1;
}

}  // namespace

TEST(wgmma_of_every_kind_and_layout) {
    const Hopper hopper;
    for (const Layout& layout : {Layout{1, 16, 1024}, Layout{2, 16, 512}, Layout{3, 16, 256}, Layout{0, 128, 1024},
                                 Layout{1, 16, 2048}, Layout{0, 2048, 128}}) {
        // Rows of whole swizzle patterns; without one, any number of chunks.
        const int chunks = layout.mode == 1 ? 8 : layout.mode == 2 ? 4 : layout.mode == 3 ? 2 : 8;
        if (layout.mode == 0 && layout.leading == 2048) {
            check_products<Kind::bf16, 128, float>(layout, 4);
            continue;
        }
        check_products<Kind::bf16, 128, float>(layout, chunks);
        check_products<Kind::f16, 256, float>(layout, chunks);
        check_products<Kind::s8, 128, int>(layout, chunks);
    }
    const Layout swizzled = {1, 16, 1024};
    check_products<Kind::bf16, 256, float>(swizzled, 8);
    check_products<Kind::f16, 128, float>(swizzled, 8);
    check_products<Kind::s8, 256, int>(swizzled, 8);
}

TEST(a_pipeline_of_copies_and_products) {
    const Hopper hopper;
    CHECK(caught(pipeline_is_wrong<Defect::none>) == 0) << emulator::last_failure();
}

TEST(each_mistake_in_a_pipeline_shows) {
    const Hopper hopper;
    const int no_wait = caught(pipeline_is_wrong<Defect::no_wait>);
    const int parity = caught(pipeline_is_wrong<Defect::wrong_parity>);
    const int early = caught(pipeline_is_wrong<Defect::early_release>);
    const int reuse = caught(pipeline_is_wrong<Defect::no_wait_for_release>);
    const int swizzle = caught(pipeline_is_wrong<Defect::wrong_swizzle>);
    const int few_bytes = caught(pipeline_is_wrong<Defect::too_few_bytes>);
    const int few_arrivals = caught(pipeline_is_wrong<Defect::too_few_arrivals>);
    CHECK(no_wait >= least) << no_wait;
    CHECK(parity >= least) << parity;
    CHECK(early >= least) << early;
    CHECK(reuse >= least) << reuse;
    CHECK(swizzle == seeds) << swizzle;
    CHECK(few_bytes >= least) << few_bytes;
    CHECK(few_arrivals >= least) << few_arrivals;
    for (int seed = 0; seed < 4; seed++) {
        emulator::set_seed(static_cast<std::uint64_t>(seed));
        CHECK(contains(failure_of_pipeline<Defect::too_many_bytes>(), "and 16 bytes missing"));
        CHECK(contains(failure_of_pipeline<Defect::too_many_arrivals>(), "1 of 5 arrivals"));
        CHECK(contains(failure_of_pipeline<Defect::no_init_fence>(), "no fence lies behind the initialisation"));
        CHECK(contains(failure_of_pipeline<Defect::no_wgmma_fence>(), "no wgmma.fence since"));
#ifdef FASTFFN_RACE_CHECK
        CHECK(contains(failure_of_pipeline<Defect::no_commit>(), "race: "));
#else
        CHECK(contains(failure_of_pipeline<Defect::no_commit>(), "without committing this wgmma"));
#endif
        CHECK(pipeline_is_wrong<Defect::no_wgmma_wait>());
        CHECK(contains(failure_of_pipeline<Defect::touched_sums>(), "has written sums that a wgmma under way has"));
        CHECK(contains(failure_of_pipeline<Defect::other_descriptor>(), "the warpgroup issue different ones"));
    }
}

TEST(stored_tiles_need_a_proxy_fence) {
    const Hopper hopper;
    CHECK(caught([] { return stored_tiles_are_wrong(stored_tiles<0>); }) == 0) << emulator::last_failure();
    CHECK(caught([] { return stored_tiles_are_wrong(stored_tiles<3>); }) >= least) << emulator::last_failure();
#ifdef FASTFFN_RACE_CHECK
    CHECK(caught([] {
              return stored_tiles_are_wrong(stored_tiles<1>) && contains(emulator::last_failure(), "no proxy fence");
          }) == seeds)
        << emulator::last_failure();
    CHECK(caught([] {
              return stored_tiles_are_wrong(stored_tiles<2>) && contains(emulator::last_failure(), "no proxy fence");
          }) == seeds)
        << emulator::last_failure();
#endif
}

TEST(registers_that_wgmma_reads) {
    const Hopper hopper;
    CHECK(failure_of_kept<0>() == "nothing") << emulator::last_failure();
    CHECK(contains(failure_of_kept<1>(), "lane 13 has written registers of a")) << emulator::last_failure();
    CHECK(contains(failure_of_kept<2>(), "lane 13 has written registers of a")) << emulator::last_failure();
    CHECK(contains(failure_of_kept<3>(), "expected ascending ones (lane 5, bit 12)")) << emulator::last_failure();
    cudaGetLastError();
}

TEST(registers_that_warpgroups_exchange) {
    const Hopper hopper;
    Device<int> y(384);
    CHECK(launch(move_registers<0>, {dim3(1), dim3(384)}, y.data()) == cudaSuccess) << emulator::last_failure();
    CHECK(launch(move_registers<1>, {dim3(1), dim3(384)}, y.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "there are 65536")) << emulator::last_failure();
    CHECK(launch(move_registers<2>, {dim3(1), dim3(384)}, y.data()) != cudaSuccess);
    CHECK(contains(emulator::last_failure(), "from 40 to 48 registers")) << emulator::last_failure();
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
