// ternary and int4 with AVX-512 VNNI: VPDPBUSD on codes and activations.
#include "formats/codes/isa_avx512vnni.hpp"

#include "formats/codes/table.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx512vnni {

const FormatKernels ternary_kernels = codes_kernels<CodesIsa, 2>("ternary/avx512vnni");
const FormatKernels int4_kernels = codes_kernels<CodesIsa, 4>("int4/avx512vnni");

}  // namespace fastffn::avx512vnni
