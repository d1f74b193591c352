#include "core/cpu.hpp"

#include "core/fetch.hpp"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#if FASTFFN_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace fastffn {

namespace {

constexpr const char* isa_names[isa_count] = {"ref", "avx2", "avx512base", "avx512vnni", "avx512bf16", "amx"};

struct Detection {
    CpuReport report;
    Status status;
};

#if FASTFFN_X86

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
    Registers r;
    if (!__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx)) return {};
    return r;
}

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

std::uint64_t enabled_state() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<std::uint64_t>(high) << 32) | low;
}

std::string vendor_string() {
    const Registers r = cpuid(0, 0);
    char text[13] = {};
    std::memcpy(text, &r.ebx, 4);
    std::memcpy(text + 4, &r.edx, 4);
    std::memcpy(text + 8, &r.ecx, 4);
    return text;
}

std::string brand_string() {
    char text[49] = {};
    if (cpuid(0x80000000u, 0).eax < 0x80000004u) return {};
    for (unsigned i = 0; i < 3; ++i) {
        const Registers r = cpuid(0x80000002u + i, 0);
        std::memcpy(text + 16 * i, &r, 16);
    }
    std::string brand = text;
    while (!brand.empty() && brand.back() == ' ') brand.pop_back();
    return brand;
}

#if defined(__linux__)
// A test library that is preloaded to execute AMX instructions in software says so through this symbol, because CPUID
// cannot be intercepted. No such symbol exists outside the tests.
bool emulated_amx() {
    using Hook = bool (*)();
    Hook hook = nullptr;
    void* symbol = dlsym(RTLD_DEFAULT, "fastffn_emulated_amx");
    std::memcpy(&hook, &symbol, sizeof hook);
    return hook && hook();
}

// Linux gives a process the 8 KiB tile state only when asked, once; the first tile instruction faults otherwise
// (kernel documentation, arch/x86/xstate: ARCH_REQ_XCOMP_PERM with feature 18, XTILEDATA).
bool request_amx(std::string* why_not) {
    constexpr long arch_req_xcomp_perm = 0x1023, xtiledata = 18;
    if (syscall(SYS_arch_prctl, arch_req_xcomp_perm, xtiledata) == 0) return true;
    *why_not = std::string("the operating system refused AMX (arch_prctl: ") + std::strerror(errno) + ")";
    return false;
}
#else
bool emulated_amx() { return false; }
bool request_amx(std::string* why_not) {
    *why_not = "AMX needs Linux";
    return false;
}
#endif

// Highest level whose features the CPU has (CPUID) and whose registers the operating system saves (XGETBV).
Isa detect(std::string* why_no_better) {
    const Registers basic = cpuid(1, 0), extended = cpuid(7, 0), extended1 = cpuid(7, 1);
    if (!bit(basic.ecx, 27)) {
        *why_no_better = "the operating system does not enable AVX state";
        return Isa::ref;
    }
    const std::uint64_t state = enabled_state();
    const bool has_avx2 = bit(basic.ecx, 28) && bit(basic.ecx, 12) && bit(basic.ecx, 29) && bit(extended.ebx, 5);
    if (!has_avx2 || (state & 0x6) != 0x6) {
        *why_no_better = "no AVX2 with FMA and F16C";
        return Isa::ref;
    }
    const bool has_avx512 =
        bit(extended.ebx, 16) && bit(extended.ebx, 17) && bit(extended.ebx, 30) && bit(extended.ebx, 31);
    if (!has_avx512 || (state & 0xe6) != 0xe6) {
        *why_no_better = "no AVX-512 F, BW, DQ and VL";
        return Isa::avx2;
    }
    if (!bit(extended.ecx, 11)) {
        *why_no_better = "no AVX-512 VNNI";
        return Isa::avx512;
    }
    if (!bit(extended1.eax, 5)) {
        *why_no_better = "no AVX-512 BF16";
        return Isa::avx512vnni;
    }
    const bool has_amx =
        bit(extended.edx, 22) && bit(extended.edx, 24) && bit(extended.edx, 25) && (state & 0x60000) == 0x60000;
    if (!has_amx && !emulated_amx()) {
        *why_no_better = "no AMX tiles with BF16 and INT8";
        return Isa::avx512bf16;
    }
    return Isa::amx;
}

bool amd_before_zen5() {
    const unsigned signature = cpuid(1, 0).eax, family = (signature >> 8 & 15) + (signature >> 20 & 255);
    return vendor_string() == "AuthenticAMD" && family < 0x1a;
}

#else
bool amd_before_zen5() { return false; }
std::string vendor_string() { return {}; }
std::string brand_string() { return {}; }
bool request_amx(std::string*) { return false; }
Isa detect(std::string* why_no_better) {
    *why_no_better = "this build has the plain kernels only";
    return Isa::ref;
}
#endif

// Size of the data or unified cache of a level as the kernel reports it for the first core, 0 where it does not. (glibc's
// sysconf multiplies shared caches by the sockets of the host in some virtual machines: 384 MiB for 32.)
std::int64_t cache_bytes(int level) {
    for (int index = 0; index < 8; ++index) {
        const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/";
        int found_level = 0;
        std::string type;
        std::int64_t kib = 0;
        if (!(std::ifstream(folder + "level") >> found_level)) return 0;
        if (found_level != level || !(std::ifstream(folder + "type") >> type) || type == "Instruction") continue;
        return std::ifstream(folder + "size") >> kib ? kib << 10 : 0;  // "48K"
    }
    return 0;
}

Status parse_isa(const std::string& text, Isa found, Isa* isa) {
    if (text == "avx512") {
        *isa = found > Isa::avx512bf16 ? Isa::avx512bf16 : found;
        if (found >= Isa::avx512) return {};
        *isa = Isa::avx512;
    } else {
        int index = 0;
        while (index < isa_count && text != isa_names[index]) ++index;
        if (index == isa_count)
            return {StatusCode::invalid_argument,
                    "FASTFFN_ISA='" + text +
                        "' is not known; expected ref, avx2, avx512, avx512base, avx512vnni, avx512bf16 or amx"};
        *isa = static_cast<Isa>(index);
    }
    if (*isa > found)
        return {StatusCode::unsupported, "FASTFFN_ISA='" + text +
                                             "' is not available here; the best level of this machine is '" +
                                             isa_names[static_cast<int>(found)] + "'"};
    return {};
}

Detection detect_all() {
    Detection d;
    CpuReport& report = d.report;
    report.vendor = vendor_string();
    report.brand = brand_string();
    report.l1d_bytes = cache_bytes(1);
    report.l2_bytes = cache_bytes(2);
    report.l3_bytes = cache_bytes(3);
    std::string why_no_better;
    report.found = detect(&why_no_better);
    const char* forced = std::getenv("FASTFFN_ISA");
    const bool is_forced = forced && *forced;
    // Permission is asked for only when AMX would be used: asking enlarges every signal frame of the process.
    const bool wants_amx = report.found == Isa::amx && (!is_forced || std::strcmp(forced, "amx") == 0);
    if (wants_amx && !request_amx(&why_no_better)) report.found = Isa::avx512bf16;
    report.chosen = report.found;
    if (is_forced) {
        Isa isa = report.found;
        d.status = parse_isa(forced, report.found, &isa);
        if (d.status.ok()) {
            report.chosen = isa;
            report.reason = std::string("FASTFFN_ISA=") + forced;
            if (isa < report.found) report.reason += std::string("; this machine has ") + isa_name(report.found);
            else if (!why_no_better.empty()) report.reason += "; " + why_no_better;
        } else {
            report.reason = d.status.message();
            if (!why_no_better.empty()) report.reason += " (" + why_no_better + ")";
            d.status = {d.status.code(), report.reason};
        }
    } else {
        report.reason = "best of this machine";
        if (!why_no_better.empty()) report.reason += "; " + why_no_better;
    }
    return d;
}

const Detection& detection() {
    static const Detection d = detect_all();
    return d;
}

}  // namespace

const char* isa_name(Isa isa) noexcept {
    const int index = static_cast<int>(isa);
    return index >= 0 && index < isa_count ? isa_names[index] : "unknown";
}

const CpuReport& cpu_report() { return detection().report; }

Status check_isa() { return detection().status; }

Isa chosen_isa() { return detection().report.chosen; }

bool fetches_weights() noexcept {
    static const bool fetches = !amd_before_zen5();
    return fetches;
}

}  // namespace fastffn
