// What a row is held against: a product of another library.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "cuda/device.hpp"

namespace bench::cuda {

class Product {
  public:
    virtual ~Product() = default;
    virtual std::int64_t weight_bytes() const = 0;
    virtual std::int64_t memory_bytes() const = 0;
    virtual void encode(const void* w, void* to) = 0;
    virtual void multiply(const void* w, const void* x, void* y, cudaStream_t stream) = 0;
};

cudaError_t device_malloc(void** data, std::int64_t bytes);
void device_free(void* data);

// Device memory of a product's own.
class Scratch {
  public:
    explicit Scratch(std::int64_t bytes = 0) : bytes_(bytes) {
        if (bytes > 0 && device_malloc(&data_, bytes) != cudaSuccess) {
            cudaGetLastError();
            throw std::runtime_error("no device memory for " + std::to_string(bytes) + " bytes");
        }
    }
    ~Scratch() {
        if (data_) device_free(data_);
    }
    Scratch(Scratch&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
    Scratch(const Scratch&) = delete;
    void* data() const { return data_; }
    std::int64_t bytes() const { return bytes_; }

  private:
    void* data_ = nullptr;
    std::int64_t bytes_ = 0;
};

// Seconds of one call that finds nothing of its arguments in the L2 cache: the median of some.
double time_cold(const std::function<void()>& call, cudaStream_t stream);

// `text`: path and version. Throw std::runtime_error.
void load_cublaslt(const std::string& places, std::string* text);
std::unique_ptr<Product> cublaslt_product(const ProductShape& shape, const void* w, const void* x, void* y,
                                          cudaStream_t stream);
void load_cusparselt(const std::string& places, std::string* text);
std::unique_ptr<Product> cusparselt_product(const ProductShape& shape, const void* w, const void* x, void* y,
                                            cudaStream_t stream);

inline std::int64_t element_bytes(Element element) {
    return element == Element::i8 ? 1 : element == Element::f32 || element == Element::i32 ? 4 : 2;
}

}  // namespace bench::cuda
