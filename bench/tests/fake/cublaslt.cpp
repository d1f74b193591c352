// Stands for libcublasLt.so.13 in tests: the functions that the bench calls, on host memory, by plain loops. It believes what the
// descriptors say, so that wrong ones give wrong numbers. Offers three algorithms, of which the first does not run.
#include <cstdlib>
#include <new>

#include "numbers.hpp"

namespace {

struct Desc {
    int compute_type, scale_type;
    std::int32_t transposed[2] = {0, 0};
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int cublasLtCreate(void** handle) { return *handle = new int(7), 0; }
EXPORT std::size_t cublasLtGetVersion() { return 130000; }
EXPORT int cublasLtMatmulDescCreate(Desc** desc, int compute_type, int scale_type) {
    return *desc = new Desc{compute_type, scale_type, {}}, 0;
}
EXPORT int cublasLtMatmulDescDestroy(Desc* desc) { return delete desc, 0; }
EXPORT int cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* value, std::size_t bytes) {
    if (bytes != 4 || (attribute != 3 && attribute != 4)) return 7;
    std::memcpy(&desc->transposed[attribute - 3], value, 4);
    return 0;
}
EXPORT int cublasLtMatrixLayoutCreate(fake::Matrix** layout, int type, std::uint64_t rows, std::uint64_t cols,
                                      std::int64_t ld) {
    if (ld < static_cast<std::int64_t>(rows)) return 7;
    *layout = new fake::Matrix;
    (*layout)->type = type;
    (*layout)->rows = static_cast<std::int64_t>(rows);
    (*layout)->cols = static_cast<std::int64_t>(cols);
    (*layout)->ld = ld;
    return 0;
}
EXPORT int cublasLtMatrixLayoutDestroy(fake::Matrix* layout) { return delete layout, 0; }
EXPORT int cublasLtMatmulPreferenceCreate(std::size_t** preference) { return *preference = new std::size_t(0), 0; }
EXPORT int cublasLtMatmulPreferenceDestroy(std::size_t* preference) { return delete preference, 0; }
EXPORT int cublasLtMatmulPreferenceSetAttribute(std::size_t* preference, int attribute, const void* value,
                                                std::size_t bytes) {
    if (attribute != 1 || bytes != sizeof(std::size_t)) return 7;
    std::memcpy(preference, value, bytes);
    return 0;
}

struct HeuristicResult {
    std::uint64_t algo[8];
    std::size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

EXPORT int cublasLtMatmulAlgoGetHeuristic(void*, Desc* desc, fake::Matrix* a, fake::Matrix*, fake::Matrix*,
                                          fake::Matrix*, std::size_t* preference, int wanted, HeuristicResult* results,
                                          int* found) {
    // As the library: 8-bit products need whole words, and integers for their sums.
    if (a->type == fake::r_8i && (desc->compute_type != 72 || desc->scale_type != fake::r_32i || a->rows % 4 != 0))
        return 15;
    if (a->type != fake::r_8i && (desc->compute_type != 68 || desc->scale_type != fake::r_32f)) return 15;
    *found = wanted < 3 ? wanted : 3;
    for (int i = 0; i < *found; ++i) {
        results[i] = {};
        results[i].algo[0] = static_cast<std::uint64_t>(i);
        results[i].workspace_bytes = *preference / 2;
    }
    return 0;
}

EXPORT int cublasLtMatmul(void*, Desc* desc, const void* alpha, const void* a, fake::Matrix* a_layout, const void* b,
                          fake::Matrix* b_layout, const void* beta, const void*, fake::Matrix*, void* d,
                          fake::Matrix* d_layout, const std::uint64_t* algo, void* workspace, std::size_t, void*) {
    if (algo[0] == 0) return 13;
    const std::int32_t one_i = 1;
    const float one = 1;
    const void* wanted = desc->scale_type == fake::r_32i ? static_cast<const void*>(&one_i) : &one;
    std::int32_t zero;
    std::memcpy(&zero, beta, 4);
    if (std::memcmp(alpha, wanted, 4) != 0 || zero != 0 || !workspace) return 7;
    fake::Matrix left = *a_layout, right = *b_layout;
    left.transposed = desc->transposed[0] != 0;
    right.transposed = desc->transposed[1] != 0;
    if (!fake::multiply(left, a, right, b, *d_layout, d)) return 7;
    // So that a test sees the bench notice.
    if (std::getenv("FAKE_CUBLASLT_WRONG")) fake::store(d, d_layout->type, 0, 1e3);
    return 0;
}
