// Hadamard matrices of orders that are no powers of two, and how a row length splits into such an order and a power of two. The
// CPU's kernels and the CUDA plugin's both build their signs from here.
//
//   12, 20, 60, 108, 140   Paley I over GF(q), q = K - 1 = 3 mod 4       (Paley 1933)
//   28, 36                 Paley II over GF(q), q = K/2 - 1 = 1 mod 4
//   52, 156, 172           Goethals and Seidel's array of four circulants of order K/4 (1967); the circulants were found by a search
//                          over sequences that are constant on the orbits of a subgroup of the units: {±1} for 13, {1, 16, 22}
//                          for 39, the sixth roots of 1 for 43
#pragma once

#include <cstdint>

#include "fastffn/hadamard.hpp"

namespace fastffn {

constexpr int hadamard_orders[] = {12, 20, 28, 36, 52, 60, 108, 140, 156, 172};
constexpr int hadamard_order_count = 10;

namespace hadamard_matrices {

// χ(a): 0, 1 for a square, -1 for none, over the integers modulo the odd prime q.
inline int quadratic_character(int a, int q) {
    a = (a % q + q) % q;
    if (a == 0) return 0;
    for (int b = 1; b <= q / 2; ++b)
        if (b * b % q == a) return 1;
    return -1;
}

inline int paley1(int order, int i, int j) {
    if (i == j) return 1;
    if (i == 0) return 1;
    if (j == 0) return -1;
    return quadratic_character(j - i, order - 1);
}

inline int paley2(int order, int i, int j) {
    const int q = order / 2 - 1, a = i / 2, b = j / 2;
    // The symmetric conference matrix [0 1; 1 Q], its zeros replaced by [1 -1; -1 -1], its signs s by s · [1 1; 1 -1].
    if (a == b) return i % 2 == 0 && j % 2 == 0 ? 1 : -1;
    const int sign = a == 0 || b == 0 ? 1 : quadratic_character(b - a, q);
    return i % 2 == 1 && j % 2 == 1 ? -sign : sign;
}

// Bit k is set where entry k of a circulant's first row is -1.
struct Circulants {
    int order;
    std::uint64_t negative[4];
};
constexpr Circulants circulants[] = {
    {52, {0x14ca, 0xffc, 0xd2c, 0x9e4}},
    {156, {0x58f68ed450, 0x1af5287000, 0x6e2ba6c6d8, 0x364d303b88}},
    {172, {0x5f8536ca1fa, 0x18513fc8a18, 0x5320e6704ca, 0x6b0b108d0d6}},
};

// Blocks  A BR CR DR | -BR A D'R -C'R | -CR -D'R A B'R | -DR C'R -B'R A,  R the exchange matrix, ' the transpose.
inline int goethals_seidel(const Circulants& c, int i, int j) {
    const int t = c.order / 4, row = i / t, col = j / t;
    i %= t;
    j %= t;
    const int which = row ^ col;
    bool transposed = false;
    int sign = 1;
    if (row == col) return (c.negative[0] >> ((j - i + t) % t) & 1) ? -1 : 1;
    if (row == 0) sign = 1;
    else if (col == 0) sign = -1;
    else {
        transposed = true;
        // (1,2) D', (1,3) -C', (2,1) -D', (2,3) B', (3,1) C', (3,2) -B'
        sign = (row == 1 && col == 2) || (row == 2 && col == 3) || (row == 3 && col == 1) ? 1 : -1;
    }
    const int k = t - 1 - j;  // times R
    const int at = transposed ? (i - k + t) % t : (k - i + t) % t;
    return (c.negative[which] >> at & 1) ? -sign : sign;
}

}  // namespace hadamard_matrices

// Entry (i, j) of the matrix of one of those orders: 1 or -1.
inline int hadamard_entry(int order, int i, int j) {
    using namespace hadamard_matrices;
    for (const Circulants& c : circulants)
        if (c.order == order) return goethals_seidel(c, i, j);
    return order == 28 || order == 36 ? paley2(order, i, j) : paley1(order, i, j);
}

inline bool is_power_of_two(std::int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

// n = order · power · (a number of blocks), as the mode says. block: of Hadamard::block, 0 for the largest. False: no such transform.
inline bool split_hadamard(Hadamard mode, std::int64_t n, std::int64_t block, std::int64_t* power,
                           std::int64_t* order) {
    *power = 0;
    *order = 1;
    if (n < 1) return false;
    switch (mode) {
        case Hadamard::none: *power = 1; break;
        case Hadamard::pow2: *power = is_power_of_two(n) ? n : 0; break;
        case Hadamard::kron:
            if (is_power_of_two(n)) *power = n;
            for (int which = 0; which < hadamard_order_count && !*power; ++which)
                if (n % hadamard_orders[which] == 0 && is_power_of_two(n / hadamard_orders[which])) {
                    *order = hadamard_orders[which];
                    *power = n / *order;
                }
            break;
        case Hadamard::block:
            *power = block ? block : n & -n;
            if (!is_power_of_two(*power) || n % *power != 0 || *power < 2) *power = 0;
            break;
    }
    return *power != 0;
}

}  // namespace fastffn
