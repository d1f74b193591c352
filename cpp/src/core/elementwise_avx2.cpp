// Activations and stores with avx2.
#include "core/simd_avx2.hpp"

#include "core/elementwise_simd.hpp"

namespace fastffn::avx2 {

namespace {
void activate(const ActivateArgs& args) noexcept { activate_any<F32>(args); }
void store_tile(const StoreArgs& args) noexcept { store_any<F32>(args); }
void normalize(const NormalizeArgs& args) noexcept { normalize_rows<F32>(args); }
void squares(const SquaresArgs& args) noexcept { square_rows<F32>(args); }
void add_tile(const AddArgs& args) noexcept { add_rows<F32>(args); }
void accumulate(const AccumulateArgs& args) noexcept { accumulate_any<F32>(args); }
float dot(const std::byte* x, DType dtype, const float* v, std::int64_t cols) noexcept {
    return dot_any<F32>(x, dtype, v, cols);
}
}  // namespace

const ElementwiseKernels elementwise = {"avx2", activate, store_tile, accumulate, dot, add_tile, normalize, squares};

}  // namespace fastffn::avx2
