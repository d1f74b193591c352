// Stands for libcusparseLt.so.0 in tests; see cublaslt.cpp. "Compressed" weights are the pruned ones, every byte changed.
#include <vector>

#include "numbers.hpp"

namespace {

struct Descriptor {
    const fake::Matrix *a, *b, *c;
    int compute_type;
};
struct Plan {
    Descriptor descriptor;
    bool searched;
};

std::int64_t bytes_of(const fake::Matrix& matrix) {
    return matrix.rows * matrix.cols * (matrix.type == fake::r_8i ? 1 : 2);
}

template <class T>
T* as(void* opaque) {
    return static_cast<T*>(opaque);
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int cusparseLtInit(void* handle) { return *as<int>(handle) = 42, 0; }
EXPORT int cusparseLtGetVersion(const int* handle, int* version) { return *version = 1000, *handle == 42 ? 0 : 1; }
EXPORT int cusparseLtDenseDescriptorInit(const int* handle, void* matrix, std::int64_t rows, std::int64_t cols,
                                         std::int64_t ld, std::uint32_t alignment, int type, int order) {
    if (*handle != 42 || alignment < 16 || ld < (order == 2 ? cols : rows)) return 3;
    *as<fake::Matrix>(matrix) = {type, rows, cols, ld, order == 2, false};
    return 0;
}
EXPORT int cusparseLtStructuredDescriptorInit(const int* handle, void* matrix, std::int64_t rows, std::int64_t cols,
                                              std::int64_t ld, std::uint32_t alignment, int type, int order,
                                              int sparsity) {
    if (sparsity != 0 || cols % 16 != 0) return 3;
    return cusparseLtDenseDescriptorInit(handle, matrix, rows, cols, ld, alignment, type, order);
}
EXPORT int cusparseLtMatDescriptorDestroy(const void*) { return 0; }
EXPORT int cusparseLtMatmulDescriptorInit(const int*, void* descriptor, int op_a, int op_b, const fake::Matrix* a,
                                          const fake::Matrix* b, const fake::Matrix* c, const fake::Matrix* d,
                                          int compute_type) {
    if (op_a != 0 || op_b != 0 || c != d || compute_type != (a->type == fake::r_8i ? 0 : 2)) return 3;
    *as<Descriptor>(descriptor) = {a, b, c, compute_type};
    return 0;
}
EXPORT int cusparseLtMatmulAlgSelectionInit(const int*, void* selection, const void*, int algorithm) {
    return *as<int>(selection) = algorithm, algorithm;
}
EXPORT int cusparseLtMatmulPlanInit(const int*, void* plan, const Descriptor* descriptor, const void*) {
    return *as<Plan>(plan) = {*descriptor, false}, 0;
}
EXPORT int cusparseLtMatmulPlanDestroy(const void*) { return 0; }
EXPORT int cusparseLtMatmulGetWorkspace(const int*, const Plan* plan, std::size_t* bytes) {
    return *bytes = plan->searched ? 4096 : 1024, 0;
}
EXPORT int cusparseLtSpMMAPrune(const int*, const Descriptor* descriptor, const void* in, void* out, int algorithm,
                                void*) {
    if (algorithm != 1) return 3;
    std::memcpy(out, in, static_cast<std::size_t>(bytes_of(*descriptor->a)));
    for (std::int64_t i = 0; i < descriptor->a->rows * descriptor->a->cols; i += 4) {
        int nonzeros = 0;
        for (std::int64_t k = i; k < i + 4; ++k) nonzeros += fake::load(in, descriptor->a->type, k) != 0;
        if (nonzeros > 2) return 4;  // the bench's weights are 2:4 already: nothing may be lost
    }
    return 0;
}
EXPORT int cusparseLtSpMMACompressedSize(const int*, const Plan* plan, std::size_t* bytes, std::size_t* buffer_bytes) {
    *bytes = static_cast<std::size_t>(bytes_of(*plan->descriptor.a));
    return *buffer_bytes = 512, 0;
}
EXPORT int cusparseLtSpMMACompress(const int*, const Plan* plan, const void* dense, void* compressed, void* buffer,
                                   void*) {
    std::memset(buffer, 1, 512);
    for (std::int64_t i = 0; i < bytes_of(*plan->descriptor.a); ++i)
        as<unsigned char>(compressed)[i] = static_cast<const unsigned char*>(dense)[i] ^ 0x5A;
    return 0;
}
EXPORT int cusparseLtMatmul(const int*, const Plan* plan, const float* alpha, const void* a, const void* b,
                            const float* beta, const void*, void* d, void* workspace, void**, std::int32_t streams) {
    if (*alpha != 1 || *beta != 0 || !workspace || streams != 1) return 3;
    std::vector<unsigned char> plain(static_cast<std::size_t>(bytes_of(*plan->descriptor.a)));
    for (std::size_t i = 0; i < plain.size(); ++i) plain[i] = static_cast<const unsigned char*>(a)[i] ^ 0x5A;
    return fake::multiply(*plan->descriptor.a, plain.data(), *plan->descriptor.b, b, *plan->descriptor.c, d) ? 0 : 3;
}
EXPORT int cusparseLtMatmulSearch(const int* handle, void* plan, const float* alpha, const void* a, const void* b,
                                  const float* beta, const void* c, void* d, void* workspace, void** streams,
                                  std::int32_t count) {
    as<Plan>(plan)->searched = true;
    return cusparseLtMatmul(handle, as<Plan>(plan), alpha, a, b, beta, c, d, workspace, streams, count);
}
