// The workspace of a call, handed out piece by piece.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/dtype.hpp"

namespace fastffn::cuda {

constexpr std::int64_t round_to(std::int64_t bytes, std::int64_t multiple) {
    return (bytes + multiple - 1) / multiple * multiple;
}

constexpr std::int64_t bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

// Without a base it only counts: a call that is run so launches nothing, and says with `used` how much it needs.
struct Pieces {
    unsigned char* base;
    std::int64_t used = 0;
    template <class T = void>
    T* take(std::int64_t bytes) {
        void* piece = base ? base + used : nullptr;
        used += round_to(bytes, 256);
        return static_cast<T*>(piece);
    }
    bool counts_only() const { return base == nullptr; }
};

}  // namespace fastffn::cuda
