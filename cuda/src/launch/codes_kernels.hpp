// What launchers of codes share: checks, and the choice of a kernel's types.
#pragma once

#include <type_traits>

#include "kernels/codes.cuh"

namespace fastffn::cuda {
namespace {

inline bool wrong_codes(const CodesArgs& args) {
    if (args.bits != 2 && args.bits != 4) return true;
    if (args.padded_depth % codes_chunk_columns(args.bits) != 0 || args.x_stride % 16 != 0) return true;
    if (args.is_bf16) {
        if (args.bits != 4 || args.group == 0 || args.x_scales) return true;
        if (args.zeros != CodesZeros::fixed && !args.x_sums) return true;
    } else if (!args.x_sums || !args.x_scales) {
        return true;
    }
    if (args.group == 0) return args.bits == 4 || args.zeros != CodesZeros::fixed;
    return args.group < 32 || args.group > 1024 || (args.group & (args.group - 1)) != 0;
}

inline CodesTokens tokens_of(const CodesArgs& args, const TokenGroups* groups) {
    CodesTokens tokens = {{args.tokens}, {}, groups != nullptr};
    if (groups) tokens.grouped.groups = *groups;
    return tokens;
}

// Calls f with the kind of codes and whether they have groups; 4 bits always have.
template <class F>
cudaError_t with_codes(const CodesArgs& args, F f) {
    if (args.bits == 4) return args.is_bf16 ? f(Bf16Codes(), std::true_type()) : f(ByteCodes<4>(), std::true_type());
    return args.group ? f(ByteCodes<2>(), std::true_type()) : f(ByteCodes<2>(), std::false_type());
}

}  // namespace
}  // namespace fastffn::cuda
