// Which instruction sets this CPU and operating system offer, and which one is in use.
#pragma once

#include <string>

#include "fastffn/packed.hpp"
#include "fastffn/status.hpp"

namespace fastffn {

// Ordered: each level has all features of those before it.
enum class Isa : int {
    ref = 0,         // plain C++ loops, no intrinsics
    avx2 = 1,        // + FMA, F16C
    avx512 = 2,      // F, BW, DQ, VL
    avx512vnni = 3,  // + VNNI
    avx512bf16 = 4,  // + BF16
    amx = 5,         // + AMX-TILE, AMX-BF16, AMX-INT8, and the kernel's permission to use them
};
constexpr int isa_count = 6;

const char* isa_name(Isa isa) noexcept;

struct CpuReport {
    std::string vendor, brand;
    Isa found;                                   // best level of this machine
    Isa chosen;                                  // level in use
    std::string reason;                          // why `chosen`, and why nothing better
    std::int64_t l1d_bytes, l2_bytes, l3_bytes;  // per core, per core, as seen by one core; 0 where unknown
};

// Detects once; later calls return the same report.
const CpuReport& cpu_report();

// FASTFFN_ISA, when set, caps the level: ref, avx2, avx512base, avx512vnni, avx512bf16, amx; `avx512` means the best
// AVX-512 level this CPU has. A name that is unknown, or that this CPU lacks, is an error here and in every
// call that runs kernels.
Status check_isa();

// Name of the kernels that a format runs now, such as "bf16/amx"; the tag after the slash is the file they come from.
Status active_kernel(Format format, std::string* name);
// The same for weights packed with these options.
Status active_kernel(Format format, const PackOptions& options, std::string* name);

}  // namespace fastffn
