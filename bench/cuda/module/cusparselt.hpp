// The few declarations of cuSPARSELt that a product needs, as its documentation gives them; see cublaslt.hpp.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace bench::cuda::sparse {

using Status = int;  // 0: success

// Handles and descriptors are bytes of the caller's. They had 11 KiB before version 0.7 and have 512 bytes since; more is no harm.
struct alignas(64) Opaque {
    std::uint8_t data[16384] = {};
};

constexpr int order_col = 1, order_row = 2;              // cusparseOrder_t
constexpr int op_n = 0;                                  // cusparseOperation_t
constexpr int sparsity_50_percent = 0, alg_default = 0;  // cusparseLtSparsity_t, cusparseLtMatmulAlg_t
constexpr int compute_32i = 0, compute_32f = 2;          // cusparseComputeType since 0.5
constexpr int prune_strip = 1;                           // cusparseLtPruneAlg_t: the best two of each four

struct Functions {
    Status (*init)(Opaque* handle);
    Status (*version)(const Opaque* handle, int* version);
    Status (*dense)(const Opaque* handle, Opaque* matrix, std::int64_t rows, std::int64_t cols, std::int64_t ld,
                    std::uint32_t alignment, int type, int order);
    Status (*structured)(const Opaque* handle, Opaque* matrix, std::int64_t rows, std::int64_t cols, std::int64_t ld,
                         std::uint32_t alignment, int type, int order, int sparsity);
    Status (*matrix_destroy)(const Opaque* matrix);
    Status (*descriptor)(const Opaque* handle, Opaque* descriptor, int op_a, int op_b, const Opaque* a, const Opaque* b,
                         const Opaque* c, const Opaque* d, int compute_type);
    Status (*selection)(const Opaque* handle, Opaque* selection, const Opaque* descriptor, int algorithm);
    Status (*plan)(const Opaque* handle, Opaque* plan, const Opaque* descriptor, const Opaque* selection);
    Status (*plan_destroy)(const Opaque* plan);
    Status (*workspace)(const Opaque* handle, const Opaque* plan, std::size_t* bytes);
    Status (*prune)(const Opaque* handle, const Opaque* descriptor, const void* in, void* out, int algorithm,
                    cudaStream_t stream);
    Status (*compressed_size)(const Opaque* handle, const Opaque* plan, std::size_t* bytes, std::size_t* buffer_bytes);
    Status (*compress)(const Opaque* handle, const Opaque* plan, const void* dense, void* compressed, void* buffer,
                       cudaStream_t stream);
    Status (*search)(const Opaque* handle, Opaque* plan, const void* alpha, const void* a, const void* b,
                     const void* beta, const void* c, void* d, void* workspace, cudaStream_t* streams,
                     std::int32_t count);
    Status (*matmul)(const Opaque* handle, const Opaque* plan, const void* alpha, const void* a, const void* b,
                     const void* beta, const void* c, void* d, void* workspace, cudaStream_t* streams,
                     std::int32_t count);
};

}  // namespace bench::cuda::sparse
