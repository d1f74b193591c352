// ldmatrix, stmatrix, mma and mma.sp on fragments laid out as the PTX ISA draws them.
#pragma once

#include "emulator/device.hpp"

namespace emulator {

enum class Element { f16, bf16, tf32, s8, u8, s4, u4 };

struct Mma {
    const char* name;
    int depth;
    Element a, b;
    bool sparse = false;
    int selector = 0;
};

// acc: float[4] or int[4]. All 32 lanes.
void mma(const Site& site, const Mma& shape, void* acc, const unsigned* a, const unsigned* b, unsigned metadata = 0);

void load_matrices(const Site& site, unsigned* registers, int count, const void* row, bool transposed);
void store_matrices(const Site& site, const unsigned* registers, int count, void* row);

// An f16 or bf16 exactly; the f32 nearest to zero: tensor cores cut the sum off rather than round it.
double half_value(Element e, std::uint16_t bits);
float toward_zero(double sum);

}  // namespace emulator
