// Rows of f32 words for the kernels that multiply in f32, written once; include after the F32 of an instruction set.
#pragma once

#include "core/kernel.hpp"
#include "formats/common/words.hpp"

namespace fastffn {
namespace {

inline std::int64_t f32_words_bytes(std::int64_t total_rows, std::int64_t words) noexcept {
    return total_rows * words_stride(words);
}

// round(V) is applied to every element: identity, or rounding to bf16 and back. `words` >= depth: zeros fill the rest.
template <class V, class Round>
void prepare_f32_words(const PrepareArgs& a, std::int64_t words, Round round) {
    const std::int64_t stride = words_stride(words), bytes = element_bytes(a.dtype);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        auto* dst = reinterpret_cast<float*>(a.prepared + (a.row0 + r) * stride) + a.col0;
        // Whole registers: lanes past the last column come out as 0, fill the words of the last step, and stay within the
        // row's cache-line padding.
        for (std::int64_t c = 0; c < a.cols; c += V::width)
            store(dst + c, round(V::load_as(src + c * bytes, a.dtype, a.cols - c)));
    }
}

}  // namespace
}  // namespace fastffn
