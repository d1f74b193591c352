// dim3, uint3 and the short vectors, with CUDA's alignments.
#pragma once

#define FASTFFN_VECTORS(type, name, size)                                       \
    struct name##1 { type x; };                                                 \
    struct alignas(2 * size) name##2 { type x, y; };                            \
    struct name##3 { type x, y, z; };                                           \
    struct alignas(4 * size > 16 ? 16 : 4 * size) name##4 { type x, y, z, w; }; \
    inline name##1 make_##name##1(type x) { return {x}; }                       \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }            \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }

FASTFFN_VECTORS(signed char, char, 1)
FASTFFN_VECTORS(unsigned char, uchar, 1)
FASTFFN_VECTORS(short, short, 2)
FASTFFN_VECTORS(unsigned short, ushort, 2)
FASTFFN_VECTORS(int, int, 4)
FASTFFN_VECTORS(unsigned, uint, 4)
FASTFFN_VECTORS(long long, longlong, 8)
FASTFFN_VECTORS(unsigned long long, ulonglong, 8)
FASTFFN_VECTORS(float, float, 4)
FASTFFN_VECTORS(double, double, 8)
#undef FASTFFN_VECTORS

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};
