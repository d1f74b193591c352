#include "layers/rows.hpp"

namespace fastffn {

bool rows_overlap(const TensorView& array) noexcept {
    if (array.size() == 0) return false;
    // Dimensions from the smallest stride up: each must step over all that the smaller ones span.
    std::int64_t span = array.shape[array.ndim - 1];
    bool done[max_dims] = {};
    for (int round = 0; round < array.ndim - 1; ++round) {
        int next = -1;
        for (int i = 0; i < array.ndim - 1; ++i)
            if (!done[i] && (next < 0 || array.strides[i] < array.strides[next])) next = i;
        done[next] = true;
        if (array.shape[next] == 1) continue;
        if (array.strides[next] < span) return true;
        span += (array.shape[next] - 1) * array.strides[next];
    }
    return false;
}

Status view_rows(const char* operation, const char* name, const TensorView& array, RowsView* rows) {
    auto fail = [&](const std::string& text) {
        return Status(StatusCode::invalid_argument, std::string(operation) + ": " + name + " " + text);
    };
    if (array.dtype != DType::f32 && array.dtype != DType::f16 && array.dtype != DType::bf16)
        return fail(std::string("has dtype ") + dtype_name(array.dtype) + ", expected f32, f16 or bf16");
    if (array.ndim < 1 || array.ndim > max_dims)
        return fail("has " + std::to_string(array.ndim) + " dimensions, expected 1 to " + std::to_string(max_dims));
    const int last = array.ndim - 1;
    bool empty = false;  // exporters give empty arrays any strides
    for (int i = 0; i <= last; ++i) empty = empty || array.shape[i] == 0;
    // Far above any memory, and small enough for every product below.
    constexpr std::int64_t elements_limit = std::int64_t{1} << 58;
    std::int64_t elements = 1, span = 1;
    for (int i = 0; i <= last && !empty; ++i) {
        std::int64_t reach = 0;
        if (array.shape[i] < 0) continue;  // named below
        if (__builtin_mul_overflow(elements, array.shape[i], &elements) || elements > elements_limit ||
            __builtin_mul_overflow(array.shape[i] - 1, array.strides[i], &reach) ||
            __builtin_add_overflow(span, reach, &span) || span > elements_limit || array.strides[i] > elements_limit)
            return fail("has shape " + array.shape_string() + " and strides " + array.stride_string() +
                        ", more than any memory holds");
    }
    for (int i = 0; i <= last; ++i) {
        if (array.shape[i] < 0) return fail("has shape " + array.shape_string() + " with a negative extent");
        if (!empty && array.shape[i] > 1 && array.strides[i] < 0)
            return fail("has the negative stride " + std::to_string(array.strides[i]) + " in dimension " +
                        std::to_string(i) + "; copy it first");
    }
    if (!empty && array.shape[last] > 1 && array.strides[last] != 1)
        return fail("has stride " + std::to_string(array.strides[last]) +
                    " in its last dimension, expected 1; make it contiguous first");
    const std::int64_t element = dtype_bytes(array.dtype);
    rows->data = static_cast<std::byte*>(array.data);
    rows->dtype = array.dtype;
    rows->cols = array.shape[last];
    rows->rows = 1;
    rows->dims = 0;
    for (int i = 0; i < last; ++i) {
        rows->rows *= array.shape[i];
        if (array.shape[i] == 1) continue;
        const std::int64_t stride = array.strides[i] * element;
        if (rows->dims && rows->strides[rows->dims - 1] == stride * array.shape[i]) {
            rows->shape[rows->dims - 1] *= array.shape[i];  // one walk covers both dimensions
            rows->strides[rows->dims - 1] = stride;
        } else {
            rows->shape[rows->dims] = array.shape[i];
            rows->strides[rows->dims++] = stride;
        }
    }
    if (rows->dims == 0) {
        rows->shape[0] = 1;
        rows->strides[0] = rows->cols * element;
        rows->dims = 1;
    }
    if (!rows->data && rows->rows * rows->cols > 0) return fail("has shape " + array.shape_string() + " but no data");
    return {};
}

}  // namespace fastffn
