// CUDA C++'s device functions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emulator/device.hpp"

// ---- barriers, fences ----

inline void __syncthreads(FASTFFN_SITE) {
    emulator::barrier(site, "__syncthreads", 0, static_cast<int>(blockDim.x * blockDim.y * blockDim.z), 0, true);
}
inline int __syncthreads_count(int predicate, FASTFFN_SITE) {
    return emulator::barrier(site, "__syncthreads_count", 0, static_cast<int>(blockDim.x * blockDim.y * blockDim.z),
                             predicate != 0, true);
}
inline int __syncthreads_or(int predicate, FASTFFN_SITE) { return __syncthreads_count(predicate, site) != 0; }
inline int __syncthreads_and(int predicate, FASTFFN_SITE) { return __syncthreads_count(predicate == 0, site) == 0; }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, FASTFFN_SITE) {
    emulator::warp_operation(site, "__syncwarp", mask, nullptr, nullptr);
}
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_block() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
inline void __nanosleep(unsigned) { emulator::yield(); }
[[noreturn]] inline void __trap(FASTFFN_SITE) { emulator::fail(site, "__trap"); }

// ---- shuffles, votes, reductions ----

namespace emulator {

template <class T>
struct Shuffle {
    T value, result;
    int lane, width;
};

enum class Direction { index, up, down, exchange };

template <Direction direction, class T>
T shuffle(const Site& site, const char* name, unsigned mask, T value, int lane, int width) {
    static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2), "as CUDA's");
    if (width <= 0 || width > 32 || (width & (width - 1)))
        fail(site, "%s: width %d; expected a power of two up to 32", name, width);
    Shuffle<T> own{value, value, lane, width};
    warp_operation(site, name, mask, &own, [](const Lanes& lanes) {
        for (int i = 0; i < 32; i++) {
            if (!(lanes.mask >> i & 1)) continue;
            auto& self = *static_cast<Shuffle<T>*>(lanes.operand[i]);
            const int first = i & ~(self.width - 1), last = first + self.width - 1;
            int source = i;
            if constexpr (direction == Direction::index) source = first | (self.lane & (self.width - 1));
            if constexpr (direction == Direction::up) source = i - self.lane;
            if constexpr (direction == Direction::down) source = i + self.lane;
            if constexpr (direction == Direction::exchange) source = i ^ self.lane;
            if (direction == Direction::up ? source < first : source > last) source = i;
            if (source < 0 || !(lanes.mask >> source & 1))
                fail(lanes.site, "shuffle: lane %d reads lane %d, which the mask %08x leaves out", i, source,
                     lanes.mask);
            self.result = static_cast<Shuffle<T>*>(lanes.operand[source])->value;
        }
    });
    return own.result;
}

template <class T>
struct Vote {
    T value;
    unsigned result;
    int same;
};

// One result for all lanes.
template <class T, class F>
T reduce(const Site& site, const char* name, unsigned mask, T value, F) {
    warp_operation(site, name, mask, &value, [](const Lanes& lanes) {
        bool first = true;
        T result{};
        for (int i = 0; i < 32; i++) {
            if (!(lanes.mask >> i & 1)) continue;
            const T one = *static_cast<T*>(lanes.operand[i]);
            result = first ? one : F()(result, one);
            first = false;
        }
        for (int i = 0; i < 32; i++)
            if (lanes.mask >> i & 1) *static_cast<T*>(lanes.operand[i]) = result;
    });
    return value;
}

struct Add {
    template <class T>
    T operator()(T a, T b) const {
        return static_cast<T>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
    }
};
struct Smaller {
    template <class T>
    T operator()(T a, T b) const {
        return b < a ? b : a;
    }
};
struct Larger {
    template <class T>
    T operator()(T a, T b) const {
        return b > a ? b : a;
    }
};
struct And {
    unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct Or {
    unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct Xor {
    unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, FASTFFN_SITE) {
    return emulator::shuffle<emulator::Direction::index>(site, "__shfl_sync", mask, value, lane, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTFFN_SITE) {
    return emulator::shuffle<emulator::Direction::up>(site, "__shfl_up_sync", mask, value, static_cast<int>(delta),
                                                      width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, FASTFFN_SITE) {
    return emulator::shuffle<emulator::Direction::down>(site, "__shfl_down_sync", mask, value, static_cast<int>(delta),
                                                        width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, FASTFFN_SITE) {
    return emulator::shuffle<emulator::Direction::exchange>(site, "__shfl_xor_sync", mask, value, lanes, width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTFFN_SITE) {
    return emulator::reduce(site, "__ballot_sync", mask, predicate ? 1u << emulator::lane() : 0u, emulator::Or());
}
inline int __any_sync(unsigned mask, int predicate, FASTFFN_SITE) {
    return emulator::reduce(site, "__any_sync", mask, predicate ? 1u : 0u, emulator::Or()) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTFFN_SITE) {
    return emulator::reduce(site, "__all_sync", mask, predicate ? 1u : 0u, emulator::And()) != 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, FASTFFN_SITE) {
    emulator::Vote<T> own{value, 0, 0};
    emulator::warp_operation(site, "__match_any_sync", mask, &own, [](const emulator::Lanes& lanes) {
        for (int i = 0; i < 32; i++)
            for (int j = 0; j < 32; j++) {
                if (!(lanes.mask >> i & 1) || !(lanes.mask >> j & 1)) continue;
                auto& self = *static_cast<emulator::Vote<T>*>(lanes.operand[i]);
                if (std::memcmp(&self.value, &static_cast<emulator::Vote<T>*>(lanes.operand[j])->value, sizeof(T)) == 0)
                    self.result |= 1u << j;
            }
    });
    return own.result;
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* same, FASTFFN_SITE) {
    *same = __match_any_sync(mask, value, site) == mask;
    return *same ? mask : 0;
}

#define FASTFFN_REDUCE(name, type, operation)                                     \
    inline type name(unsigned mask, type value, FASTFFN_SITE) {                   \
        return emulator::reduce(site, #name, mask, value, emulator::operation()); \
    }
FASTFFN_REDUCE(__reduce_add_sync, int, Add)
FASTFFN_REDUCE(__reduce_add_sync, unsigned, Add)
FASTFFN_REDUCE(__reduce_min_sync, int, Smaller)
FASTFFN_REDUCE(__reduce_min_sync, unsigned, Smaller)
FASTFFN_REDUCE(__reduce_max_sync, int, Larger)
FASTFFN_REDUCE(__reduce_max_sync, unsigned, Larger)
FASTFFN_REDUCE(__reduce_and_sync, unsigned, And)
FASTFFN_REDUCE(__reduce_or_sync, unsigned, Or)
FASTFFN_REDUCE(__reduce_xor_sync, unsigned, Xor)
#undef FASTFFN_REDUCE

// ---- atomics: one fiber runs at a time; others may come between ----

namespace emulator {
template <class T, class F>
T atomic(const Site& site, T* data, F f) {
    check_aligned(site, "atomic", data, sizeof(T));
    yield();
    note_access(site, Access::atomic, data, sizeof(T));
    // Not instrumented: an atomic does not race with itself.
    T old, now;
    copy_unseen(&old, data, sizeof(T));
    now = f(old);
    copy_unseen(data, &now, sizeof(T));
    return old;
}
}  // namespace emulator

#define FASTFFN_ATOMIC(name, type, expression)                                             \
    inline type name(type* data, type value, FASTFFN_SITE) {                               \
        return emulator::atomic(site, data, [&](type old) -> type { return expression; }); \
    }
FASTFFN_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
FASTFFN_ATOMIC(atomicAdd, unsigned, old + value)
FASTFFN_ATOMIC(atomicAdd, unsigned long long, old + value)
FASTFFN_ATOMIC(atomicAdd, float, old + value)
FASTFFN_ATOMIC(atomicAdd, double, old + value)
FASTFFN_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
FASTFFN_ATOMIC(atomicSub, unsigned, old - value)
FASTFFN_ATOMIC(atomicMax, int, old > value ? old : value)
FASTFFN_ATOMIC(atomicMax, unsigned, old > value ? old : value)
FASTFFN_ATOMIC(atomicMax, unsigned long long, old > value ? old : value)
FASTFFN_ATOMIC(atomicMin, int, old < value ? old : value)
FASTFFN_ATOMIC(atomicMin, unsigned, old < value ? old : value)
FASTFFN_ATOMIC(atomicAnd, unsigned, old& value)
FASTFFN_ATOMIC(atomicOr, unsigned, old | value)
FASTFFN_ATOMIC(atomicXor, unsigned, old ^ value)
FASTFFN_ATOMIC(atomicExch, int, ((void)old, value))
FASTFFN_ATOMIC(atomicExch, unsigned, ((void)old, value))
FASTFFN_ATOMIC(atomicExch, float, ((void)old, value))
FASTFFN_ATOMIC(atomicInc, unsigned, old >= value ? 0 : old + 1)
#undef FASTFFN_ATOMIC
inline int atomicCAS(int* data, int compare, int value, FASTFFN_SITE) {
    return emulator::atomic(site, data, [&](int old) { return old == compare ? value : old; });
}
inline unsigned atomicCAS(unsigned* data, unsigned compare, unsigned value, FASTFFN_SITE) {
    return emulator::atomic(site, data, [&](unsigned old) { return old == compare ? value : old; });
}
inline unsigned long long atomicCAS(unsigned long long* data, unsigned long long compare, unsigned long long value,
                                    FASTFFN_SITE) {
    return emulator::atomic(site, data, [&](unsigned long long old) { return old == compare ? value : old; });
}

// ---- loads and stores with cache hints ----

#define FASTFFN_LOAD(name)         \
    template <class T>             \
    inline T name(const T* data) { \
        return *data;              \
    }
template <class T>
inline T __ldg(const T* data, FASTFFN_SITE) {
    emulator::races::check_read_only(site, "__ldg", data, sizeof(T));
    return *data;
}
FASTFFN_LOAD(__ldcg)
FASTFFN_LOAD(__ldca)
FASTFFN_LOAD(__ldcs)
FASTFFN_LOAD(__ldlu)
FASTFFN_LOAD(__ldcv)
#undef FASTFFN_LOAD
template <class T>
inline void __stcg(T* data, T value) {
    *data = value;
}
template <class T>
inline void __stcs(T* data, T value) {
    *data = value;
}
template <class T>
inline void __stwt(T* data, T value) {
    *data = value;
}

inline std::size_t __cvta_generic_to_shared(const void* data) { return emulator::shared_window_address(data); }

// ---- integers ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int i = 0; i < 32; i++) result |= (x >> i & 1) << (31 - i);
    return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
inline int __mul24(int a, int b) { return a * b; }
// PTX ISA, "prmt": selector nibbles; bit 3 replicates the sign of the chosen byte.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const std::uint64_t bytes = a | static_cast<std::uint64_t>(b) << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned nibble = selector >> 4 * i & 15;
        unsigned byte = static_cast<unsigned>(bytes >> 8 * (nibble & 7)) & 255;
        if (nibble & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((low | static_cast<std::uint64_t>(high) << 32) >> (shift & 31));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((low | static_cast<std::uint64_t>(high) << 32) << (shift & 31) >> 32);
}
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) sum += static_cast<std::int8_t>(a >> 8 * i) * static_cast<std::int8_t>(b >> 8 * i);
    return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 4; i++) sum += (a >> 8 * i & 255) * (b >> 8 * i & 255);
    return sum;
}
// Bytes of a minus bytes of b, each modulo 256.
inline unsigned __vsub4(unsigned a, unsigned b) {
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (((a >> 8 * i) - (b >> 8 * i)) & 255) << 8 * i;
    return result;
}
inline unsigned __vadd4(unsigned a, unsigned b) {
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (((a >> 8 * i) + (b >> 8 * i)) & 255) << 8 * i;
    return result;
}

#define FASTFFN_MIN_MAX(type)                                 \
    inline type min(type a, type b) { return b < a ? b : a; } \
    inline type max(type a, type b) { return b > a ? b : a; }
FASTFFN_MIN_MAX(int)
FASTFFN_MIN_MAX(unsigned)
FASTFFN_MIN_MAX(long)
FASTFFN_MIN_MAX(unsigned long)
FASTFFN_MIN_MAX(long long)
FASTFFN_MIN_MAX(unsigned long long)
#undef FASTFFN_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

// ---- floats ----

namespace emulator {
template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
}  // namespace emulator

inline int __float_as_int(float x) { return emulator::bits_as<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::bits_as<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits_as<float>(x); }
inline int __float2int_rn(float x) {
    if (std::isnan(x)) return 0;
    if (x >= 2147483648.0f) return 2147483647;
    if (x < -2147483648.0f) return -2147483647 - 1;
    return static_cast<int>(std::nearbyintf(x));
}
inline int __float2int_rz(float x) { return __float2int_rn(std::trunc(x)); }
inline int __float2int_rd(float x) { return __float2int_rn(std::floor(x)); }
inline unsigned __float2uint_rn(float x) {
    if (!(x > 0)) return 0;
    return x >= 4294967296.0f ? 0xFFFFFFFFu : static_cast<unsigned>(std::nearbyintf(x));
}
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return 1.0f / std::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __saturatef(float a) { return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f; }
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
// The C library declares these names for itself.
#define __expf(x) std::exp(static_cast<float>(x))
#define __exp10f(x) std::pow(10.0f, static_cast<float>(x))
#define __logf(x) std::log(static_cast<float>(x))
#define __log2f(x) std::log2(static_cast<float>(x))
#define __powf(x, y) std::pow(static_cast<float>(x), static_cast<float>(y))
#define __tanhf(x) std::tanh(static_cast<float>(x))
