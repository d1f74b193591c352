// 2:4 products by cuSPARSELt.
#include "cusparselt.hpp"

#include <algorithm>

#include "cublaslt.hpp"
#include "library.hpp"
#include "product.hpp"

namespace bench::cuda {

namespace {

using namespace sparse;

Functions functions;
Opaque handle;
bool loaded = false;

void check(Status status, const char* what) {
    if (status != 0) throw std::runtime_error(std::string(what) + ": status " + std::to_string(status));
}

// w is the structured matrix, as rows; the rows of x and y are columns there.
class SparseProduct : public Product {
  public:
    SparseProduct(const ProductShape& shape, const void* w, const void* x, void* y, cudaStream_t stream)
        : shape_(shape) {
        const bool integers = shape.element == Element::i8;
        const int type = integers ? lt::r_8i : shape.element == Element::f16 ? lt::r_16f : lt::r_16bf;
        if (shape.element == Element::f32 || shape.element == Element::i32)
            throw std::runtime_error("cuSPARSELt: f16, bf16 and i8 only");
        constexpr std::uint32_t alignment = 16;
        check(functions.structured(&handle, &w_, shape.out_features, shape.in_features, shape.in_features, alignment,
                                   type, order_row, sparsity_50_percent),
              "cusparseLtStructuredDescriptorInit");
        check(functions.dense(&handle, &x_, shape.in_features, shape.tokens, shape.in_features, alignment, type,
                              order_col),
              "cusparseLtDenseDescriptorInit");
        check(functions.dense(&handle, &y_, shape.out_features, shape.tokens, shape.out_features, alignment,
                              integers ? lt::r_32i : type, order_col),
              "cusparseLtDenseDescriptorInit");
        check(functions.descriptor(&handle, &descriptor_, op_n, op_n, &w_, &x_, &y_, &y_,
                                   integers ? compute_32i : compute_32f),
              "cusparseLtMatmulDescriptorInit");
        check(functions.selection(&handle, &selection_, &descriptor_, alg_default), "cusparseLtMatmulAlgSelectionInit");
        check(functions.plan(&handle, &plan_, &descriptor_, &selection_), "cusparseLtMatmulPlanInit");
        planned_ = true;
        check(functions.compressed_size(&handle, &plan_, &compressed_, &buffer_), "cusparseLtSpMMACompressedSize");
        make_scratch();
        // The library's own search for its fastest kernel.
        const Scratch encoded(weight_bytes());
        encode(w, encoded.data());
        const float one = 1, zero = 0;
        check(functions.search(&handle, &plan_, &one, encoded.data(), x, &zero, y, y, scratch_->data(), &stream, 1),
              "cusparseLtMatmulSearch");
        make_scratch();
        if (cudaStreamSynchronize(stream) != cudaSuccess)
            throw std::runtime_error("cusparseLtMatmulSearch failed on the device");
    }
    ~SparseProduct() override {
        if (planned_) functions.plan_destroy(&plan_);
        for (Opaque* matrix : {&w_, &x_, &y_}) functions.matrix_destroy(matrix);
    }
    std::int64_t weight_bytes() const override { return static_cast<std::int64_t>(compressed_); }
    std::int64_t memory_bytes() const override { return scratch_->bytes(); }
    void encode(const void* w, void* to) override {
        const std::int64_t dense_bytes = shape_.out_features * shape_.in_features * element_bytes(shape_.element);
        const Scratch pruned(dense_bytes), buffer(static_cast<std::int64_t>(buffer_));
        check(functions.prune(&handle, &descriptor_, w, pruned.data(), prune_strip, nullptr), "cusparseLtSpMMAPrune");
        check(functions.compress(&handle, &plan_, pruned.data(), to, buffer.data(), nullptr),
              "cusparseLtSpMMACompress");
        if (cudaStreamSynchronize(nullptr) != cudaSuccess)
            throw std::runtime_error("cusparseLtSpMMACompress failed on the device");
    }
    void multiply(const void* w, const void* x, void* y, cudaStream_t stream) override {
        const float one = 1, zero = 0;
        check(functions.matmul(&handle, &plan_, &one, w, x, &zero, y, y, scratch_->data(), &stream, 1),
              "cusparseLtMatmul");
    }

  private:
    void make_scratch() {
        std::size_t bytes = 0;
        check(functions.workspace(&handle, &plan_, &bytes), "cusparseLtMatmulGetWorkspace");
        if (!scratch_ || scratch_->bytes() < static_cast<std::int64_t>(bytes))
            scratch_ = std::make_unique<Scratch>(static_cast<std::int64_t>(bytes));
    }

    ProductShape shape_;
    Opaque w_, x_, y_, descriptor_, selection_, plan_;
    bool planned_ = false;
    std::size_t compressed_ = 0, buffer_ = 0;
    std::unique_ptr<Scratch> scratch_;
};

}  // namespace

void load_cusparselt(const std::string& places, std::string* text) {
    std::string path;
    void* const library = open_library(places, {"libcusparseLt.so.0", "libcusparseLt.so"}, &path);
    Functions f;
    find_function(library, "cusparseLtInit", &f.init);
    find_function(library, "cusparseLtGetVersion", &f.version);
    find_function(library, "cusparseLtDenseDescriptorInit", &f.dense);
    find_function(library, "cusparseLtStructuredDescriptorInit", &f.structured);
    find_function(library, "cusparseLtMatDescriptorDestroy", &f.matrix_destroy);
    find_function(library, "cusparseLtMatmulDescriptorInit", &f.descriptor);
    find_function(library, "cusparseLtMatmulAlgSelectionInit", &f.selection);
    find_function(library, "cusparseLtMatmulPlanInit", &f.plan);
    find_function(library, "cusparseLtMatmulPlanDestroy", &f.plan_destroy);
    find_function(library, "cusparseLtMatmulGetWorkspace", &f.workspace);
    find_function(library, "cusparseLtSpMMAPrune", &f.prune);
    find_function(library, "cusparseLtSpMMACompressedSize", &f.compressed_size);
    find_function(library, "cusparseLtSpMMACompress", &f.compress);
    find_function(library, "cusparseLtMatmulSearch", &f.search);
    find_function(library, "cusparseLtMatmul", &f.matmul);
    check(f.init(&handle), "cusparseLtInit");
    int version = 0;
    check(f.version(&handle, &version), "cusparseLtGetVersion");
    functions = f;
    loaded = true;
    *text = path + ", version " + std::to_string(version);
}

std::unique_ptr<Product> cusparselt_product(const ProductShape& shape, const void* w, const void* x, void* y,
                                            cudaStream_t stream) {
    if (!loaded) throw std::runtime_error("cuSPARSELt is not loaded");
    return std::make_unique<SparseProduct>(shape, w, x, y, stream);
}

}  // namespace bench::cuda
