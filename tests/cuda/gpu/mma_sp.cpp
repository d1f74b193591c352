// Does mma.sp do on this machine what ptx/mma_sp.cuh says? The first thing to run on a GPU: everything of sparse24 stands on it.
//
//   test_gpu_mma_sp      by nvcc, on the GPU; exit status 77 without one
//   test_cuda_mma_sp     by the host compiler, on the emulator, so that the program itself is tested
//
// It takes nothing for granted: one experiment shows for every kept element of every lane which row and column the instruction
// takes it for, one which positions it uses for every row and group of four columns, one whether what is not kept meets nothing,
// and the last is a whole product of random integers beside plain loops. Differences are printed with lane, register and bits, and
// for positions also the lane and bits where the instruction seems to look. `--plant` asks for a mistake on purpose.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/convert.hpp"
#include "gpu/report.hpp"
#include "ptx/mma_sp.cuh"

namespace ptx = fastffn::ptx;
using gpu::Differences;
using gpu::random_code;
using gpu::random_codes;

namespace {

enum class Type { bf16, f16, s8 };

struct Warp {
    unsigned a[32][4], b[32][4], metadata[32];
    float acc_f32[32][4];
    int acc_s32[32][4];
};

#define FASTFFN_MMA_SP_KERNEL_4(name, acc, instruction)                                 \
    __global__ void name(Warp* warps) {                                                 \
        Warp& w = warps[blockIdx.x];                                                    \
        const int lane = static_cast<int>(threadIdx.x);                                 \
        const unsigned a[4] = {w.a[lane][0], w.a[lane][1], w.a[lane][2], w.a[lane][3]}; \
        const unsigned b[4] = {w.b[lane][0], w.b[lane][1], w.b[lane][2], w.b[lane][3]}; \
        auto c = w.acc[lane];                                                           \
        decltype(w.acc[0][0] + 0) sums[4] = {c[0], c[1], c[2], c[3]};                   \
        ptx::instruction(sums, a, b, w.metadata[lane]);                                 \
        for (int i = 0; i < 4; i++) c[i] = sums[i];                                     \
    }
#define FASTFFN_MMA_SP_KERNEL_2(name, instruction)                \
    __global__ void name(Warp* warps) {                           \
        Warp& w = warps[blockIdx.x];                              \
        const int lane = static_cast<int>(threadIdx.x);           \
        const unsigned a[2] = {w.a[lane][0], w.a[lane][1]};       \
        const unsigned b[2] = {w.b[lane][0], w.b[lane][1]};       \
        float sums[4] = {};                                       \
        ptx::instruction(sums, a, b, w.metadata[lane]);           \
        for (int i = 0; i < 4; i++) w.acc_f32[lane][i] = sums[i]; \
    }
FASTFFN_MMA_SP_KERNEL_4(bf16_k32_0, acc_f32, mma_sp_m16n8k32_bf16<0>)
FASTFFN_MMA_SP_KERNEL_4(bf16_k32_1, acc_f32, mma_sp_m16n8k32_bf16<1>)
FASTFFN_MMA_SP_KERNEL_4(f16_k32_0, acc_f32, mma_sp_m16n8k32_f16<0>)
FASTFFN_MMA_SP_KERNEL_4(f16_k32_1, acc_f32, mma_sp_m16n8k32_f16<1>)
FASTFFN_MMA_SP_KERNEL_4(s8_k64_0, acc_s32, mma_sp_m16n8k64_s8<0>)
FASTFFN_MMA_SP_KERNEL_2(bf16_k16_0, mma_sp_m16n8k16_bf16<0>)
FASTFFN_MMA_SP_KERNEL_2(bf16_k16_1, mma_sp_m16n8k16_bf16<1>)
FASTFFN_MMA_SP_KERNEL_2(f16_k16_2, mma_sp_m16n8k16_f16<2>)
FASTFFN_MMA_SP_KERNEL_2(f16_k16_3, mma_sp_m16n8k16_f16<3>)

struct Variant {
    const char* name;
    Type type;
    int depth, selector;
    void (*kernel)(Warp*);
};
const Variant variants[] = {
    {"m16n8k32 bf16, selector 0", Type::bf16, 32, 0, bf16_k32_0},
    {"m16n8k32 bf16, selector 1", Type::bf16, 32, 1, bf16_k32_1},
    {"m16n8k32 f16, selector 0", Type::f16, 32, 0, f16_k32_0},
    {"m16n8k32 f16, selector 1", Type::f16, 32, 1, f16_k32_1},
    {"m16n8k64 s8, selector 0", Type::s8, 64, 0, s8_k64_0},
    {"m16n8k16 bf16, selector 0", Type::bf16, 16, 0, bf16_k16_0},
    {"m16n8k16 bf16, selector 1", Type::bf16, 16, 1, bf16_k16_1},
    {"m16n8k16 f16, selector 2", Type::f16, 16, 2, f16_k16_2},
    {"m16n8k16 f16, selector 3", Type::f16, 16, 3, f16_k16_3},
};

bool plant = false;

unsigned encoded(Type type, double value) {
    if (type == Type::s8) return static_cast<unsigned>(static_cast<int>(value)) & 255u;
    const auto f = static_cast<float>(value);
    return type == Type::bf16 ? fastffn::f32_to_bf16(f) : fastffn::f32_to_f16(f);
}
int per_register(Type type) { return type == Type::s8 ? 4 : 2; }
void put(unsigned& word, Type type, int i, double value) {
    const int bits = 32 / per_register(type);
    const unsigned mask = (bits == 8 ? 255u : 65535u) << (i * bits);
    word = (word & ~mask) | encoded(type, value) << (i * bits);
}

// What ptx/mma_sp.cuh says: where kept element `kept` of a row of a is, and element (k, column) of b.
struct Place {
    int lane, word, element;
};
Place place_of_a(const Variant& v, int row, int kept) {
    const int p = per_register(v.type);
    return {row % 8 * 4 + kept / p % 4, kept / (4 * p) * 2 + row / 8, kept % p};
}
Place place_of_b(const Variant& v, int k, int column) {
    const int p = per_register(v.type);
    return {column * 4 + k / p % 4, k / (4 * p), k % p};
}
// And the four bits for a group of four columns of a row.
struct Bits {
    int lane, shift;
};
Bits positions_of(const Variant& v, int row, int group) {
    const int lane = row % 8 * 4, upper = row / 8;
    Bits bits;
    if (v.type == Type::s8) bits = {lane + upper + group / 8 * 2, group % 8 * 4};
    else if (v.depth == 32) bits = {lane + 2 * v.selector + group / 4, group % 4 * 4 + 16 * upper};
    else bits = {lane + v.selector, group * 4 + 16 * upper};
    if (plant) bits.lane ^= 1;
    return bits;
}
double acc_of(const Variant& v, const Warp& w, int row, int column) {
    const int lane = row % 8 * 4 + column / 2, i = row / 8 * 2 + column % 2;
    return v.type == Type::s8 ? w.acc_s32[lane][i] : static_cast<double>(w.acc_f32[lane][i]);
}

bool run(const Variant& v, std::vector<Warp>& warps) { return gpu::run(v.name, v.kernel, 32, 0, warps); }

// One element of a after another is 1, all positions are 2 and 3, and b says in binary which of its rows was met.
void elements_of_a(const Variant& v) {
    Differences differences{v.name, "kept elements lie where the header says"};
    struct Case {
        int row, kept;
    };
    std::vector<Warp> warps;
    std::vector<Case> cases;
    for (int row = 0; row < 16; row++)
        for (int kept = 0; kept < v.depth / 2; kept++) {
            Warp w = {};
            for (unsigned& word : w.metadata) word = 0xEEEEEEEEu;
            const Place at = place_of_a(v, row, kept);
            put(w.a[at.lane][at.word], v.type, at.element, 1);
            for (int k = 0; k < v.depth; k++)
                for (int column = 0; column < 8; column++) {
                    const Place to = place_of_b(v, k, column);
                    put(w.b[to.lane][to.word], v.type, to.element, (k + 1) >> column & 1);
                }
            warps.push_back(w);
            cases.push_back({row, kept});
        }
    if (!run(v, warps)) return;
    for (std::size_t i = 0; i < cases.size(); i++)
        for (int row = 0; row < 16; row++) {
            int met = 0;
            for (int column = 0; column < 8; column++)
                met |= static_cast<int>(acc_of(v, warps[i], row, column)) << column;
            const int expected = row == cases[i].row ? cases[i].kept / 2 * 4 + 2 + cases[i].kept % 2 + 1 : 0;
            if (met == expected || !differences.another()) continue;
            const Place at = place_of_a(v, cases[i].row, cases[i].kept);
            std::printf(
                "        lane %d, register %d, element %d: taken for row %d, column %d; expected row %d, column %d\n",
                at.lane, at.word, at.element, row, met - 1, cases[i].row, expected - 1);
        }
}

// All of a is 1; group g of b is seen by column g % 8 alone, as 1, 2, 4 and 8, of which the sum says which two were met.
void positions(const Variant& v) {
    Differences differences{v.name, "positions lie where the header says"};
    const int groups = v.depth / 4, passes = (groups + 7) / 8;
    constexpr int tries = 24;
    std::mt19937 random(7);
    std::vector<Warp> warps;
    for (int i = 0; i < tries; i++) {
        Warp w = {};
        for (unsigned& word : w.metadata) word = random_codes(random);
        for (int row = 0; row < 16; row++)
            for (int kept = 0; kept < v.depth / 2; kept++) {
                const Place at = place_of_a(v, row, kept);
                put(w.a[at.lane][at.word], v.type, at.element, 1);
            }
        for (int pass = 0; pass < passes; pass++) {
            Warp one = w;
            for (int k = 0; k < v.depth; k++) {
                if (k / 4 / 8 != pass) continue;
                const Place to = place_of_b(v, k, k / 4 % 8);
                put(one.b[to.lane][to.word], v.type, to.element, 1 << k % 4);
            }
            warps.push_back(one);
        }
    }
    if (!run(v, warps)) return;
    const auto met = [&](int i, int row, int group) {
        return static_cast<int>(acc_of(v, warps[static_cast<std::size_t>(i * passes + group / 8)], row, group % 8));
    };
    const auto said = [&](int i, Bits bits) {
        const unsigned code = warps[static_cast<std::size_t>(i * passes)].metadata[bits.lane] >> bits.shift & 15;
        return 1 << (code & 3) | 1 << (code >> 2);
    };
    for (int row = 0; row < 16; row++)
        for (int group = 0; group < groups; group++) {
            int wrong = -1;
            for (int i = 0; i < tries && wrong < 0; i++)
                if (met(i, row, group) != said(i, positions_of(v, row, group))) wrong = i;
            if (wrong < 0 || !differences.another()) continue;
            const Bits expected = positions_of(v, row, group);
            std::printf(
                "        row %d, columns %d to %d: met %d, expected %d (the sum of 1, 2, 4, 8) of lane %d, bit %d;",
                row, 4 * group, 4 * group + 3, met(wrong, row, group), said(wrong, expected), expected.lane,
                expected.shift);
            bool found = false;
            for (int lane = 0; lane < 32; lane++)
                for (int shift = 0; shift < 32; shift += 4) {
                    bool all = true;
                    for (int i = 0; i < tries && all; i++) all = met(i, row, group) == said(i, {lane, shift});
                    if (all) std::printf(" it looks at lane %d, bit %d", lane, shift);
                    found = found || all;
                }
            std::printf("%s\n", found ? "" : " no lane has what it met");
        }
}

// NaN in b where nothing is kept; then where a zero is.
void what_is_not_kept(const Variant& v) {
    if (v.type == Type::s8) return;
    Differences differences{v.name, "NaN meets kept elements alone, zeros among them"};
    std::mt19937 random(9);
    std::vector<Warp> warps;
    std::vector<unsigned> codes;
    for (int i = 0; i < 6; i++) {
        Warp w = {};
        const unsigned code = random_code(random);
        codes.push_back(code);
        for (unsigned& word : w.metadata) word = code * 0x11111111u;
        for (int k = 0; k < v.depth; k++)
            for (int column = 0; column < 8; column++) {
                const bool kept =
                    static_cast<unsigned>(k % 4) == (code & 3) || static_cast<unsigned>(k % 4) == code >> 2;
                const Place to = place_of_b(v, k, column);
                put(w.b[to.lane][to.word], v.type, to.element,
                    kept == (column == 5 && k == v.depth / 2 + (k & 3)) ? NAN : 1);
            }
        warps.push_back(w);
    }
    if (!run(v, warps)) return;
    for (std::size_t i = 0; i < warps.size(); i++)
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                const bool nan = std::isnan(acc_of(v, warps[i], row, column));
                if (nan == (column == 5) || !differences.another()) continue;
                std::printf("        code %X, row %d, token %d: %s\n", codes[i], row, column,
                            nan ? "NaN came in where nothing is kept" : "a kept zero times NaN was no NaN");
            }
}

void whole_products(const Variant& v) {
    Differences differences{v.name, "products of random integers"};
    std::mt19937 random(11);
    const auto integer = [&] { return static_cast<double>(static_cast<int>(random() % 15) - 7); };
    std::vector<Warp> warps;
    std::vector<std::vector<double>> expected;
    for (int i = 0; i < 8; i++) {
        Warp w = {};
        for (unsigned& word : w.metadata) word = random_codes(random);
        std::vector<double> b(static_cast<std::size_t>(v.depth * 8)), y(128);
        for (int k = 0; k < v.depth; k++)
            for (int column = 0; column < 8; column++) {
                const Place to = place_of_b(v, k, column);
                put(w.b[to.lane][to.word], v.type, to.element, b[static_cast<std::size_t>(k * 8 + column)] = integer());
            }
        for (int row = 0; row < 16; row++)
            for (int kept = 0; kept < v.depth / 2; kept++) {
                const double value = integer();
                const Place at = place_of_a(v, row, kept);
                put(w.a[at.lane][at.word], v.type, at.element, value);
                const Bits bits = positions_of(v, row, kept / 2);
                const unsigned code = w.metadata[bits.lane] >> bits.shift & 15;
                const auto k =
                    static_cast<int>(static_cast<unsigned>(kept / 2 * 4) + (kept % 2 ? code >> 2 : code & 3));
                for (int column = 0; column < 8; column++)
                    y[static_cast<std::size_t>(row * 8 + column)] +=
                        value * b[static_cast<std::size_t>(k * 8 + column)];
            }
        warps.push_back(w);
        expected.push_back(y);
    }
    if (!run(v, warps)) return;
    for (std::size_t i = 0; i < warps.size(); i++)
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                const double found = acc_of(v, warps[i], row, column),
                             right = expected[i][static_cast<std::size_t>(row * 8 + column)];
                if (found == right || !differences.another()) continue;
                std::printf("        product %d, row %d, token %d: %g, expected %g\n", static_cast<int>(i), row, column,
                            found, right);
            }
}

}  // namespace

int main(int argc, char** argv) {
    plant = argc > 1 && std::string(argv[1]) == "--plant";
    if (!gpu::has_device()) return 77;
    for (const Variant& v : variants) {
        elements_of_a(v);
        positions(v);
        what_is_not_kept(v);
        whole_products(v);
    }
    std::printf("%d of the checks failed\n", gpu::failures);
    return gpu::failures ? 1 : 0;
}
