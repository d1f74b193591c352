// Dots and weighted sums of a tree as plain loops: the specification the vector versions are tested against.
#include "core/convert.hpp"
#include "fastffn/cpu.hpp"
#include "fastffn/packed.hpp"
#include "routes/tree/kernels.hpp"

namespace fastffn {

namespace ref {

namespace {

template <Format format>
float weight_of(const std::byte* row, std::int64_t c) {
    if constexpr (format == Format::int8) return static_cast<float>(static_cast<std::int8_t>(row[c]));
    if constexpr (format == Format::f32) return load_f32(row + 4 * c, DType::f32);
    return load_f32(row + 2 * c, format == Format::f16 ? DType::f16 : DType::bf16);
}

template <Format format, bool shared>
void dots(const DotArgs& a) noexcept {
    for (std::int64_t i = 0; i < a.count; ++i) {
        const std::byte* row = a.rows[shared ? 0 : i];
        float sum = 0;
        for (std::int64_t c = 0; c < a.depth; ++c) sum += a.x[i][c] * weight_of<format>(row, c);
        a.z[i] = sum;
    }
}

template <Format format>
void sum_rows(const SumArgs& a) noexcept {
    const std::int64_t bytes = element_bytes(a.dtype);
    for (std::int64_t i = 0; i < a.count; ++i)
        for (std::int64_t c = a.col0; c < a.col0 + a.cols; ++c) {
            float sum = a.add ? load_f32(a.y[i] + c * bytes, a.dtype) : 0.0f;
            for (std::int32_t j = a.begin[i]; j < a.begin[i + 1]; ++j)
                sum += a.terms[j].weight * weight_of<format>(a.terms[j].row, c);
            store_f32(a.y[i] + c * bytes, a.dtype, sum);
        }
}

void widen(const std::byte* src, DType dtype, std::int64_t cols, float* dst) noexcept {
    const std::int64_t bytes = element_bytes(dtype);
    for (std::int64_t c = 0; c < cols; ++c) dst[c] = load_f32(src + c * bytes, dtype);
    for (std::int64_t c = cols; c < round_up(cols, 16); ++c) dst[c] = 0;
}

}  // namespace

const TreeKernels tree = {
    "tree/ref",
    {dots<Format::f32, false>, dots<Format::f16, false>, dots<Format::bf16, false>, dots<Format::int8, false>},
    {dots<Format::f32, true>, dots<Format::f16, true>, dots<Format::bf16, true>, dots<Format::int8, true>},
    {sum_rows<Format::f32>, sum_rows<Format::f16>, sum_rows<Format::bf16>, sum_rows<Format::int8>},
    widen,
};

}  // namespace ref

const TreeKernels& tree_kernels(Isa isa) noexcept {
#if FASTFFN_X86
    if (isa >= Isa::avx512) return avx512::tree;
    if (isa >= Isa::avx2) return avx2::tree;
#endif
    (void)isa;
    return ref::tree;
}

}  // namespace fastffn
