// The kernels of codes for one instruction set, from its CodesIsa.
#pragma once

#include "formats/codes/multiply.hpp"
#include "formats/codes/rows.hpp"

namespace fastffn {
namespace {

template <class Isa, int bits>
constexpr FormatKernels codes_kernels(const char* name) {
    return {name,
            few_rows_limit,
            panels_per_task,
            true,
            false,
            1,
            codes_prepared_bytes<Isa, bits>,
            codes_prepare<Isa, bits>,
            codes_multiply<Isa, bits>};
}

}  // namespace
}  // namespace fastffn
