#include "emulator/matrix.hpp"

#include <cmath>
#include <cstring>

#include "core/convert.hpp"
#include "emulator/block.hpp"
#include "emulator/control.hpp"

namespace emulator {

namespace {

constexpr unsigned all_lanes = 0xFFFFFFFFu;

constexpr int bits_of_element(Element e) {
    return e == Element::tf32                        ? 32
           : e == Element::f16 || e == Element::bf16 ? 16
           : e == Element::s8 || e == Element::u8    ? 8
                                                     : 4;
}

constexpr bool is_integer(Element e) { return bits_of_element(e) <= 8; }

// Element `i` of a register, exactly.
double value_of(Element e, unsigned word, int i) {
    switch (e) {
        case Element::f16: return fastffn::f16_to_f32(static_cast<std::uint16_t>(word >> 16 * i));
        case Element::bf16: return fastffn::bf16_to_f32(static_cast<std::uint16_t>(word >> 16 * i));
        case Element::tf32: return fastffn::float_of(word & ~0x1FFFu);
        case Element::s8: return static_cast<std::int8_t>(word >> 8 * i);
        case Element::u8: return static_cast<std::uint8_t>(word >> 8 * i);
        case Element::s4: return static_cast<std::int8_t>((word >> 4 * i) << 4) >> 4;
        case Element::u4: return (word >> 4 * i) & 15;
    }
    return 0;
}

struct Operands {
    const Mma* shape;
    void* acc;
    const unsigned *a, *b;
    unsigned metadata;
};

const Operands& of_lane(const Lanes& lanes, int lane) { return *static_cast<const Operands*>(lanes.operand[lane]); }

// The lane and bit at which the positions kept of group `group` (four columns) of a row are found.
unsigned kept_positions(const Lanes& lanes, const Mma& shape, int row, int group) {
    const int g = row % 8, upper = row / 8;
    int lane, bit;
    if (bits_of_element(shape.a) == 16 && shape.depth == 32) {
        lane = 4 * g + 2 * shape.selector + group / 4;
        bit = 16 * upper + 4 * (group % 4);
    } else if (bits_of_element(shape.a) == 16) {
        lane = 4 * g + shape.selector;
        bit = 16 * upper + 4 * group;
    } else {
        lane = 4 * g + 2 * (group / 8) + upper;
        bit = 4 * (group % 8);
    }
    const unsigned nibble = of_lane(lanes, lane).metadata >> bit & 15;
    const unsigned low = nibble & 3, high = nibble >> 2;
    if (low >= high)
        fail(lanes.site,
             "%s: metadata of row %d, columns %d to %d keeps positions %u and %u; expected ascending ones (lane %d, "
             "bit %d)",
             shape.name, row, 4 * group, 4 * group + 3, low, high, lane, bit);
    return nibble;
}

void run_mma(const Lanes& lanes) {
    const Mma& shape = *of_lane(lanes, 0).shape;
    const int per_register = 32 / bits_of_element(shape.a), stored = shape.sparse ? shape.depth / 2 : shape.depth;
    double a[16][128] = {}, b[128][8];
    bool kept[16][128] = {};
    // Columns 4·p·j + p·t + i of a are element i of registers 2j (rows g) and 2j + 1 (rows g + 8) of lane 4g + t, p elements
    // in a register; rows of b likewise are in register j.
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < stored; k++) {
            const int j = k / (4 * per_register), t = k / per_register % 4;
            const unsigned word = of_lane(lanes, row % 8 * 4 + t).a[2 * j + row / 8];
            int column = k;
            if (shape.sparse) {
                const unsigned nibble = kept_positions(lanes, shape, row, k / 2);
                column = k / 2 * 4 + (k % 2 ? nibble >> 2 : nibble & 3);
            }
            a[row][column] = value_of(shape.a, word, k % per_register);
            kept[row][column] = true;
        }
    for (int k = 0; k < shape.depth; k++)
        for (int column = 0; column < 8; column++) {
            const int j = k / (4 * per_register), t = k / per_register % 4;
            b[k][column] = value_of(shape.b, of_lane(lanes, column * 4 + t).b[j], k % per_register);
        }
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            void* const acc = of_lane(lanes, row % 8 * 4 + column / 2).acc;
            const int i = row / 8 * 2 + column % 2;
            double sum = 0;
            // A zero of a that is not stored meets no element of b, not even NaN; one that is stored does.
            for (int k = 0; k < shape.depth; k++)
                if (kept[row][k]) sum += a[row][k] * b[k][column];
            if (is_integer(shape.a)) {
                auto* const ints = static_cast<int*>(acc);
                ints[i] = static_cast<int>(static_cast<unsigned>(ints[i]) +
                                           static_cast<unsigned>(static_cast<long long>(sum)));
            } else {
                auto* const floats = static_cast<float*>(acc);
                floats[i] = toward_zero(sum + static_cast<double>(floats[i]));
            }
        }
}

struct Rows {
    unsigned* registers;
    const void* row;
    int count;
    bool transposed;
};

const Rows& rows_of_lane(const Lanes& lanes, int lane) { return *static_cast<const Rows*>(lanes.operand[lane]); }

void run_load(const Lanes& lanes) {
    const Rows& first = rows_of_lane(lanes, 0);
    for (int matrix = 0; matrix < first.count; matrix++) {
        std::uint16_t elements[8][8];
        for (int r = 0; r < 8; r++) {
            std::memcpy(elements[r], rows_of_lane(lanes, 8 * matrix + r).row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            const int r = lane / 4, c = 2 * (lane % 4);
            const unsigned low = first.transposed ? elements[c][r] : elements[r][c];
            const unsigned high = first.transposed ? elements[c + 1][r] : elements[r][c + 1];
            rows_of_lane(lanes, lane).registers[matrix] = low | high << 16;
        }
    }
}

void run_store(const Lanes& lanes) {
    const int count = rows_of_lane(lanes, 0).count;
    for (int matrix = 0; matrix < count; matrix++)
        for (int r = 0; r < 8; r++) {
            auto* row = static_cast<unsigned char*>(const_cast<void*>(rows_of_lane(lanes, 8 * matrix + r).row));
            check_shared(lanes.site, "stmatrix", row, 16, 16);
            for (int t = 0; t < 4; t++) std::memcpy(row + 4 * t, &rows_of_lane(lanes, 4 * r + t).registers[matrix], 4);
        }
}

}  // namespace

double half_value(Element e, std::uint16_t bits) { return value_of(e, bits, 0); }

float toward_zero(double sum) {
    const float f = static_cast<float>(sum);
    return std::isfinite(f) && std::fabs(static_cast<double>(f)) > std::fabs(sum) ? std::nextafterf(f, 0.0f) : f;
}

void mma(const Site& site, const Mma& shape, void* acc, const unsigned* a, const unsigned* b, unsigned metadata) {
    Operands operands{&shape, acc, a, b, metadata};
    warp_operation(site, shape.name, all_lanes, &operands, run_mma);
}

void load_matrices(const Site& site, unsigned* registers, int count, const void* row, bool transposed) {
    // The lanes whose address counts read for the others.
    if (lane() < 8 * count) {
        check_shared(site, "ldmatrix", row, 16, 16);
        note_access(site, Access::read, row, 16);
    }
    Rows rows{registers, row, count, transposed};
    warp_operation(site, transposed ? "ldmatrix.trans" : "ldmatrix", all_lanes, &rows, run_load);
}

void store_matrices(const Site& site, const unsigned* registers, int count, void* row) {
    if (architecture() < 90) fail(site, "stmatrix: sm_%d has none; expected sm_90", architecture());
    Rows rows{const_cast<unsigned*>(registers), row, count, false};
    warp_operation(site, "stmatrix", all_lanes, &rows, run_store);
    if (lane() < 8 * count) note_access(site, Access::write, row, 16);
}

}  // namespace emulator
