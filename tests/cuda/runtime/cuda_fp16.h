// __half for kernels compiled for the CPU.
#pragma once

#include <cstdint>

#include "core/convert.hpp"
#include "cuda_runtime.h"

struct __half;
__half __float2half_rn(float x);
float __half2float(__half x);

struct __half {
    std::uint16_t bits;
    __half() = default;
    __half(float x) : __half(__float2half_rn(x)) {}
    __half(double x) : __half(static_cast<float>(x)) {}
    __half(int x) : __half(static_cast<float>(x)) {}
    operator float() const { return __half2float(*this); }
};
struct alignas(4) __half2 {
    __half x, y;
};

inline __half __ushort_as_half(unsigned short x) {
    __half result;
    result.bits = x;
    return result;
}
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
// NaN becomes 0x7FFF, as on the device.
inline __half __float2half_rn(float x) { return __ushort_as_half(x != x ? 0x7FFF : fastffn::f32_to_f16(x)); }
inline __half __float2half(float x) { return __float2half_rn(x); }
inline float __half2float(__half x) { return fastffn::f16_to_f32(x.bits); }

inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
inline __half2 __float2half2_rn(float x) { return __floats2half2_rn(x, x); }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline float __low2float(__half2 v) { return __half2float(v.x); }
inline float __high2float(__half2 v) { return __half2float(v.y); }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }

// One rounding: products are exact in double, and so are sums near enough for one more rounding not to matter.
inline __half __hadd(__half a, __half b) { return __float2half_rn(__half2float(a) + __half2float(b)); }
inline __half __hsub(__half a, __half b) { return __float2half_rn(__half2float(a) - __half2float(b)); }
inline __half __hmul(__half a, __half b) { return __float2half_rn(__half2float(a) * __half2float(b)); }
inline __half __hfma(__half a, __half b, __half c) {
    return __float2half_rn(std::fmaf(__half2float(a), __half2float(b), __half2float(c)));
}
inline __half __hneg(__half a) { return __ushort_as_half(static_cast<unsigned short>(a.bits ^ 0x8000)); }
inline __half __hmax(__half a, __half b) { return __float2half_rn(std::fmax(__half2float(a), __half2float(b))); }
inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

using half = __half;
using half2 = __half2;
