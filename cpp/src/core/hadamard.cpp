// Hadamard matrices of orders that are no powers of two, and which transform a row length has.
//
//   12, 20, 60, 108, 140   Paley I over GF(q), q = K - 1 = 3 mod 4       (Paley 1933)
//   28, 36                 Paley II over GF(q), q = K/2 - 1 = 1 mod 4
//   52, 156, 172           Goethals and Seidel's array of four circulants of order K/4 (1967); the circulants were found by a search
//                          over sequences that are constant on the orbits of a subgroup of the units: {±1} for 13, {1, 16, 22}
//                          for 39, the sixth roots of 1 for 43
#include "core/hadamard.hpp"

#include <cmath>

#include "fastffn/cpu.hpp"
#include "fastffn/hadamard.hpp"

namespace fastffn {

namespace {

constexpr int orders[] = {12, 20, 28, 36, 52, 60, 108, 140, 156, 172};
constexpr int order_count = 10;

// χ(a): 0, 1 for a square, -1 for none, over the integers modulo the odd prime q.
int quadratic_character(int a, int q) {
    a = (a % q + q) % q;
    if (a == 0) return 0;
    for (int b = 1; b <= q / 2; ++b)
        if (b * b % q == a) return 1;
    return -1;
}

int paley1(int order, int i, int j) {
    if (i == j) return 1;
    if (i == 0) return 1;
    if (j == 0) return -1;
    return quadratic_character(j - i, order - 1);
}

int paley2(int order, int i, int j) {
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
int goethals_seidel(const Circulants& c, int i, int j) {
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

int entry(int order, int i, int j) {
    for (const Circulants& c : circulants)
        if (c.order == order) return goethals_seidel(c, i, j);
    return order == 28 || order == 36 ? paley2(order, i, j) : paley1(order, i, j);
}

constexpr int table_bytes() {
    int sum = 0;
    for (int order : orders) sum += order * order / 2;
    return sum;
}

// Signs of every matrix and its transpose, made when the first is asked for: 46 KB.
class Tables {
  public:
    Tables() noexcept {
        int at = 0;
        for (int which = 0; which < order_count; ++which) {
            const int order = orders[which];
            for (int inverse = 0; inverse < 2; ++inverse) {
                begin_[which][inverse] = at;
                for (int i = 0; i < order; ++i)
                    for (int g = 0; g < order / 4; ++g) {
                        int bits = 0;
                        for (int b = 0; b < 4; ++b) {
                            const int j = 4 * g + b;
                            if ((inverse ? entry(order, j, i) : entry(order, i, j)) < 0) bits |= 8 << b;
                        }
                        signs_[at++] = static_cast<std::uint8_t>(bits);
                    }
            }
        }
    }
    const std::uint8_t* signs(int which, bool inverse) const { return signs_ + begin_[which][inverse]; }

  private:
    std::uint8_t signs_[table_bytes()];
    int begin_[order_count][2];
};

bool is_power(std::int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

}  // namespace

bool hadamard_shape(Hadamard mode, std::int64_t n, std::int64_t block, bool inverse, HadamardShape* shape) noexcept {
    if (n < 1) return false;
    std::int64_t power = 0, order = 1;
    const std::uint8_t* signs = nullptr;
    switch (mode) {
        case Hadamard::none: power = 1; break;
        case Hadamard::pow2: power = is_power(n) ? n : 0; break;
        case Hadamard::kron:
            if (is_power(n)) power = n;
            for (int which = 0; which < order_count && !power; ++which)
                if (n % orders[which] == 0 && is_power(n / orders[which])) {
                    static const Tables tables;
                    order = orders[which];
                    power = n / order;
                    signs = tables.signs(which, inverse);
                }
            break;
        case Hadamard::block:
            power = block ? block : n & -n;
            if (!is_power(power) || n % power != 0 || power < 2) power = 0;
            break;
        default: return false;
    }
    if (power == 0) return false;
    const auto entries = static_cast<double>(order * power);
    *shape = {n, power, order, static_cast<float>(1.0 / std::sqrt(entries)), signs};
    return true;
}

HadamardKernel hadamard_kernel(Isa isa) noexcept {
#if FASTFFN_X86
    if (isa >= Isa::avx512) return avx512::hadamard_row;
    if (isa >= Isa::avx2) return avx2::hadamard_row;
#endif
    (void)isa;
    return ref::hadamard_row;
}

}  // namespace fastffn
