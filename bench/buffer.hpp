// Buffer: page-aligned memory straight from the operating system, as large arrays of other programs are.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fastffn/tensor.hpp"

namespace bench {

class Buffer {
  public:
    Buffer() = default;
    // Throws std::runtime_error when there is not enough memory. The pages are not touched yet.
    explicit Buffer(std::int64_t bytes, bool huge_pages = false);
    ~Buffer();
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&& other) noexcept;

    std::byte* data() const noexcept { return data_; }
    std::int64_t bytes() const noexcept { return bytes_; }

  private:
    std::byte* data_ = nullptr;
    std::int64_t bytes_ = 0;
};

// Fills with numbers uniform in [-scale, scale] (f32, f16, bf16), or with random bytes (any other dtype).
void fill_random(std::byte* data, std::int64_t count, fastffn::DType dtype, float scale, std::uint64_t seed);

// Bytes of memory that the system could give us now; a very large number where unknown.
std::int64_t available_memory();

}  // namespace bench
