// libamx_emulator.so: runs AMX programs, unchanged, on x86-64 Linux machines without AMX.
//
//   LD_PRELOAD=libamx_emulator.so FASTFFN_ISA=amx ctest
//
// AMX instructions fault with SIGILL on such a machine. The handler decodes the instruction at the faulting address,
// carries it out on a tile file of the faulting thread, and moves on to the next one. Results are bit for bit those of
// Intel's pseudo code (Software Developer's Manual, volume 2). What the manual calls #UD or #GP aborts with a message.
//
// | instruction                    | encoding (VEX.128, map 0F38, W0)  |
// | ldtilecfg m512                 | NP 49 !11:000:bbb                 |
// | sttilecfg m512                 | 66 49 !11:000:bbb                 |
// | tilerelease                    | NP 49 C0                          |
// | tilezero t                     | F2 49 11:rrr:000                  |
// | tileloadd t, sib               | F2 4B !11:rrr:100                 |
// | tileloaddt1 t, sib             | 66 4B !11:rrr:100                 |
// | tilestored sib, t              | F3 4B !11:rrr:100                 |
// | tdpbf16ps dst, a, b            | F3 5C 11:dst:a, vvvv = b          |
// | tdpbssd / bsud / busd / buud   | F2 / F3 / 66 / NP 5E, likewise    |
//
// Environment: AMX_EMULATOR_REFUSE (set) refuses the permission to use AMX, as an operating system may.
#if !defined(__x86_64__) || !defined(__linux__)
#error "the AMX emulator is for x86-64 Linux"
#endif

#include <dlfcn.h>
#include <errno.h>
#include <immintrin.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <atomic>
#include <initializer_list>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int tiles = 8;
constexpr int max_rows = 16;
constexpr int max_row_bytes = 64;

// As ldtilecfg reads it and sttilecfg writes it.
struct Config {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved_a[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(Config) == 64, "one cache line");

struct TileFile {
    alignas(64) uint8_t data[tiles][max_rows][max_row_bytes];
    Config config;  // palette 0: not configured
};

// Initial-exec: the handler may touch it without the allocation that the dynamic TLS models make on first use.
__attribute__((tls_model("initial-exec"))) thread_local TileFile file;

std::atomic<unsigned long long> emulated{0};
struct sigaction next_action;  // what the program itself wants done with SIGILL
int (*real_sigaction)(int, const struct sigaction*, struct sigaction*) = nullptr;

[[noreturn]] void die(const char* instruction, const char* why) {
    // snprintf is not on the list of async-signal-safe functions, so join by hand.
    char text[256];
    size_t length = 0;
    for (const char* part : {"amx_emulator: ", instruction, ": ", why, "\n"}) {
        const size_t n = strlen(part);
        if (length + n > sizeof text) break;
        memcpy(text + length, part, n);
        length += n;
    }
    if (write(2, text, length) < 0) _exit(134);
    abort();
}

enum Prefix { none = 0, p66 = 1, pF3 = 2, pF2 = 3 };

struct Instruction {
    int prefix, opcode;
    int mod, reg, rm;  // reg and rm with their VEX extensions
    int vvvv;
    bool has_sib;
    uint64_t address;  // base + displacement (+ index << scale, kept apart in stride for the sibmem forms)
    uint64_t stride;   // index << scale; 0 without an index
    int length;
};

uint64_t gpr(const ucontext_t* context, int number) {
    static constexpr int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return static_cast<uint64_t>(context->uc_mcontext.gregs[order[number]]);
}

int64_t read_i32(const uint8_t* p) {
    int32_t value;
    memcpy(&value, p, 4);
    return value;
}

// False for anything that is not one of the AMX instructions above. Reads no byte past the instruction.
bool decode(const ucontext_t* context, Instruction* out) {
    const uint8_t* const start = reinterpret_cast<const uint8_t*>(context->uc_mcontext.gregs[REG_RIP]);
    if (start[0] != 0xC4) return false;
    const int r = (start[1] & 0x80) ? 0 : 8, x = (start[1] & 0x40) ? 0 : 8, b = (start[1] & 0x20) ? 0 : 8;
    if ((start[1] & 0x1F) != 2) return false;                            // map 0F38
    if ((start[2] & 0x80) != 0 || (start[2] & 0x04) != 0) return false;  // W0, 128
    out->vvvv = (~start[2] >> 3) & 15;
    out->prefix = start[2] & 3;
    out->opcode = start[3];
    if (out->opcode != 0x49 && out->opcode != 0x4B && out->opcode != 0x5C && out->opcode != 0x5E) return false;
    const uint8_t* p = start + 4;
    const int modrm = *p++;
    out->mod = modrm >> 6;
    out->reg = ((modrm >> 3) & 7) + r;
    out->rm = (modrm & 7) + b;
    out->has_sib = false;
    out->address = out->stride = 0;
    if (out->mod != 3) {
        bool base_is_rip = false, no_base = false;
        int base = out->rm;
        if ((modrm & 7) == 4) {
            out->has_sib = true;
            const int sib = *p++;
            const int index = ((sib >> 3) & 7) + x;
            if (index != 4) out->stride = gpr(context, index) << (sib >> 6);
            base = (sib & 7) + b;
            no_base = (sib & 7) == 5 && out->mod == 0;
        } else if ((modrm & 7) == 5 && out->mod == 0) {
            base_is_rip = true;
        }
        int64_t displacement = 0;
        if (out->mod == 1) {
            displacement = static_cast<int8_t>(*p);
            p += 1;
        } else if (out->mod == 2 || base_is_rip || no_base) {
            displacement = read_i32(p);
            p += 4;
        }
        // RIP-relative addresses count from the next instruction; none of these has an immediate after the displacement.
        const uint64_t origin = base_is_rip ? reinterpret_cast<uint64_t>(p) : no_base ? 0 : gpr(context, base);
        out->address = origin + static_cast<uint64_t>(displacement);
    }
    out->length = static_cast<int>(p - start);
    return true;
}

void load_config(const Instruction& in) {
    const char* const me = "ldtilecfg";
    // Copied first: a fault on the memory must leave the tiles as they were.
    Config config;
    memcpy(&config, reinterpret_cast<const void*>(in.address + in.stride), sizeof config);
    if (config.palette > 1) die(me, "#GP: palette_id is neither 0 nor 1");
    if (config.palette == 1) {
        for (uint8_t byte : config.reserved_a)
            if (byte != 0) die(me, "#GP: a reserved byte (2 to 15) is not zero");
        if (config.start_row != 0) die(me, "start_row is not zero: legal, but never what a kernel means");
        for (int t = 0; t < 16; t++) {
            if (t >= tiles && (config.rows[t] != 0 || config.row_bytes[t] != 0))
                die(me, "#GP: rows or colsb of a tile beyond tmm7 is not zero");
            if (config.rows[t] > max_rows) die(me, "#GP: a tile has more than 16 rows");
            if (config.row_bytes[t] > max_row_bytes) die(me, "#GP: a tile has more than 64 bytes per row");
            if ((config.rows[t] == 0) != (config.row_bytes[t] == 0))
                die(me, "#GP: a tile has rows but no columns, or columns but no rows");
        }
    } else {
        memset(&config, 0, sizeof config);
    }
    file.config = config;
    memset(file.data, 0, sizeof file.data);
}

void check_tile(const char* me, int tile) {
    if (file.config.palette == 0) die(me, "#UD: no tile configuration is loaded");
    if (tile >= tiles) die(me, "#UD: a tile number above 7");
    if (file.config.rows[tile] == 0) die(me, "#UD: a tile that the configuration leaves out");
}

void zero_after(int tile, int row, int bytes) { memset(file.data[tile][row] + bytes, 0, max_row_bytes - bytes); }

void zero_upper_rows(int tile) {
    const int rows = file.config.rows[tile];
    memset(file.data[tile][rows], 0, static_cast<size_t>(max_rows - rows) * max_row_bytes);
}

void load_tile(const char* me, const Instruction& in) {
    check_tile(me, in.reg);
    const int rows = file.config.rows[in.reg], bytes = file.config.row_bytes[in.reg];
    for (int row = 0; row < rows; row++) {
        memcpy(file.data[in.reg][row],
               reinterpret_cast<const void*>(in.address + static_cast<uint64_t>(row) * in.stride),
               static_cast<size_t>(bytes));
        zero_after(in.reg, row, bytes);
    }
    zero_upper_rows(in.reg);
}

void store_tile(const char* me, const Instruction& in) {
    check_tile(me, in.reg);
    const int rows = file.config.rows[in.reg], bytes = file.config.row_bytes[in.reg];
    for (int row = 0; row < rows; row++)
        memcpy(reinterpret_cast<void*>(in.address + static_cast<uint64_t>(row) * in.stride), file.data[in.reg][row],
               static_cast<size_t>(bytes));
}

void check_product(const char* me, int dst, int a, int b) {
    check_tile(me, dst);
    check_tile(me, a);
    check_tile(me, b);
    const Config& c = file.config;
    if (dst == a || dst == b || a == b) die(me, "#UD: the three tiles must be different ones");
    if (c.row_bytes[dst] % 4 != 0 || c.row_bytes[a] % 4 != 0 || c.row_bytes[b] % 4 != 0)
        die(me, "#UD: colsb is not a multiple of 4");
    if (c.row_bytes[dst] != c.row_bytes[b]) die(me, "#UD: colsb of the result differs from colsb of the second factor");
    if (c.rows[dst] != c.rows[a]) die(me, "#UD: rows of the result differ from rows of the first factor");
    if (c.row_bytes[a] / 4 != c.rows[b]) die(me, "#UD: colsb / 4 of the first factor differs from rows of the second");
}

// Lanes past colsb hold zeros in every tile, so whole vectors may be computed; they are zeroed again afterwards because
// 0 · infinity is not 0.
__attribute__((target("avx512f"))) void product_bf16(int dst, int a, int b) {
    const int rows = file.config.rows[dst], depth = file.config.row_bytes[a] / 4;
    const unsigned saved_mxcsr = _mm_getcsr();
    _mm_setcsr(
        0x9FC0);  // denormals are zero in and out, round to nearest even, no exceptions: what the instruction does
    const __m512i high_half = _mm512_set1_epi32(static_cast<int>(0xFFFF0000u));
    for (int row = 0; row < rows; row++) {
        // Two sums per column: even and odd elements of the depth, joined at the end, as the pseudo code has it.
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int k = 0; k < depth; k++) {
            int pair;
            memcpy(&pair, file.data[a][row] + 4 * k, 4);
            const __m512i a_pair = _mm512_set1_epi32(pair);
            const __m512i b_pairs = _mm512_load_si512(file.data[b][k]);
            even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a_pair, 16)),
                                   _mm512_castsi512_ps(_mm512_slli_epi32(b_pairs, 16)), even);
            odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a_pair, high_half)),
                                  _mm512_castsi512_ps(_mm512_and_si512(b_pairs, high_half)), odd);
        }
        float* const result = reinterpret_cast<float*>(file.data[dst][row]);
        _mm512_store_ps(result, _mm512_add_ps(_mm512_load_ps(result), _mm512_add_ps(even, odd)));
        zero_after(dst, row, file.config.row_bytes[dst]);
    }
    zero_upper_rows(dst);
    _mm_setcsr(saved_mxcsr);
}

void product_int8(int dst, int a, int b, bool a_signed, bool b_signed) {
    const int rows = file.config.rows[dst], columns = file.config.row_bytes[dst] / 4;
    const int depth = file.config.row_bytes[a] / 4;
    for (int row = 0; row < rows; row++) {
        uint32_t sums[16];
        memcpy(sums, file.data[dst][row], sizeof sums);
        for (int k = 0; k < depth; k++) {
            int a_quad[4];
            for (int i = 0; i < 4; i++) {
                const uint8_t byte = file.data[a][row][4 * k + i];
                a_quad[i] = a_signed ? static_cast<int8_t>(byte) : byte;
            }
            const uint8_t* const b_row = file.data[b][k];
            for (int n = 0; n < columns; n++) {
                int sum = 0;
                for (int i = 0; i < 4; i++) {
                    const uint8_t byte = b_row[4 * n + i];
                    sum += a_quad[i] * (b_signed ? static_cast<int8_t>(byte) : byte);
                }
                sums[n] += static_cast<uint32_t>(sum);  // wraps, as the instruction does
            }
        }
        memcpy(file.data[dst][row], sums, static_cast<size_t>(columns) * 4);
        zero_after(dst, row, file.config.row_bytes[dst]);
    }
    zero_upper_rows(dst);
}

// True when the instruction was one of ours and has been carried out.
bool emulate(const Instruction& in) {
    const bool memory = in.mod != 3;
    if (in.opcode == 0x49) {
        if (in.vvvv != 0) return false;
        if (in.prefix == none && memory && in.reg == 0) {
            load_config(in);
        } else if (in.prefix == p66 && memory && in.reg == 0) {
            memcpy(reinterpret_cast<void*>(in.address + in.stride), &file.config, sizeof file.config);
        } else if (in.prefix == none && !memory && in.reg == 0 && in.rm == 0) {
            memset(&file, 0, sizeof file);
        } else if (in.prefix == pF2 && !memory && in.rm == 0) {
            check_tile("tilezero", in.reg);
            memset(file.data[in.reg], 0, sizeof file.data[in.reg]);
        } else {
            return false;
        }
        return true;
    }
    if (in.opcode == 0x4B) {
        if (!memory || !in.has_sib || in.vvvv != 0) return false;
        if (in.prefix == pF2) {
            load_tile("tileloadd", in);
        } else if (in.prefix == p66) {
            load_tile("tileloaddt1", in);
        } else if (in.prefix == pF3) {
            store_tile("tilestored", in);
        } else {
            return false;
        }
        return true;
    }
    if (memory) return false;
    const int dst = in.reg, a = in.rm, b = in.vvvv;
    if (in.opcode == 0x5C) {
        if (in.prefix != pF3) return false;  // tdpfp16ps and later ones: not here
        check_product("tdpbf16ps", dst, a, b);
        product_bf16(dst, a, b);
        return true;
    }
    static constexpr const char* names[4] = {"tdpbuud", "tdpbusd", "tdpbsud", "tdpbssd"};
    check_product(names[in.prefix], dst, a, b);
    // The letters give the signs of a, then b: bsud is signed × unsigned.
    product_int8(dst, a, b, in.prefix == pF2 || in.prefix == pF3, in.prefix == pF2 || in.prefix == p66);
    return true;
}

void on_sigill(int signal_number, siginfo_t* info, void* raw_context) {
    const int saved_errno = errno;
    auto* const context = static_cast<ucontext_t*>(raw_context);
    Instruction in;
    if (info->si_code > 0 && decode(context, &in) && emulate(in)) {
        context->uc_mcontext.gregs[REG_RIP] += in.length;
        emulated.fetch_add(1, std::memory_order_relaxed);
        errno = saved_errno;
        return;
    }
    errno = saved_errno;
    if ((next_action.sa_flags & SA_SIGINFO) != 0) {
        next_action.sa_sigaction(signal_number, info, raw_context);
    } else if (next_action.sa_handler == SIG_DFL || next_action.sa_handler == SIG_IGN) {
        // The default action when the instruction runs again; the kernel ignores SIG_IGN for a real fault as well.
        struct sigaction fallback = {};
        fallback.sa_handler = SIG_DFL;
        real_sigaction(SIGILL, &fallback, nullptr);
        if (info->si_code <= 0) raise(SIGILL);
    } else {
        next_action.sa_handler(signal_number);
    }
}

void find_real_sigaction() {
    if (real_sigaction == nullptr)
        real_sigaction = reinterpret_cast<decltype(real_sigaction)>(dlsym(RTLD_NEXT, "sigaction"));
}

__attribute__((constructor)) void install() {
    find_real_sigaction();
    struct sigaction action = {};
    action.sa_sigaction = on_sigill;
    sigemptyset(&action.sa_mask);
    // Not SA_ONSTACK: alternate stacks are often too small for an AVX-512 signal frame.
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    real_sigaction(SIGILL, &action, &next_action);
}

}  // namespace

// ---- what a program under the emulator sees ----

// fastffn asks this before it asks CPUID.
EXPORT bool fastffn_emulated_amx() { return true; }

// Instructions emulated so far in this process, so that a test can show that AMX code did run.
EXPORT unsigned long long amx_emulator_count() { return emulated.load(); }

// Programs that install a SIGILL handler (Python's faulthandler does) get it called for what is not AMX.
EXPORT int sigaction(int number, const struct sigaction* action, struct sigaction* old) noexcept {
    find_real_sigaction();
    if (number != SIGILL) return real_sigaction(number, action, old);
    if (old != nullptr) *old = next_action;
    if (action != nullptr) next_action = *action;
    return 0;
}

EXPORT sighandler_t signal(int number, sighandler_t handler) noexcept {
    struct sigaction action = {}, old = {};
    action.sa_handler = handler;
    action.sa_flags = SA_RESTART;
    if (sigaction(number, &action, &old) != 0) return SIG_ERR;
    return old.sa_handler;
}

// arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) succeeds, although this kernel knows no such state. A refusal by policy
// (seccomp answers EPERM) stays one.
EXPORT long syscall(long number, ...) noexcept {
    va_list arguments;
    va_start(arguments, number);
    const long a = va_arg(arguments, long), b = va_arg(arguments, long), c = va_arg(arguments, long);
    const long d = va_arg(arguments, long), e = va_arg(arguments, long), f = va_arg(arguments, long);
    va_end(arguments);
    const bool asks_for_amx = number == SYS_arch_prctl && a == 0x1023 && b == 18;
    if (asks_for_amx && getenv("AMX_EMULATOR_REFUSE") != nullptr) {
        errno = EPERM;
        return -1;
    }
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (asks_for_amx && (result == -EINVAL || result == -EOPNOTSUPP)) return 0;
    if (result < 0 && result > -4096) {
        errno = static_cast<int>(-result);
        return -1;
    }
    return result;
}
