// Compiled where the headers of cuBLASLt or cuSPARSELt are installed: the declarations in cublaslt.hpp and cusparselt.hpp agree with
// them. Nothing here runs.
#include <cstddef>

#include "cublaslt.hpp"
#include "cusparselt.hpp"

namespace bench::cuda {

namespace {

template <class F>
struct Parameters;
template <class R, class... A>
struct Parameters<R (*)(A...)> {
    static constexpr std::size_t count = sizeof...(A);
};
// Types differ in name alone, so that their number is what can be compared.
#define FASTFFN_SAME_PARAMETERS(functions, member, function) \
    static_assert(Parameters<decltype(functions::member)>::count == Parameters<decltype(&function)>::count, #function)

}  // namespace

}  // namespace bench::cuda

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>

namespace bench::cuda::lt {
static_assert(r_32f == CUDA_R_32F && r_16f == CUDA_R_16F && r_8i == CUDA_R_8I && r_32i == CUDA_R_32I &&
              r_16bf == CUDA_R_16BF);
static_assert(compute_32f == CUBLAS_COMPUTE_32F && compute_32i == CUBLAS_COMPUTE_32I);
static_assert(op_n == CUBLAS_OP_N && op_t == CUBLAS_OP_T);
static_assert(desc_transa == CUBLASLT_MATMUL_DESC_TRANSA && desc_transb == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(pref_max_workspace_bytes == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, workspace_size) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
FASTFFN_SAME_PARAMETERS(Functions, create, cublasLtCreate);
FASTFFN_SAME_PARAMETERS(Functions, desc_create, cublasLtMatmulDescCreate);
FASTFFN_SAME_PARAMETERS(Functions, desc_set, cublasLtMatmulDescSetAttribute);
FASTFFN_SAME_PARAMETERS(Functions, layout_create, cublasLtMatrixLayoutCreate);
FASTFFN_SAME_PARAMETERS(Functions, preference_set, cublasLtMatmulPreferenceSetAttribute);
FASTFFN_SAME_PARAMETERS(Functions, heuristic, cublasLtMatmulAlgoGetHeuristic);
FASTFFN_SAME_PARAMETERS(Functions, matmul, cublasLtMatmul);
}  // namespace bench::cuda::lt
#endif

#if __has_include(<cusparseLt.h>)
#include <cusparseLt.h>

namespace bench::cuda::sparse {
static_assert(order_col == CUSPARSE_ORDER_COL && order_row == CUSPARSE_ORDER_ROW);
static_assert(op_n == CUSPARSE_OPERATION_NON_TRANSPOSE);
static_assert(sparsity_50_percent == CUSPARSELT_SPARSITY_50_PERCENT && alg_default == CUSPARSELT_MATMUL_ALG_DEFAULT);
static_assert(compute_32i == CUSPARSE_COMPUTE_32I && compute_32f == CUSPARSE_COMPUTE_32F);
static_assert(prune_strip == CUSPARSELT_PRUNE_SPMMA_STRIP);
static_assert(sizeof(Opaque) >= sizeof(cusparseLtHandle_t) && sizeof(Opaque) >= sizeof(cusparseLtMatmulPlan_t));
static_assert(sizeof(Opaque) >= sizeof(cusparseLtMatDescriptor_t) &&
              sizeof(Opaque) >= sizeof(cusparseLtMatmulDescriptor_t));
FASTFFN_SAME_PARAMETERS(Functions, init, cusparseLtInit);
FASTFFN_SAME_PARAMETERS(Functions, version, cusparseLtGetVersion);
FASTFFN_SAME_PARAMETERS(Functions, dense, cusparseLtDenseDescriptorInit);
FASTFFN_SAME_PARAMETERS(Functions, structured, cusparseLtStructuredDescriptorInit);
FASTFFN_SAME_PARAMETERS(Functions, descriptor, cusparseLtMatmulDescriptorInit);
FASTFFN_SAME_PARAMETERS(Functions, selection, cusparseLtMatmulAlgSelectionInit);
FASTFFN_SAME_PARAMETERS(Functions, plan, cusparseLtMatmulPlanInit);
FASTFFN_SAME_PARAMETERS(Functions, workspace, cusparseLtMatmulGetWorkspace);
FASTFFN_SAME_PARAMETERS(Functions, prune, cusparseLtSpMMAPrune);
FASTFFN_SAME_PARAMETERS(Functions, compressed_size, cusparseLtSpMMACompressedSize);
FASTFFN_SAME_PARAMETERS(Functions, compress, cusparseLtSpMMACompress);
FASTFFN_SAME_PARAMETERS(Functions, search, cusparseLtMatmulSearch);
FASTFFN_SAME_PARAMETERS(Functions, matmul, cusparseLtMatmul);
}  // namespace bench::cuda::sparse
#endif
