// Dense products by cuBLASLt.
#include "cublaslt.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "library.hpp"
#include "product.hpp"

namespace bench::cuda {

namespace {

using namespace lt;

Functions functions;
Handle handle = nullptr;

void check(Status status, const char* what) {
    if (status != 0) throw std::runtime_error(std::string(what) + ": status " + std::to_string(status));
}

int type_of(Element element) {
    switch (element) {
        case Element::f32: return r_32f;
        case Element::f16: return r_16f;
        case Element::bf16: return r_16bf;
        case Element::i8: return r_8i;
        case Element::i32: return r_32i;
    }
    return r_32f;
}

// Rows that are contiguous here are columns there: yᵀ [out, tokens] = (wᵀ)ᵀ · xᵀ.
class DenseProduct : public Product {
  public:
    DenseProduct(const ProductShape& shape, const void* w, const void* x, void* y, cudaStream_t stream)
        : shape_(shape) {
        const bool integers = shape.element == Element::i8;
        const int type = type_of(shape.element), y_type = integers ? r_32i : type;
        const auto out = static_cast<std::uint64_t>(shape.out_features),
                   in = static_cast<std::uint64_t>(shape.in_features),
                   tokens = static_cast<std::uint64_t>(shape.tokens);
        check(functions.desc_create(&desc_, integers ? compute_32i : compute_32f, integers ? r_32i : r_32f),
              "cublasLtMatmulDescCreate");
        check(functions.desc_set(desc_, desc_transa, &op_t, sizeof op_t), "cublasLtMatmulDescSetAttribute");
        check(functions.desc_set(desc_, desc_transb, &op_n, sizeof op_n), "cublasLtMatmulDescSetAttribute");
        check(functions.layout_create(&w_, type, in, out, shape.in_features), "cublasLtMatrixLayoutCreate");
        check(functions.layout_create(&x_, type, in, tokens, shape.in_features), "cublasLtMatrixLayoutCreate");
        check(functions.layout_create(&y_, y_type, out, tokens, shape.out_features), "cublasLtMatrixLayoutCreate");
        choose(w, x, y, stream);
    }
    ~DenseProduct() override {
        if (y_) functions.layout_destroy(y_);
        if (x_) functions.layout_destroy(x_);
        if (w_) functions.layout_destroy(w_);
        if (desc_) functions.desc_destroy(desc_);
    }
    std::int64_t weight_bytes() const override {
        return shape_.out_features * shape_.in_features * element_bytes(shape_.element);
    }
    std::int64_t memory_bytes() const override { return used_; }
    void encode(const void* w, void* to) override {
        if (cudaMemcpy(to, w, static_cast<std::size_t>(weight_bytes()), cudaMemcpyDeviceToDevice) != cudaSuccess)
            throw std::runtime_error("copy of weights failed");
    }
    void multiply(const void* w, const void* x, void* y, cudaStream_t stream) override {
        const float one = 1, zero = 0;
        const std::int32_t one_i = 1, zero_i = 0;
        const bool integers = shape_.element == Element::i8;
        check(functions.matmul(handle, desc_, integers ? static_cast<const void*>(&one_i) : &one, w, w_, x, x_,
                               integers ? static_cast<const void*>(&zero_i) : &zero, y, y_, y, y_, &algo_,
                               scratch_.data(), static_cast<std::size_t>(scratch_.bytes()), stream),
              "cublasLtMatmul");
    }

  private:
    // The heuristic's first choice is often not its best for one token: all that it offers are tried.
    void choose(const void* w, const void* x, void* y, cudaStream_t stream) {
        Preference preference = nullptr;
        const std::size_t most = static_cast<std::size_t>(scratch_.bytes());
        constexpr int wanted = 16;
        std::vector<HeuristicResult> results(wanted);
        int found = 0;
        check(functions.preference_create(&preference), "cublasLtMatmulPreferenceCreate");
        Status status = functions.preference_set(preference, pref_max_workspace_bytes, &most, sizeof most);
        if (status == 0)
            status = functions.heuristic(handle, desc_, w_, x_, y_, y_, preference, wanted, results.data(), &found);
        functions.preference_destroy(preference);
        if (status != 0 || found == 0)
            throw std::runtime_error("cuBLASLt has no algorithm for " + std::to_string(shape_.tokens) + " x " +
                                     std::to_string(shape_.in_features) + " -> " + std::to_string(shape_.out_features) +
                                     " (status " + std::to_string(status) + ")");
        double best = std::numeric_limits<double>::infinity();
        std::string reason;
        Algo chosen = {};
        for (int i = 0; i < found; i++) {
            const HeuristicResult& result = results[static_cast<std::size_t>(i)];
            if (result.state != 0) continue;
            algo_ = result.algo;
            try {
                const double seconds = time_cold([&] { multiply(w, x, y, stream); }, stream);
                if (seconds < best) {
                    best = seconds;
                    chosen = algo_;
                    used_ = static_cast<std::int64_t>(result.workspace_size);
                }
            } catch (const std::runtime_error& error) {
                reason = error.what();
            }
        }
        if (best == std::numeric_limits<double>::infinity())
            throw std::runtime_error("cuBLASLt: no algorithm ran; " + reason);
        algo_ = chosen;
    }

    ProductShape shape_;
    MatmulDesc desc_ = nullptr;
    Layout w_ = nullptr, x_ = nullptr, y_ = nullptr;
    Algo algo_ = {};
    std::int64_t used_ = 0;
    Scratch scratch_{std::int64_t{32} << 20};  // what PyTorch gives it on Hopper
};

}  // namespace

void load_cublaslt(const std::string& places, std::string* text) {
    std::string path;
    void* const library = open_library(places, {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, &path);
    Functions f;
    find_function(library, "cublasLtCreate", &f.create);
    find_function(library, "cublasLtGetVersion", &f.version);
    find_function(library, "cublasLtMatmulDescCreate", &f.desc_create);
    find_function(library, "cublasLtMatmulDescDestroy", &f.desc_destroy);
    find_function(library, "cublasLtMatmulDescSetAttribute", &f.desc_set);
    find_function(library, "cublasLtMatrixLayoutCreate", &f.layout_create);
    find_function(library, "cublasLtMatrixLayoutDestroy", &f.layout_destroy);
    find_function(library, "cublasLtMatmulPreferenceCreate", &f.preference_create);
    find_function(library, "cublasLtMatmulPreferenceDestroy", &f.preference_destroy);
    find_function(library, "cublasLtMatmulPreferenceSetAttribute", &f.preference_set);
    find_function(library, "cublasLtMatmulAlgoGetHeuristic", &f.heuristic);
    find_function(library, "cublasLtMatmul", &f.matmul);
    check(f.create(&handle), "cublasLtCreate");
    functions = f;
    const std::size_t version = f.version();
    *text = path + ", version " + std::to_string(version);
}

std::unique_ptr<Product> cublaslt_product(const ProductShape& shape, const void* w, const void* x, void* y,
                                          cudaStream_t stream) {
    if (!handle) throw std::runtime_error("cuBLASLt is not loaded");
    return std::make_unique<DenseProduct>(shape, w, x, y, stream);
}

}  // namespace bench::cuda
