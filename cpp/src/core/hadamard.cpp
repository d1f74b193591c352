// Signs of the matrices for the kernels, and which transform a row length has.
#include "core/hadamard.hpp"

#include <cmath>

#include "core/hadamard_matrices.hpp"
#include "fastffn/cpu.hpp"

namespace fastffn {

namespace {

constexpr int table_bytes() {
    int sum = 0;
    for (int order : hadamard_orders) sum += order * order / 2;
    return sum;
}

// Signs of every matrix and its transpose, made when the first is asked for: 46 KB.
class Tables {
  public:
    Tables() noexcept {
        int at = 0;
        for (int which = 0; which < hadamard_order_count; ++which) {
            const int order = hadamard_orders[which];
            for (int inverse = 0; inverse < 2; ++inverse) {
                begin_[which][inverse] = at;
                for (int i = 0; i < order; ++i)
                    for (int g = 0; g < order / 4; ++g) {
                        int bits = 0;
                        for (int b = 0; b < 4; ++b) {
                            const int j = 4 * g + b;
                            if ((inverse ? hadamard_entry(order, j, i) : hadamard_entry(order, i, j)) < 0)
                                bits |= 8 << b;
                        }
                        signs_[at++] = static_cast<std::uint8_t>(bits);
                    }
            }
        }
    }
    const std::uint8_t* signs(int which, bool inverse) const { return signs_ + begin_[which][inverse]; }

  private:
    std::uint8_t signs_[table_bytes()];
    int begin_[hadamard_order_count][2];
};

}  // namespace

bool hadamard_shape(Hadamard mode, std::int64_t n, std::int64_t block, bool inverse, HadamardShape* shape) noexcept {
    std::int64_t power = 0, order = 1;
    if (!split_hadamard(mode, n, block, &power, &order)) return false;
    const std::uint8_t* signs = nullptr;
    for (int which = 0; which < hadamard_order_count; ++which)
        if (hadamard_orders[which] == order) {
            static const Tables tables;
            signs = tables.signs(which, inverse);
        }
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
