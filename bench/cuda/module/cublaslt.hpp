// The few declarations of cuBLASLt that a product needs, as its documentation gives them: names and numbers are the library's, so
// that nothing but the library itself has to be installed. Unchanged in cuBLAS 11 to 13.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace bench::cuda::lt {

using Handle = struct OpaqueHandle*;
using MatmulDesc = struct OpaqueDesc*;
using Layout = struct OpaqueLayout*;
using Preference = struct OpaquePreference*;
using Status = int;  // 0: success

constexpr int r_32f = 0, r_16f = 2, r_8i = 3, r_32i = 10, r_16bf = 14;  // cudaDataType
constexpr int compute_32f = 68, compute_32i = 72;                       // cublasComputeType_t
constexpr int op_n = 0, op_t = 1;                                       // cublasOperation_t
constexpr int desc_transa = 3, desc_transb = 4;                         // cublasLtMatmulDescAttributes_t
constexpr int pref_max_workspace_bytes = 1;                             // cublasLtMatmulPreferenceAttributes_t

struct Algo {
    std::uint64_t data[8];
};
struct HeuristicResult {
    Algo algo;
    std::size_t workspace_size;
    Status state;
    float waves_count;
    int reserved[4];
};

struct Functions {
    Status (*create)(Handle*);
    std::size_t (*version)();
    Status (*desc_create)(MatmulDesc*, int compute_type, int scale_type);
    Status (*desc_destroy)(MatmulDesc);
    Status (*desc_set)(MatmulDesc, int attribute, const void* value, std::size_t bytes);
    Status (*layout_create)(Layout*, int type, std::uint64_t rows, std::uint64_t cols, std::int64_t ld);
    Status (*layout_destroy)(Layout);
    Status (*preference_create)(Preference*);
    Status (*preference_destroy)(Preference);
    Status (*preference_set)(Preference, int attribute, const void* value, std::size_t bytes);
    Status (*heuristic)(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference, int wanted,
                        HeuristicResult*, int* found);
    Status (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, Layout, const void* b, Layout,
                     const void* beta, const void* c, Layout, void* d, Layout, const Algo*, void* workspace,
                     std::size_t workspace_bytes, cudaStream_t);
};

}  // namespace bench::cuda::lt
