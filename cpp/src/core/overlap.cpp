#include "core/overlap.hpp"

namespace fastffn {

namespace {

struct Span {
    std::uintptr_t begin, end;
};

Span span_of(const TensorView& array) {
    const std::int64_t element = dtype_bytes(array.dtype);
    std::int64_t last = 0;
    for (int i = 0; i < array.ndim; ++i) {
        if (array.shape[i] == 0) return {0, 0};
        last += (array.shape[i] - 1) * array.strides[i];
    }
    const auto begin = reinterpret_cast<std::uintptr_t>(array.data);
    return {begin, begin + static_cast<std::uintptr_t>((last + 1) * element)};
}

bool intersect(Span a, Span b) { return a.begin < b.end && b.begin < a.end; }

}  // namespace

bool may_overlap(const TensorView& a, const TensorView& b) noexcept { return intersect(span_of(a), span_of(b)); }

bool may_overlap(const TensorView& a, const void* data, std::int64_t bytes) noexcept {
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    return intersect(span_of(a), {begin, begin + static_cast<std::uintptr_t>(bytes)});
}

}  // namespace fastffn
