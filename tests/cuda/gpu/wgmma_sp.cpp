// Does wgmma.sp do on this machine what ptx/wgmma_sp.cuh says, with weights in registers and x under the 128-byte swizzle? As
// mma_sp.cpp, for Hopper: exit status 77 elsewhere. `--plant` asks for a mistake on purpose.
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <string>

#include "core/convert.hpp"
#include "gpu/report.hpp"
#include "ptx/proxy.cuh"
#include "ptx/wgmma_sp.cuh"

namespace ptx = fastffn::ptx;
using gpu::Differences;

namespace {

enum class Type { bf16, f16, s8 };
constexpr int tokens = 192, rows = 64;

struct Product {
    int half;                            // which 64 bytes of x
    unsigned a[128][4], positions[128];  // of the threads of a warpgroup
    alignas(16) unsigned char x[tokens][128];
    float acc_f32[128][96];
    int acc_s32[128][96];
};

#define FASTFFN_WGMMA_SP_KERNEL(name, type, acc, instruction)                                                     \
    __global__ void name(Product* products) {                                                                     \
        unsigned char* const shared = ptx::dynamic_shared();                                                      \
        Product& p = products[blockIdx.x];                                                                        \
        const int thread = static_cast<int>(threadIdx.x);                                                         \
        for (int i = thread; i < tokens * 8; i += 128)                                                            \
            reinterpret_cast<uint4*>(shared + i / 8 * 128)[i % 8 ^ i / 8 % 8] =                                   \
                reinterpret_cast<const uint4*>(p.x[i / 8])[i % 8];                                                \
        ptx::fence_proxy_async();                                                                                 \
        __syncthreads();                                                                                          \
        const unsigned a[4] = {p.a[thread][0], p.a[thread][1], p.a[thread][2], p.a[thread][3]};                   \
        const unsigned positions = p.positions[thread];                                                           \
        type sums[96] = {};                                                                                       \
        ptx::wgmma_fence();                                                                                       \
        ptx::instruction(sums, a, positions, ptx::matrix_descriptor(shared) + static_cast<unsigned>(p.half) * 4); \
        ptx::wgmma_commit();                                                                                      \
        ptx::wgmma_wait_all(sums);                                                                                \
        for (int i = 0; i < 96; i++) p.acc[thread][i] = sums[i];                                                  \
    }
FASTFFN_WGMMA_SP_KERNEL(with_bf16, float, acc_f32, wgmma_sp_m64n192k32_bf16)
FASTFFN_WGMMA_SP_KERNEL(with_f16, float, acc_f32, wgmma_sp_m64n192k32_f16)
FASTFFN_WGMMA_SP_KERNEL(with_s8, int, acc_s32, wgmma_sp_m64n192k64_s8)

struct Variant {
    const char* name;
    Type type;
    void (*kernel)(Product*);
    int depth() const { return type == Type::s8 ? 64 : 32; }
};
const Variant variants[] = {{"m64n192k32 bf16", Type::bf16, with_bf16},
                            {"m64n192k32 f16", Type::f16, with_f16},
                            {"m64n192k64 s8", Type::s8, with_s8}};

bool plant = false;

void put(void* at, Type type, double value) {
    const auto f = static_cast<float>(value);
    const auto byte = static_cast<signed char>(type == Type::s8 ? value : 0);
    const std::uint16_t bits = type == Type::bf16 ? fastffn::f32_to_bf16(f) : fastffn::f32_to_f16(f);
    if (type == Type::s8) std::memcpy(at, &byte, 1);
    else std::memcpy(at, &bits, 2);
}
void put_x(const Variant& v, Product& p, int k, int token, double value) {
    const int bytes = v.type == Type::s8 ? 1 : 2;
    put(&p.x[token][64 * p.half + k * bytes], v.type, value);
}
void put_a(const Variant& v, Product& p, int row, int kept, double value) {
    const int bytes = v.type == Type::s8 ? 1 : 2, per = 4 / bytes;
    const int thread = row / 16 * 32 + row % 8 * 4 + kept / per % 4;
    put(reinterpret_cast<unsigned char*>(&p.a[thread][kept / (4 * per) * 2 + row / 8 % 2]) + kept % per * bytes, v.type,
        value);
}
unsigned code_of(const Variant& v, const Product& p, int row, int group) {
    const int quad = row / 16 * 32 + row % 8 * 4, upper = row / 8 % 2;
    const int lane = v.type == Type::s8 ? group / 8 * 2 + upper : group / 4;
    const int shift = v.type == Type::s8 ? group % 8 * 4 : 16 * upper + group % 4 * 4;
    return p.positions[quad + (plant ? lane ^ 1 : lane)] >> shift & 15;
}
double acc_of(const Variant& v, const Product& p, int row, int token) {
    const int thread = row / 16 * 32 + row % 8 * 4 + token % 8 / 2, i = token / 8 * 4 + row / 8 % 2 * 2 + token % 2;
    return v.type == Type::s8 ? p.acc_s32[thread][i] : static_cast<double>(p.acc_f32[thread][i]);
}
bool run(const Variant& v, std::vector<Product>& products) {
    return gpu::run(v.name, v.kernel, 128, tokens * 128, products);
}

// Kept element `kept` of row r is r + 1, all others 0; positions are 2 and 3; tokens say in binary which of x was met.
void elements_of_a(const Variant& v) {
    Differences differences{v.name, "kept elements lie where the header says"};
    std::vector<Product> products(static_cast<std::size_t>(v.depth() / 2));
    for (int kept = 0; kept < v.depth() / 2; kept++) {
        Product& p = products[static_cast<std::size_t>(kept)];
        p = {};
        p.half = kept % 2;
        for (unsigned& word : p.positions) word = 0xEEEEEEEEu;
        for (int row = 0; row < rows; row++) put_a(v, p, row, kept, row + 1);
        for (int k = 0; k < v.depth(); k++)
            for (int token = 0; token < 8; token++) put_x(v, p, k, token, (k + 1) >> token & 1);
    }
    if (!run(v, products)) return;
    for (int kept = 0; kept < v.depth() / 2; kept++)
        for (int row = 0; row < rows; row++)
            for (int token = 0; token < tokens; token++) {
                const int k = kept / 2 * 4 + 2 + kept % 2;
                const double right = token < 8 ? (row + 1) * ((k + 1) >> token & 1) : 0;
                const double found = acc_of(v, products[static_cast<std::size_t>(kept)], row, token);
                if (found == right || !differences.another()) continue;
                std::printf("        kept element %d, row %d, token %d: %g, expected %g\n", kept, row, token, found,
                            right);
            }
}

// All of a is 1; token n sees group n % groups alone, as 1, 2, 4 and 8.
void positions(const Variant& v) {
    Differences differences{v.name, "positions lie where the header says"};
    const int groups = v.depth() / 4;
    std::mt19937 random(7);
    std::vector<Product> products(4);
    for (std::size_t i = 0; i < products.size(); i++) {
        Product& p = products[i];
        p = {};
        p.half = static_cast<int>(i % 2);
        for (unsigned& word : p.positions) word = gpu::random_codes(random);
        for (int row = 0; row < rows; row++)
            for (int kept = 0; kept < v.depth() / 2; kept++) put_a(v, p, row, kept, 1);
        for (int token = 0; token < tokens; token++)
            for (int k = 0; k < 4; k++) put_x(v, p, token % groups * 4 + k, token, 1 << k);
    }
    if (!run(v, products)) return;
    for (const Product& p : products)
        for (int row = 0; row < rows; row++)
            for (int token = 0; token < tokens; token++) {
                const unsigned code = code_of(v, p, row, token % groups);
                const double right = 1 << (code & 3) | 1 << (code >> 2), found = acc_of(v, p, row, token);
                if (found == right || !differences.another()) continue;
                std::printf("        row %d, columns %d to %d, token %d: met %g, expected %g (the sum of 1, 2, 4, 8)\n",
                            row, token % groups * 4, token % groups * 4 + 3, token, found, right);
            }
}

// Random integers; of floats x is NaN where no row keeps it.
void whole_products(const Variant& v) {
    Differences differences{v.name, "products of random integers, NaN where nothing is kept"};
    std::mt19937 random(11);
    const auto integer = [&] { return static_cast<double>(static_cast<int>(random() % 15) - 7); };
    std::vector<Product> products(4);
    std::vector<std::vector<double>> expected;
    for (std::size_t i = 0; i < products.size(); i++) {
        Product& p = products[i];
        p = {};
        p.half = static_cast<int>(i % 2);
        const bool same = i >= 2 && v.type != Type::s8;  // one code for all
        const unsigned code_of_all = gpu::random_code(random);
        for (unsigned& word : p.positions) word = same ? code_of_all * 0x11111111u : gpu::random_codes(random);
        std::vector<double> x(static_cast<std::size_t>(v.depth() * tokens)), y(static_cast<std::size_t>(rows * tokens));
        for (int k = 0; k < v.depth(); k++)
            for (int token = 0; token < tokens; token++) {
                const auto at = static_cast<unsigned>(k % 4);
                const bool kept = at == (code_of_all & 3) || at == code_of_all >> 2;
                const double value = same && !kept ? static_cast<double>(NAN) : integer();
                put_x(v, p, k, token, x[static_cast<std::size_t>(k * tokens + token)] = value);
            }
        for (int row = 0; row < rows; row++)
            for (int kept = 0; kept < v.depth() / 2; kept++) {
                const double value = integer();
                put_a(v, p, row, kept, value);
                const unsigned code = code_of(v, p, row, kept / 2);
                const auto k = static_cast<std::size_t>(kept / 2 * 4) + (kept % 2 ? code >> 2 : code & 3);
                for (int token = 0; token < tokens; token++)
                    y[static_cast<std::size_t>(row * tokens + token)] +=
                        value * x[k * tokens + static_cast<std::size_t>(token)];
            }
        expected.push_back(y);
    }
    if (!run(v, products)) return;
    for (std::size_t i = 0; i < products.size(); i++)
        for (int row = 0; row < rows; row++)
            for (int token = 0; token < tokens; token++) {
                const double found = acc_of(v, products[i], row, token),
                             right = expected[i][static_cast<std::size_t>(row * tokens + token)];
                if (found == right || !differences.another()) continue;
                std::printf("        product %d, row %d, token %d: %g, expected %g\n", static_cast<int>(i), row, token,
                            found, right);
            }
}

}  // namespace

int main(int argc, char** argv) {
    plant = argc > 1 && std::string(argv[1]) == "--plant";
#ifdef FASTFFN_EMULATED
    emulator::set_architecture(90);
#endif
    if (!gpu::has_device()) return 77;
    int major = 0, minor = 0;
    gpu::report(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "compute capability");
    gpu::report(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "compute capability");
    if (major != 9 || minor != 0) {
        std::printf("compute capability %d.%d has no wgmma\n", major, minor);
        return 77;
    }
    for (const Variant& v : variants) {
        elements_of_a(v);
        positions(v);
        whole_products(v);
    }
    std::printf("%d of the checks failed\n", gpu::failures);
    return gpu::failures ? 1 : 0;
}
