#include "fastffn/tensor.hpp"

#include <iterator>

#include "core/names.hpp"
#include "fastffn/version.hpp"

namespace fastffn {

namespace {
struct DTypeRow {
    const char* name;
    std::int64_t bytes;
};
constexpr DTypeRow dtype_rows[] = {{"f32", 4}, {"f16", 2}, {"bf16", 2}, {"u8", 1},
                                   {"i8", 1},  {"i32", 4}, {"i64", 8},  {"f64", 8}};

std::string tuple_string(const std::int64_t* values, int count) {
    std::string text = "(";
    if (count > max_dims) count = max_dims;
    for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
    return text + (count == 1 ? ",)" : ")");
}
}  // namespace

const char* version() noexcept { return FASTFFN_VERSION; }

const char* dtype_name(DType dtype) noexcept {
    const auto index = static_cast<std::size_t>(dtype);
    return index < std::size(dtype_rows) ? dtype_rows[index].name : "unknown";
}

std::int64_t dtype_bytes(DType dtype) noexcept {
    const auto index = static_cast<std::size_t>(dtype);
    return index < std::size(dtype_rows) ? dtype_rows[index].bytes : 0;
}

TensorView::TensorView(void* data_, DType dtype_, std::initializer_list<std::int64_t> shape_)
    : data(data_), dtype(dtype_), ndim(static_cast<int>(shape_.size())) {
    int i = 0;
    for (std::int64_t extent : shape_)
        if (i < max_dims) shape[i++] = extent;  // more are refused by whoever takes the view
    // Unsigned: absurd shapes wrap around here and are refused where they are used.
    std::uint64_t stride = 1;
    while (--i >= 0) {
        strides[i] = static_cast<std::int64_t>(stride);
        stride *= static_cast<std::uint64_t>(shape[i]);
    }
}

std::int64_t TensorView::size() const noexcept {
    std::uint64_t elements = 1;  // unsigned for the same reason
    for (int i = 0; i < ndim && i < max_dims; ++i) elements *= static_cast<std::uint64_t>(shape[i]);
    return static_cast<std::int64_t>(elements);
}

std::string TensorView::shape_string() const { return tuple_string(shape, ndim); }

std::string TensorView::stride_string() const { return tuple_string(strides, ndim); }

std::string quoted_list(const std::vector<std::string>& names, const char* last) {
    std::string text;
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (i) text += i + 1 == names.size() ? " " + std::string(last) + " " : ", ";
        text += names[i];
    }
    return text;
}

}  // namespace fastffn
