#include "launch/codes.hpp"

#include "kernels/codes_few_tokens.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

template <int bits, int token_tiles, bool is_gated>
cudaError_t run(const CodesArgs& args, const Grid& grid) {
    return args.group ? launch(codes_few_tokens_kernel<bits, 8, token_tiles, is_gated, true>, grid, args)
                      : launch(codes_few_tokens_kernel<bits, 8, token_tiles, is_gated, false>, grid, args);
}

template <int bits>
cudaError_t run(const CodesArgs& args, const Grid& grid) {
    if (args.tokens <= 8) return args.w_gate.codes ? run<bits, 1, true>(args, grid) : run<bits, 1, false>(args, grid);
    return args.w_gate.codes ? run<bits, 2, true>(args, grid) : run<bits, 2, false>(args, grid);
}

}  // namespace

cudaError_t launch_codes_few_tokens(const CodesArgs& args, cudaStream_t stream) {
    if (args.bits != 2 && args.bits != 4) return cudaErrorInvalidValue;
    if (args.padded_depth % codes_chunk_columns(args.bits) != 0 || args.x_stride % 16 != 0 || args.group % 32 != 0)
        return cudaErrorInvalidValue;
    if (!args.group && args.zeros != CodesZeros::fixed) return cudaErrorInvalidValue;
    if (args.tokens == 0 || args.out_features == 0) return cudaSuccess;
    const std::int64_t blocks = (args.out_features + codes_rows - 1) / codes_rows,
                       columns = args.tokens <= 8 ? 1 : (args.tokens + 15) / 16;
    if (blocks > 0x7fffffff || columns > 65535) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns)), dim3(256), 0, stream,
                       "codes_few_tokens"};
    return args.bits == 2 ? run<2>(args, grid) : run<4>(args, grid);
}

}  // namespace fastffn::cuda
