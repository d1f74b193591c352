// mma, mma.sp, ldmatrix and stmatrix against plain matrix products. Fragments are filled here element by element with the
// formulas of the PTX ISA (9.7.14.5, "Matrix Fragments for mma.m16n8k8 … k64"; 9.7.14.6 for mma.sp), as it writes them: row
// and column of element a_i of lane l; the emulator computes the other way round, from row and column to lane and register.
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>

#include "core/convert.hpp"
#include "launch/launch.hpp"
#include "ptx/bits.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "ptx/mma_sp.cuh"
#include "support.hpp"

using fastffn::cuda::launch;
using support::contains;
using support::Device;
namespace ptx = fastffn::ptx;

namespace {

struct Place {
    int row, col;
};
using Formula = std::function<Place(int lane, int i)>;

int group(int lane) { return lane >> 2; }
int in_group(int lane) { return lane % 4; }

// 9.7.14.5.8, .f16 and .bf16
Place a_k16_half(int lane, int i) {
    return {(0 <= i && i < 2) || (4 <= i && i < 6) ? group(lane) : group(lane) + 8,
            i < 4 ? in_group(lane) * 2 + (i & 1) : in_group(lane) * 2 + (i & 1) + 8};
}
Place b_k16_half(int lane, int i) {
    return {i < 2 ? in_group(lane) * 2 + (i & 1) : in_group(lane) * 2 + (i & 1) + 8, group(lane)};
}
// 9.7.14.5.7
Place a_k8_half(int lane, int i) { return {i < 2 ? group(lane) : group(lane) + 8, in_group(lane) * 2 + (i & 1)}; }
Place b_k8_half(int lane, int i) { return {in_group(lane) * 2 + i, group(lane)}; }
Place a_k8_tf32(int lane, int i) {
    return {i == 0 || i == 2 ? group(lane) : group(lane) + 8, i < 2 ? in_group(lane) : in_group(lane) + 4};
}
Place b_k8_tf32(int lane, int i) { return {i == 0 ? in_group(lane) : in_group(lane) + 4, group(lane)}; }
// 9.7.14.5.9
Place a_k16_byte(int lane, int i) { return {i < 4 ? group(lane) : group(lane) + 8, in_group(lane) * 4 + (i & 3)}; }
Place b_k16_byte(int lane, int i) { return {in_group(lane) * 4 + i, group(lane)}; }
// 9.7.14.5.10
Place a_k32_byte(int lane, int i) {
    return {(0 <= i && i < 4) || (8 <= i && i < 12) ? group(lane) : group(lane) + 8,
            i < 8 ? in_group(lane) * 4 + (i & 3) : in_group(lane) * 4 + (i & 3) + 16};
}
Place b_k32_byte(int lane, int i) {
    return {i < 4 ? in_group(lane) * 4 + (i & 3) : in_group(lane) * 4 + (i & 3) + 16, group(lane)};
}
// 9.7.14.5.11
Place a_k64_nibble(int lane, int i) {
    return {(0 <= i && i < 8) || (16 <= i && i < 24) ? group(lane) : group(lane) + 8,
            i < 16 ? in_group(lane) * 8 + (i & 7) : in_group(lane) * 8 + (i & 7) + 32};
}
Place b_k64_nibble(int lane, int i) {
    return {i < 8 ? in_group(lane) * 8 + (i & 7) : in_group(lane) * 8 + (i & 7) + 32, group(lane)};
}
// All shapes
Place c_any(int lane, int i) { return {i < 2 ? group(lane) : group(lane) + 8, in_group(lane) * 2 + (i & 1)}; }
// mma.sp: 9.7.14.6.2; element i of a multiplicand b of twice the depth.
Place b_sparse_half(int lane, int i) { return {i / 2 * 8 + in_group(lane) * 2 + (i & 1), group(lane)}; }
Place b_sparse_byte(int lane, int i) { return {i / 4 * 16 + in_group(lane) * 4 + (i & 3), group(lane)}; }

struct Registers {
    unsigned a[32][4], b[32][4], metadata[32];
    float acc_f32[32][4];
    int acc_s32[32][4];
};

enum class Kind { bf16, f16, tf32, s8, u8, s4, u4 };
int bits(Kind kind) { return kind == Kind::tf32 ? 32 : kind <= Kind::f16 ? 16 : kind <= Kind::u8 ? 8 : 4; }

unsigned encode(Kind kind, double value) {
    const auto f = static_cast<float>(value);
    switch (kind) {
        case Kind::bf16: return fastffn::f32_to_bf16(f);
        case Kind::f16: return fastffn::f32_to_f16(f);
        case Kind::tf32: return fastffn::bits_of(f);
        default: return static_cast<unsigned>(static_cast<int>(value)) & (bits(kind) == 8 ? 255u : 15u);
    }
}

// Values that the type holds exactly, no two rows or columns alike.
double random_value(Kind kind, std::mt19937& random) {
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    switch (kind) {
        case Kind::s8: return below(256) - 128;
        case Kind::u8: return below(256);
        case Kind::s4: return below(16) - 8;
        case Kind::u4: return below(16);
        case Kind::tf32: return below(2001) - 1000;
        default: return below(255) - 127;
    }
}

void put(unsigned* registers, Kind kind, int i, double value) {
    const int per = 32 / bits(kind);
    registers[i / per] |= encode(kind, value) << (i % per * bits(kind));
}

struct Case {
    const char* name;
    int depth;
    Kind a_kind, b_kind;
    Formula a, b;
    void (*kernel)(Registers*);
    bool sparse = false;
    int selector = 0;
};

#define FASTFFN_KERNEL_4_2(type, acc, instruction)                                \
    [](Registers* r) {                                                            \
        const int lane = static_cast<int>(threadIdx.x);                           \
        unsigned a[4], b[2];                                                      \
        type c[4];                                                                \
        for (int i = 0; i < 4; i++) a[i] = r->a[lane][i], c[i] = r->acc[lane][i]; \
        for (int i = 0; i < 2; i++) b[i] = r->b[lane][i];                         \
        ptx::instruction(c, a, b);                                                \
        for (int i = 0; i < 4; i++) r->acc[lane][i] = c[i];                       \
    }
#define FASTFFN_KERNEL_2_1(type, acc, instruction)            \
    [](Registers* r) {                                        \
        const int lane = static_cast<int>(threadIdx.x);       \
        const unsigned a[2] = {r->a[lane][0], r->a[lane][1]}; \
        const unsigned b[1] = {r->b[lane][0]};                \
        ptx::instruction(r->acc[lane], a, b);                 \
    }
#define FASTFFN_KERNEL_SP_4(acc, instruction)                                      \
    [](Registers* r) {                                                             \
        const int lane = static_cast<int>(threadIdx.x);                            \
        ptx::instruction(r->acc[lane], r->a[lane], r->b[lane], r->metadata[lane]); \
    }
#define FASTFFN_KERNEL_SP_2(acc, instruction)                    \
    [](Registers* r) {                                           \
        const int lane = static_cast<int>(threadIdx.x);          \
        const unsigned a[2] = {r->a[lane][0], r->a[lane][1]};    \
        const unsigned b[2] = {r->b[lane][0], r->b[lane][1]};    \
        ptx::instruction(r->acc[lane], a, b, r->metadata[lane]); \
    }

std::vector<Case> cases() {
    return {
        {"m16n8k16 bf16", 16, Kind::bf16, Kind::bf16, a_k16_half, b_k16_half,
         FASTFFN_KERNEL_4_2(float, acc_f32, mma_m16n8k16_bf16)},
        {"m16n8k16 f16", 16, Kind::f16, Kind::f16, a_k16_half, b_k16_half,
         FASTFFN_KERNEL_4_2(float, acc_f32, mma_m16n8k16_f16)},
        {"m16n8k8 bf16", 8, Kind::bf16, Kind::bf16, a_k8_half, b_k8_half,
         FASTFFN_KERNEL_2_1(float, acc_f32, mma_m16n8k8_bf16)},
        {"m16n8k8 f16", 8, Kind::f16, Kind::f16, a_k8_half, b_k8_half,
         FASTFFN_KERNEL_2_1(float, acc_f32, mma_m16n8k8_f16)},
        {"m16n8k8 tf32", 8, Kind::tf32, Kind::tf32, a_k8_tf32, b_k8_tf32,
         FASTFFN_KERNEL_4_2(float, acc_f32, mma_m16n8k8_tf32)},
        {"m16n8k16 s8", 16, Kind::s8, Kind::s8, a_k16_byte, b_k16_byte,
         FASTFFN_KERNEL_2_1(int, acc_s32, mma_m16n8k16_s8)},
        {"m16n8k32 s8", 32, Kind::s8, Kind::s8, a_k32_byte, b_k32_byte,
         FASTFFN_KERNEL_4_2(int, acc_s32, mma_m16n8k32_s8)},
        {"m16n8k32 u8s8", 32, Kind::u8, Kind::s8, a_k32_byte, b_k32_byte,
         FASTFFN_KERNEL_4_2(int, acc_s32, mma_m16n8k32_u8s8)},
        {"m16n8k32 s8u8", 32, Kind::s8, Kind::u8, a_k32_byte, b_k32_byte,
         FASTFFN_KERNEL_4_2(int, acc_s32, mma_m16n8k32_s8u8)},
        {"m16n8k32 u8", 32, Kind::u8, Kind::u8, a_k32_byte, b_k32_byte,
         FASTFFN_KERNEL_4_2(int, acc_s32, mma_m16n8k32_u8)},
        {"m16n8k64 s4", 64, Kind::s4, Kind::s4, a_k64_nibble, b_k64_nibble,
         FASTFFN_KERNEL_4_2(int, acc_s32, mma_m16n8k64_s4)},
        {"m16n8k64 u4s4", 64, Kind::u4, Kind::s4, a_k64_nibble, b_k64_nibble,
         FASTFFN_KERNEL_4_2(int, acc_s32, mma_m16n8k64_u4s4)},
        {"m16n8k64 s4u4", 64, Kind::s4, Kind::u4, a_k64_nibble, b_k64_nibble,
         FASTFFN_KERNEL_4_2(int, acc_s32, mma_m16n8k64_s4u4)},
        {"sp m16n8k32 bf16 0", 32, Kind::bf16, Kind::bf16, a_k16_half, b_sparse_half,
         FASTFFN_KERNEL_SP_4(acc_f32, mma_sp_m16n8k32_bf16<0>), true, 0},
        {"sp m16n8k32 bf16 1", 32, Kind::bf16, Kind::bf16, a_k16_half, b_sparse_half,
         FASTFFN_KERNEL_SP_4(acc_f32, mma_sp_m16n8k32_bf16<1>), true, 1},
        {"sp m16n8k32 f16 1", 32, Kind::f16, Kind::f16, a_k16_half, b_sparse_half,
         FASTFFN_KERNEL_SP_4(acc_f32, mma_sp_m16n8k32_f16<1>), true, 1},
        {"sp m16n8k16 bf16 0", 16, Kind::bf16, Kind::bf16, a_k8_half, b_sparse_half,
         FASTFFN_KERNEL_SP_2(acc_f32, mma_sp_m16n8k16_bf16<0>), true, 0},
        {"sp m16n8k16 f16 3", 16, Kind::f16, Kind::f16, a_k8_half, b_sparse_half,
         FASTFFN_KERNEL_SP_2(acc_f32, mma_sp_m16n8k16_f16<3>), true, 3},
        {"sp m16n8k64 s8", 64, Kind::s8, Kind::s8, a_k32_byte, b_sparse_byte,
         FASTFFN_KERNEL_SP_4(acc_s32, mma_sp_m16n8k64_s8<0>), true, 0},
    };
}

// Which lane and bit hold the metadata of a group of four columns, from the figures of 9.7.14.6.2 "Tk: [m..n]".
void put_metadata(const Case& c, unsigned* metadata, int row, int group4, unsigned nibble) {
    const int quad = row % 8 * 4;
    if (c.a_kind == Kind::s8) {
        const int lane = quad + (row >= 8 ? 1 : 0) + (group4 >= 8 ? 2 : 0);
        metadata[lane] |= nibble << group4 % 8 * 4;
    } else {
        const int lane = quad + (c.depth == 32 ? 2 * c.selector + (group4 >= 4 ? 1 : 0) : c.selector);
        metadata[lane] |= nibble << (group4 % 4 * 4 + (row >= 8 ? 16 : 0));
    }
}

// Differences between the product of the instruction and the plain one; `swap`: a mistake in the fragments of a.
int differences(const Case& c, unsigned seed, bool swap) {
    std::mt19937 random(seed);
    std::vector<double> a(static_cast<std::size_t>(16 * c.depth)), b(static_cast<std::size_t>(c.depth * 8)), acc(128),
        kept(16 * 64);
    Registers registers = {};
    const int stored = c.sparse ? c.depth / 2 : c.depth;
    for (unsigned& word : registers.metadata) word = 0;
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < stored; k += 2) {
            int at[2] = {k, k + 1};
            if (c.sparse) {
                at[0] = static_cast<int>(random() % 3);
                at[1] = at[0] + 1 + static_cast<int>(random() % static_cast<unsigned>(3 - at[0]));
                put_metadata(c, registers.metadata, row, k / 2, static_cast<unsigned>(at[0] | at[1] << 2));
                at[0] += 2 * k;
                at[1] += 2 * k;
            }
            for (int j = 0; j < 2; j++) {
                const double value = random_value(c.a_kind, random);
                kept[static_cast<std::size_t>(row * 64 + k + j)] = value;
                a[static_cast<std::size_t>(row * c.depth + at[j])] = value;
            }
        }
    if (c.sparse && c.a_kind != Kind::s8)  // lanes that the selector leaves out may hold anything
        for (int lane = 0; lane < 32; lane++) {
            const int t = lane % 4;
            const bool chosen = c.depth == 32 ? t / 2 == c.selector : t == c.selector;
            if (!chosen) registers.metadata[lane] = static_cast<unsigned>(random());
        }
    for (double& value : b) value = random_value(c.b_kind, random);
    for (double& value : acc) value = static_cast<int>(random() % 1000) - 500;
    for (int lane = 0; lane < 32; lane++) {
        const int a_count = 16 * stored / 32, b_count = c.depth * 8 / 32;
        for (int i = 0; i < a_count; i++) {
            const Place p = c.a(lane, swap && i < 2 ? 1 - i : i);
            put(registers.a[lane], c.a_kind, i, kept[static_cast<std::size_t>(p.row * 64 + p.col)]);
        }
        for (int i = 0; i < b_count; i++) {
            const Place p = c.b(lane, i);
            put(registers.b[lane], c.b_kind, i, b[static_cast<std::size_t>(p.row * 8 + p.col)]);
        }
        for (int i = 0; i < 4; i++) {
            const Place p = c_any(lane, i);
            registers.acc_f32[lane][i] = static_cast<float>(acc[static_cast<std::size_t>(p.row * 8 + p.col)]);
            registers.acc_s32[lane][i] = static_cast<int>(acc[static_cast<std::size_t>(p.row * 8 + p.col)]);
        }
    }
    Device<Registers> device(std::vector<Registers>{registers});
    if (launch(c.kernel, {dim3(1), dim3(32)}, device.data()) != cudaSuccess) return -1;
    const Registers result = device.host()[0];
    int count = 0;
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) {
            const Place p = c_any(lane, i);
            double expected = acc[static_cast<std::size_t>(p.row * 8 + p.col)];
            for (int k = 0; k < c.depth; k++)
                expected +=
                    a[static_cast<std::size_t>(p.row * c.depth + k)] * b[static_cast<std::size_t>(k * 8 + p.col)];
            const double found =
                bits(c.a_kind) <= 8 ? result.acc_s32[lane][i] : static_cast<double>(result.acc_f32[lane][i]);
            count += found != expected;  // integers below 2^24: exact in f32
        }
    return count;
}

__global__ void load_and_store(const std::uint16_t* x, unsigned* y, int count, int transposed) {
    unsigned char* const shared = ptx::dynamic_shared();
    const int lane = static_cast<int>(threadIdx.x);
    for (int i = lane; i < 32 * 8; i += 32) reinterpret_cast<std::uint16_t*>(shared)[i] = x[i];
    __syncwarp();
    const void* const row = shared + lane * 16;
    unsigned r1[1], r2[2], r4[4];
    if (count == 1) transposed ? ptx::ldmatrix_transposed(r1, row) : ptx::ldmatrix(r1, row);
    if (count == 2) transposed ? ptx::ldmatrix_transposed(r2, row) : ptx::ldmatrix(r2, row);
    if (count == 4) transposed ? ptx::ldmatrix_transposed(r4, row) : ptx::ldmatrix(r4, row);
    for (int i = 0; i < count; i++) y[lane * 4 + i] = count == 1 ? r1[i] : count == 2 ? r2[i] : r4[i];
}

__global__ void store_matrix(std::uint16_t* y) {
    unsigned char* const shared = ptx::dynamic_shared();
    const int lane = static_cast<int>(threadIdx.x);
    unsigned r[4];
    for (int i = 0; i < 4; i++) {
        const unsigned element = static_cast<unsigned>(i * 64 + lane / 4 * 8 + lane % 4 * 2);
        r[i] = element | (element + 1) << 16;
    }
    ptx::stmatrix(shared + lane * 16, r);
    __syncwarp();
    for (int i = 0; i < 8; i++) y[lane * 8 + i] = reinterpret_cast<std::uint16_t*>(shared)[lane * 8 + i];
}

template <int defect>
__global__ void wrong_uses(int* y) {
    unsigned char* const shared = ptx::dynamic_shared();
    const int lane = static_cast<int>(threadIdx.x);
    unsigned a[4] = {}, b[2] = {};
    float acc[4] = {};
    reinterpret_cast<uint4*>(shared)[lane] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    if (defect == 1) ptx::ldmatrix(a, shared + lane * 16 + 8);
    if (defect == 2) ptx::ldmatrix(a, shared + lane * 16 + 16);
    if (defect == 3 && lane < 31) ptx::mma_m16n8k16_bf16(acc, a, b);
    if (defect == 4) ptx::mma_sp_m16n8k16_bf16<0>(acc, b, b, 0x55555555u);
    if (defect == 5) ptx::stmatrix(shared + lane * 16, a);
    y[lane] = 0;
}

template <class K>
std::string failure_of(K kernel) {
    Device<int> y(32);
    launch(kernel, {dim3(1), dim3(32), 512}, y.data());
    cudaGetLastError();
    return emulator::last_failure();
}

__global__ void many_bits(const unsigned* x, unsigned* y) {
    const unsigned a = x[0], b = x[1], c = x[2];
    y[0] = ptx::lop3<0xE8>(a, b, c);                  // majority
    y[1] = ptx::lop3<(0xF0 & 0xCC) | 0xAA>(a, b, c);  // a & b | c
    y[2] = static_cast<unsigned>(ptx::dp4a_u8s8(a, b, 7));
    y[3] = static_cast<unsigned>(__dp4a(static_cast<int>(a), static_cast<int>(b), -7));
    y[4] = __byte_perm(a, b, 0x7250);
    y[5] = __byte_perm(a, b, 0xBCA1);  // A, B, C: signs
    y[6] = __funnelshift_r(a, b, 12);
    y[7] = __brev(a);
}

}  // namespace

TEST(products_of_every_shape) {
    for (const Case& c : cases())
        for (unsigned seed = 0; seed < 8; seed++) {
            const int count = differences(c, seed, false);
            CHECK(count == 0) << c.name << ": " << count << " of 128 differ " << emulator::last_failure();
        }
}

TEST(a_wrong_fragment_index_shows) {
    for (const Case& c : cases()) CHECK(differences(c, 1, true) >= 8) << c.name;
}

TEST(sums_are_cut_off_at_f32) {
    // 2^24 + 1.5: an f32 has 2^24 + 0, 2^24 + 2; tensor cores cut off.
    Registers registers = {};
    registers.a[0][0] = fastffn::f32_to_bf16(1.5f);
    registers.b[0][0] = fastffn::f32_to_bf16(1.0f);
    registers.acc_f32[0][0] = 16777216.0f;
    Device<Registers> device(std::vector<Registers>{registers});
    CHECK(launch(cases()[0].kernel, {dim3(1), dim3(32)}, device.data()) == cudaSuccess);
    CHECK(device.host()[0].acc_f32[0][0] == 16777216.0f);
}

TEST(matrices_from_and_to_shared_memory) {
    std::vector<std::uint16_t> x(256);
    for (int i = 0; i < 256; i++) x[static_cast<std::size_t>(i)] = static_cast<std::uint16_t>(i * 7 + 1);
    const Device<std::uint16_t> source(x);
    for (int count : {1, 2, 4})
        for (int transposed : {0, 1}) {
            Device<unsigned> y(128);
            CHECK(launch(load_and_store, {dim3(1), dim3(32), 512}, source.data(), y.data(), count, transposed) ==
                  cudaSuccess)
                << emulator::last_failure();
            const auto values = y.host();
            for (int lane = 0; lane < 32; lane++)
                for (int matrix = 0; matrix < count; matrix++)
                    for (int half = 0; half < 2; half++) {
                        const int r = lane / 4, col = lane % 4 * 2 + half;
                        const int element = matrix * 64 + (transposed ? col * 8 + r : r * 8 + col);
                        CHECK((values[static_cast<std::size_t>(lane * 4 + matrix)] >> 16 * half & 0xFFFF) ==
                              x[static_cast<std::size_t>(element)]);
                    }
        }
    emulator::set_architecture(90);
    Device<std::uint16_t> y(256);
    CHECK(launch(store_matrix, {dim3(1), dim3(32), 512}, y.data()) == cudaSuccess) << emulator::last_failure();
    emulator::set_architecture(80);
    for (int i = 0; i < 256; i++) CHECK(y.host()[static_cast<std::size_t>(i)] == i) << i;
}

TEST(wrong_uses_are_errors) {
    CHECK(failure_of(wrong_uses<0>).empty());
    CHECK(contains(failure_of(wrong_uses<1>), "not aligned to 16 bytes") ||
          contains(emulator::last_failure(), "bytes at 504"))
        << emulator::last_failure();
    CHECK(contains(failure_of(wrong_uses<2>), "16 bytes at 512 of the 512 bytes")) << emulator::last_failure();
    const std::string missing = failure_of(wrong_uses<3>);
    CHECK(contains(missing, "has returned") || contains(missing, "deadlock")) << missing;
    CHECK(contains(failure_of(wrong_uses<4>), "expected ascending ones")) << emulator::last_failure();
    CHECK(contains(failure_of(wrong_uses<5>), "sm_80 has none")) << emulator::last_failure();
}

TEST(integer_instructions) {
    const unsigned a = 0x80F17F03u, b = 0xFE02817Cu, c = 0x12345678u;
    const Device<unsigned> x(std::vector<unsigned>{a, b, c});
    Device<unsigned> y(8);
    CHECK(launch(many_bits, {dim3(1), dim3(1)}, x.data(), y.data()) == cudaSuccess) << emulator::last_failure();
    const auto r = y.host();
    CHECK(r[0] == ((a & b) | (a & c) | (b & c)) && r[1] == ((a & b) | c));
    CHECK(static_cast<int>(r[2]) == 0x80 * -2 + 0xF1 * 2 + 0x7F * -127 + 3 * 0x7C + 7) << static_cast<int>(r[2]);
    CHECK(static_cast<int>(r[3]) == -128 * -2 + -15 * 2 + 0x7F * -127 + 3 * 0x7C - 7) << static_cast<int>(r[3]);
    CHECK(r[4] == 0xFEF18103u) << std::hex << r[4];
    CHECK(r[5] == 0xFF00FF7Fu) << std::hex << r[5];
    CHECK(r[6] == ((a >> 12) | (b << 20)) && r[7] == 0xC0FE8F01u) << std::hex << r[7];
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
