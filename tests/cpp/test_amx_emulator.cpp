// The AMX emulator against plain loops: run with LD_PRELOAD=libamx_emulator.so.
//
// On a machine with AMX the same program checks the loops against the hardware.
#include <dlfcn.h>
#include <immintrin.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <random>
#include <thread>

#include "check.hpp"

namespace {

struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
    void set(int tile, int r, int bytes) {
        rows[tile] = static_cast<uint8_t>(r);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};

// gcc 12's intrinsic does not say that it reads the whole structure: the barrier keeps the stores before it.
void load(const Config& config) {
    asm volatile("" ::: "memory");
    _tile_loadconfig(&config);
}

std::mt19937 random_bits(1);

float flush(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

float bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

float fma_flushed(float a, float b, float c) { return flush(std::fma(flush(a), flush(b), flush(c))); }

bool same_float(float a, float b) { return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof a) == 0; }

// rows × (2 · depth) times (depth pairs × columns) into rows × columns, in the order of the instruction's pseudo code.
void product_bf16(const uint16_t* a, const uint16_t* b, float* c, int rows, int depth, int columns) {
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < columns; n++) {
            float even = 0, odd = 0;
            for (int k = 0; k < depth; k++) {
                even = fma_flushed(bf16(a[m * 2 * depth + 2 * k]), bf16(b[k * 2 * columns + 2 * n]), even);
                odd = fma_flushed(bf16(a[m * 2 * depth + 2 * k + 1]), bf16(b[k * 2 * columns + 2 * n + 1]), odd);
            }
            float& out = c[m * columns + n];
            out = flush(flush(out) + flush(even + odd));
        }
}

template <typename A, typename B>
void product_int8(const uint8_t* a, const uint8_t* b, int32_t* c, int rows, int depth, int columns) {
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < columns; n++) {
            uint32_t sum = static_cast<uint32_t>(c[m * columns + n]);
            for (int k = 0; k < 4 * depth; k++)
                sum += static_cast<uint32_t>(static_cast<A>(a[m * 4 * depth + k]) *
                                             static_cast<B>(b[(k / 4) * 4 * columns + 4 * n + k % 4]));
            c[m * columns + n] = static_cast<int32_t>(sum);
        }
}

bool permitted() {
    static const bool yes = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return yes;
}

struct Shape {
    int rows, depth, columns;
};
const Shape shapes[] = {{16, 16, 16}, {1, 16, 16}, {16, 1, 16}, {16, 16, 1}, {3, 5, 7}, {15, 13, 11}, {1, 1, 1}};

Config config_for(const Shape& s) {
    Config config;
    config.set(2, s.rows, 4 * s.columns);
    config.set(5, s.rows, 4 * s.depth);
    config.set(7, s.depth, 4 * s.columns);
    return config;
}

// Runs `body` in a child: 0, its signal, or its exit status + 1000. What it writes to stderr comes back in `text`.
template <typename Body>
int in_child(Body body, std::string* text) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        body();
        _exit(0);
    }
    close(ends[1]);
    char buffer[512];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) text->append(buffer, static_cast<size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status) == 0 ? 0 : 1000 + WEXITSTATUS(status);
}

TEST(bf16_products) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    std::normal_distribution<float> normal;
    for (int kind = 0; kind < 3; kind++)
        for (const Shape& s : shapes) {
            std::vector<uint16_t> a(static_cast<size_t>(s.rows * 2 * s.depth)),
                b(static_cast<size_t>(s.depth * 2 * s.columns));
            std::vector<float> c(static_cast<size_t>(s.rows * s.columns));
            auto value = [&]() -> uint16_t {
                if (kind == 2) return static_cast<uint16_t>(random_bits());  // any bits: NaN, infinities, denormals
                float x = normal(random_bits);
                // Products near the smallest normal number: flushing to zero shows.
                if (kind == 1) x = std::ldexp(x, -64);
                uint32_t bits;
                std::memcpy(&bits, &x, 4);
                return static_cast<uint16_t>(bits >> 16);
            };
            for (auto& x : a) x = value();
            for (auto& x : b) x = value();
            for (auto& x : c) x = kind == 1 ? std::ldexp(normal(random_bits), -130) : normal(random_bits);
            std::vector<float> expected = c, found = c;
            product_bf16(a.data(), b.data(), expected.data(), s.rows, s.depth, s.columns);
            load(config_for(s));
            _tile_loadd(2, found.data(), 4 * s.columns);
            _tile_loadd(5, a.data(), 4 * s.depth);
            _tile_stream_loadd(7, b.data(), 4 * s.columns);
            _tile_dpbf16ps(2, 5, 7);
            _tile_stored(2, found.data(), 4 * s.columns);
            _tile_release();
            int wrong = 0;
            for (size_t i = 0; i < c.size(); i++) wrong += !same_float(expected[i], found[i]);
            CHECK(wrong == 0) << wrong << " of " << c.size() << ", kind " << kind << ", rows " << s.rows;
        }
}

TEST(int8_products) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    for (int kind = 0; kind < 4; kind++)
        for (const Shape& s : shapes) {
            std::vector<uint8_t> a(static_cast<size_t>(s.rows * 4 * s.depth)),
                b(static_cast<size_t>(s.depth * 4 * s.columns));
            std::vector<int32_t> c(static_cast<size_t>(s.rows * s.columns));
            for (auto& x : a) x = static_cast<uint8_t>(random_bits());
            for (auto& x : b) x = static_cast<uint8_t>(random_bits());
            for (auto& x : c) x = static_cast<int32_t>(random_bits());  // large: sums wrap
            std::vector<int32_t> expected = c, found = c;
            load(config_for(s));
            _tile_loadd(2, found.data(), 4 * s.columns);
            _tile_loadd(5, a.data(), 4 * s.depth);
            _tile_loadd(7, b.data(), 4 * s.columns);
            if (kind == 0) {
                product_int8<int8_t, int8_t>(a.data(), b.data(), expected.data(), s.rows, s.depth, s.columns);
                _tile_dpbssd(2, 5, 7);
            } else if (kind == 1) {
                product_int8<int8_t, uint8_t>(a.data(), b.data(), expected.data(), s.rows, s.depth, s.columns);
                _tile_dpbsud(2, 5, 7);
            } else if (kind == 2) {
                product_int8<uint8_t, int8_t>(a.data(), b.data(), expected.data(), s.rows, s.depth, s.columns);
                _tile_dpbusd(2, 5, 7);
            } else {
                product_int8<uint8_t, uint8_t>(a.data(), b.data(), expected.data(), s.rows, s.depth, s.columns);
                _tile_dpbuud(2, 5, 7);
            }
            _tile_stored(2, found.data(), 4 * s.columns);
            CHECK(expected == found) << "kind " << kind << ", rows " << s.rows;
        }
    _tile_release();
}

TEST(loads_and_stores) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    std::vector<uint8_t> memory(4096), out(4096, 0xEE);
    for (auto& x : memory) x = static_cast<uint8_t>(random_bits());
    Config config;
    config.set(0, 16, 64);
    config.set(1, 5, 28);
    load(config);
    // Rows that overlap (stride 4), one row again and again (stride 0), rows in reverse (stride −64).
    for (long stride : {4L, 0L, -64L, 65L, 200L}) {
        const uint8_t* const start = memory.data() + (stride < 0 ? 1024 : 7);
        for (int tile = 0; tile < 2; tile++) {
            const int rows = tile == 0 ? 16 : 5, bytes = tile == 0 ? 64 : 28;
            std::fill(out.begin(), out.end(), uint8_t{0xEE});
            if (tile == 0) {
                _tile_loadd(0, start, stride);
                _tile_stored(0, out.data() + 64, 100);
            } else {
                _tile_loadd(1, start, stride);
                _tile_stored(1, out.data() + 64, 100);
            }
            int wrong = 0;
            for (int row = 0; row < 16; row++)
                for (int i = 0; i < 100; i++) {
                    const bool inside = row < rows && i < bytes;
                    wrong += out[static_cast<size_t>(64 + row * 100 + i)] != (inside ? start[row * stride + i] : 0xEE);
                }
            CHECK(wrong == 0) << "stride " << stride << ", tile " << tile;
            CHECK(out[63] == 0xEE);
        }
    }
    // A store with a negative stride.
    _tile_loadd(1, memory.data(), 28);
    std::fill(out.begin(), out.end(), uint8_t{0xEE});
    _tile_stored(1, out.data() + 400, -100);
    for (int row = 0; row < 5; row++)
        CHECK(std::memcmp(&out[static_cast<size_t>(400 - row * 100)], &memory[static_cast<size_t>(row * 28)], 28) == 0);
    _tile_zero(0);
    _tile_stored(0, out.data(), 64);
    for (int i = 0; i < 1024; i++) CHECK(out[static_cast<size_t>(i)] == 0);
    _tile_release();
}

// Every form of address: each register as base and as index, all scales, displacements of 0, 8 and 32 bits, no base, no
// index, RIP-relative configuration.
TEST(addressing) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    alignas(64) static uint8_t memory[8192];
    alignas(64) static Config config;
    alignas(64) static Config stored;
    for (auto& x : memory) x = static_cast<uint8_t>(random_bits());
    config = Config();
    config.set(3, 4, 16);
    uint8_t out[64];
    auto check_rows = [&](const char* what, long offset, long stride) {
        asm volatile("" ::: "memory");
        _tile_stored(3, out, 16);
        asm volatile("" ::: "memory");
        bool same = true;
        for (int row = 0; row < 4; row++)
            same = same && std::memcmp(out + 16 * row, memory + offset + row * stride, 16) == 0;
        CHECK(same) << what;
    };
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
    asm volatile("sttilecfg %0" : "=m"(stored)::"memory");
    CHECK(std::memcmp(&config, &stored, 64) == 0);
#define BASE_INDEX(base, index, scale, displacement)                                                              \
    do {                                                                                                          \
        asm volatile("mov %0, %%" base "\n mov %1, %%" index "\n tileloadd " #displacement "(%%" base ",%%" index \
                     "," #scale "), %%tmm3" ::"r"(memory),                                                        \
                     "r"(24L)                                                                                     \
                     : base, index, "memory");                                                                    \
        check_rows(base " " index, displacement, 24L * scale);                                                    \
    } while (0)
    BASE_INDEX("rax", "rcx", 1, 0);
    BASE_INDEX("rcx", "rdx", 2, 100);
    BASE_INDEX("rdx", "rbx", 4, 1000);
    BASE_INDEX("rbx", "rsi", 8, 17);
    BASE_INDEX("rsi", "rdi", 1, 127);
    BASE_INDEX("rdi", "r8", 2, 128);
    BASE_INDEX("r8", "r9", 4, 0);
    BASE_INDEX("r9", "r10", 8, 3);
    BASE_INDEX("r10", "r11", 1, 2000);
    BASE_INDEX("r11", "r12", 2, 5);
    BASE_INDEX("r12", "r13", 4, 0);
    BASE_INDEX("r13", "r14", 8, 0);
    BASE_INDEX("r14", "r15", 1, 64);
    BASE_INDEX("r15", "rax", 2, 1);
#undef BASE_INDEX
    asm volatile("tileloadd -64(%0), %%tmm3" ::"r"(memory + 64) : "memory");
    check_rows("no index", 0, 0);
    // Without a base: memory at an address that fits the 32-bit displacement.
    void* const fixed = reinterpret_cast<void*>(0x10000000);
    if (mmap(fixed, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == fixed) {
        std::memcpy(fixed, memory, 4096);
        asm volatile("tileloadd 0x10000010(,%0,2), %%tmm3" ::"r"(40L) : "memory");
        check_rows("no base", 16, 80);
        munmap(fixed, 4096);
    }
    _tile_release();
}

// The registers of one thread are no other's, and an instruction leaves all other registers alone.
TEST(threads) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    std::vector<std::thread> threads;
    std::atomic<int> wrong{0};
    for (int id = 0; id < 4; id++)
        threads.emplace_back([id, &wrong] {
            std::vector<uint8_t> in(1024, static_cast<uint8_t>(id + 1)), out(1024);
            for (int round = 0; round < 200; round++) {
                Config config;
                config.set(0, 16, 64);
                load(config);
                _tile_loadd(0, in.data(), 64);
                std::this_thread::yield();
                _tile_stored(0, out.data(), 64);
                _tile_release();
                if (in != out) wrong++;
            }
        });
    for (auto& thread : threads) thread.join();
    CHECK(wrong == 0);
}

TEST(vector_registers_survive) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    Config config;
    config.set(0, 16, 64);
    config.set(1, 16, 64);
    config.set(2, 16, 64);
    load(config);
    double before = 1.5, after = 0;
    unsigned mxcsr_before = _mm_getcsr();
    asm volatile("movsd %1, %%xmm9\n tdpbf16ps %%tmm2, %%tmm1, %%tmm0\n movsd %%xmm9, %0"
                 : "=m"(after)
                 : "m"(before)
                 : "xmm9");
    CHECK(after == 1.5);
    CHECK(_mm_getcsr() == mxcsr_before);
    _tile_release();
}

TEST(released_tiles) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    Config stored, zero;
    std::memset(static_cast<void*>(&zero), 0, sizeof zero);
    _tile_release();
    _tile_storeconfig(&stored);
    asm volatile("" ::: "memory");
    CHECK(std::memcmp(&stored, &zero, sizeof zero) == 0);
    // A new configuration clears the tiles.
    Config config;
    config.set(4, 16, 64);
    uint8_t ones[1024], out[1024];
    std::memset(ones, 1, sizeof ones);
    load(config);
    _tile_loadd(4, ones, 64);
    load(config);
    _tile_stored(4, out, 64);
    asm volatile("" ::: "memory");
    CHECK(out[0] == 0 && out[1023] == 0);
    _tile_release();
}

// What the manual forbids ends the program, and the emulator names the instruction.
template <typename Body>
void forbidden(const char* message, Body body) {
    std::string text;
    const int end = in_child(body, &text);
    // The hardware raises #UD (SIGILL) or #GP (SIGSEGV).
    const bool hardware = dlsym(RTLD_DEFAULT, "amx_emulator_count") == nullptr;
    if (hardware) {
        CHECK(end == SIGILL || end == SIGSEGV) << message << ": ended with " << end;
    } else {
        CHECK(end == SIGABRT && text.find(message) != std::string::npos)
            << message << ": ended with " << end << " " << text;
    }
}

TEST(forbidden_uses) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    static uint8_t memory[4096];
    auto with = [](std::initializer_list<Shape> tiles_from_zero) {  // rows, bytes per row in `depth`
        Config config;
        int tile = 0;
        for (const Shape& s : tiles_from_zero) config.set(tile++, s.rows, s.depth);
        load(config);
    };
    forbidden("tileloadd: #UD: no tile configuration", [] { _tile_loadd(0, memory, 64); });
    forbidden("tilezero: #UD: a tile that the configuration leaves out", [&] {
        with({{16, 64, 0}});
        _tile_zero(1);
    });
    forbidden("tdpbf16ps: #UD: rows of the result", [&] {
        with({{15, 64, 0}, {16, 64, 0}, {16, 64, 0}});
        _tile_dpbf16ps(0, 1, 2);
    });
    forbidden("tdpbssd: #UD: colsb of the result", [&] {
        with({{16, 60, 0}, {16, 64, 0}, {16, 64, 0}});
        _tile_dpbssd(0, 1, 2);
    });
    forbidden("tdpbuud: #UD: colsb / 4 of the first", [&] {
        with({{16, 64, 0}, {16, 32, 0}, {16, 64, 0}});
        _tile_dpbuud(0, 1, 2);
    });
    forbidden("tdpbusd: #UD: colsb is not", [&] {
        with({{16, 64, 0}, {16, 62, 0}, {16, 64, 0}});
        _tile_dpbusd(0, 1, 2);
    });
    forbidden("ldtilecfg: #GP: a tile has more than 16 rows", [&] { with({{17, 64, 0}}); });
    forbidden("ldtilecfg: #GP: a tile has more than 64", [&] { with({{16, 68, 0}}); });
    forbidden("ldtilecfg: #GP: a tile has rows but", [&] { with({{16, 0, 0}}); });
    forbidden("ldtilecfg: #GP: palette_id", [] {
        Config config;
        config.palette = 2;
        load(config);
    });
    forbidden("ldtilecfg: #GP: a reserved byte", [] {
        Config config;
        config.reserved[3] = 1;
        load(config);
    });
}

TEST(other_illegal_instructions_still_end_the_program) {
    std::string text;
    CHECK(in_child([] { asm volatile("ud2"); }, &text) == SIGILL);
    // A handler that the program installs is called for what is not AMX, and AMX goes on working.
    const int end = in_child(
        [] {
            struct sigaction action = {};
            action.sa_handler = [](int) { _exit(7); };
            sigaction(SIGILL, &action, nullptr);
            if (permitted()) {
                Config config;
                config.set(0, 16, 64);
                load(config);
                _tile_zero(0);
            }
            asm volatile("ud2");
        },
        &text);
    CHECK(end == 1007) << end;
}

// A tile load that reaches an unreadable page faults as it does on the hardware.
TEST(unreadable_memory) {
    if (!permitted()) return check::skip("no AMX and no emulator");
    std::string text;
    const int end = in_child(
        [] {
            auto* pages =
                static_cast<uint8_t*>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
            mprotect(pages + 4096, 4096, PROT_NONE);
            Config config;
            config.set(0, 16, 64);
            load(config);
            _tile_loadd(0, pages + 4096 - 1024, 64);  // exactly fits
            _tile_loadd(0, pages + 4096 - 1023, 64);  // one byte too far
        },
        &text);
    CHECK(end == SIGSEGV) << end << text;
}

TEST(permission_refused) {
    if (dlsym(RTLD_DEFAULT, "amx_emulator_count") == nullptr) return check::skip("no emulator");
    std::string text;
    const int end = in_child(
        [] {
            setenv("AMX_EMULATOR_REFUSE", "1", 1);
            if (syscall(SYS_arch_prctl, 0x1023, 18) != -1 || errno != EPERM) _exit(1);
            if (syscall(SYS_getpid) != getpid()) _exit(2);
            if (syscall(SYS_close, -1) != -1 || errno != EBADF) _exit(3);
        },
        &text);
    CHECK(end == 0) << end;
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
