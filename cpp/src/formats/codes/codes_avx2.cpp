// ternary and int4 with AVX2: VPMADDUBSW on codes and activations.
#include "formats/codes/isa_avx2.hpp"

#include "formats/codes/table.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx2 {

const FormatKernels ternary_kernels = codes_kernels<CodesIsa, 2>("ternary/avx2");
const FormatKernels int4_kernels = codes_kernels<CodesIsa, 4>("int4/avx2");

}  // namespace fastffn::avx2
