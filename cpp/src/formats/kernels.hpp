// The kernels that exist: format × instruction set. A new kernel file adds its line here and its name to its format's
// table; tests and benchmarks enumerate the tables.
#pragma once

#include "core/kernel.hpp"

namespace fastffn {

namespace ref {
extern const FormatKernels f32_kernels, f16_kernels, bf16_kernels, int8_kernels, ternary_kernels, int4_kernels;
extern const FormatKernels sparse24_bf16_kernels, sparse24_f16_kernels, sparse24_f32_kernels, sparse24_int8_kernels;
}  // namespace ref
namespace avx2 {
extern const FormatKernels f32_kernels, f16_kernels, bf16_kernels, int8_kernels, ternary_kernels, int4_kernels;
extern const FormatKernels sparse24_bf16_kernels, sparse24_f16_kernels, sparse24_f32_kernels, sparse24_int8_kernels;
}  // namespace avx2
namespace avx512 {
extern const FormatKernels f32_kernels, f16_kernels, bf16_kernels;
extern const FormatKernels sparse24_bf16_kernels, sparse24_f16_kernels, sparse24_f32_kernels;
}  // namespace avx512
namespace avx512vnni {
extern const FormatKernels int8_kernels, sparse24_int8_kernels, ternary_kernels, int4_kernels;
}
namespace avx512bf16 {
extern const FormatKernels bf16_kernels, sparse24_bf16_kernels;
}
namespace amx {
extern const FormatKernels bf16_kernels, int8_kernels, sparse24_bf16_kernels, sparse24_int8_kernels;
extern const FormatKernels ternary_kernels, int4_kernels, int4_bf16_kernels;
}  // namespace amx

// int4 times activations in bf16.
namespace ref {
extern const FormatKernels int4_bf16_kernels;
}
namespace avx2 {
extern const FormatKernels int4_bf16_kernels;
}
namespace avx512 {
extern const FormatKernels int4_bf16_kernels;
}
namespace avx512bf16 {
extern const FormatKernels int4_bf16_kernels;
}

// ternary and int4 in the orders of codes that skip neurons.
namespace ref {
extern const FormatKernels ternary_rows_kernels, int4_rows_kernels, ternary_columns_kernels, int4_columns_kernels;
}
namespace avx2 {
extern const FormatKernels ternary_rows_kernels, int4_rows_kernels, ternary_columns_kernels, int4_columns_kernels;
}
namespace avx512vnni {
extern const FormatKernels ternary_rows_kernels, int4_rows_kernels, ternary_columns_kernels, int4_columns_kernels;
}

// avx2, avx512, avx512vnni, avx512bf16, amx: nullptr everywhere but on x86-64.
#if FASTFFN_X86
#define FASTFFN_X86_KERNELS(avx2, avx512, vnni, bf16, amx) avx2, avx512, vnni, bf16, amx
#else
#define FASTFFN_X86_KERNELS(avx2, avx512, vnni, bf16, amx) nullptr, nullptr, nullptr, nullptr, nullptr
#endif

}  // namespace fastffn
