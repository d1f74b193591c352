#include "routes/topk/checks.hpp"

namespace fastffn {

namespace {

Status fail(const char* operation, const char* name, const std::string& text) {
    return {StatusCode::invalid_argument, std::string(operation) + ": " + name + " " + text};
}

}  // namespace

Status check_experts(const char* operation, std::int64_t experts) {
    constexpr std::int64_t limit = std::int64_t{1} << 30;
    if (experts >= 1 && experts <= limit) return {};
    return fail(operation, "logits", "are of " + std::to_string(experts) + " experts, expected 1 to 2^30");
}

Status check_table(const char* operation, const char* name, const TensorView& table, std::int64_t experts) {
    if (table.dtype != DType::f32 && table.dtype != DType::f16 && table.dtype != DType::bf16)
        return fail(operation, name,
                    std::string("has dtype ") + dtype_name(table.dtype) + ", expected f32, f16 or bf16");
    if (table.ndim != 1 || table.shape[0] != experts)
        return fail(operation, name,
                    "has shape " + table.shape_string() + ", expected (" + std::to_string(experts) +
                        ",) from the experts of logits");
    if (table.shape[0] > 1 && table.strides[0] < 0)
        return fail(operation, name, "has a negative stride; copy it first");
    if (!table.data) return fail(operation, name, "has no data");
    return {};
}

Status check_plain(const char* operation, const char* name, const TensorView& array, DType dtype) {
    if (array.dtype != dtype)
        return fail(operation, name,
                    std::string("has dtype ") + dtype_name(array.dtype) + ", expected " + dtype_name(dtype));
    std::int64_t expected = 1;
    bool contiguous = true;
    for (int i = array.ndim - 1; i >= 0; --i) {
        if (array.shape[i] < 0) return fail(operation, name, "has shape " + array.shape_string());
        if (array.shape[i] > 1 && array.strides[i] != expected) contiguous = false;
        expected *= array.shape[i];
    }
    if (!contiguous && expected != 0)
        return fail(operation, name,
                    "has shape " + array.shape_string() + " and strides " + array.stride_string() +
                        ", expected a contiguous array");
    if (!array.data && expected != 0) return fail(operation, name, "has no data");
    if (expected != 0 && reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(dtype_bytes(dtype)))
        return fail(operation, name, "is not aligned to its elements; copy it first");
    return {};
}

Status check_route(const char* operation, const TensorView& source, const char* source_name, int leading,
                   std::int64_t k, const TensorView& ids, const TensorView& weights) {
    const TensorView* arrays[] = {&ids, &weights};
    const char* names[] = {"ids", "weights"};
    for (int which = 0; which < 2; ++which) {
        const TensorView& array = *arrays[which];
        if (Status status = check_plain(operation, names[which], array, which ? DType::f32 : DType::i32); !status.ok())
            return status;
        TensorView expected = source;
        expected.ndim = leading + 1;
        expected.shape[leading] = k;
        bool same = array.ndim == expected.ndim;
        for (int i = 0; same && i < array.ndim; ++i) same = array.shape[i] == expected.shape[i];
        if (!same)
            return fail(operation, names[which],
                        "has shape " + array.shape_string() + ", expected " + expected.shape_string() + " from " +
                            source_name + " " + source.shape_string() + " and k = " + std::to_string(k));
    }
    if (may_overlap(ids, weights)) return fail(operation, "ids", "and weights share a range of memory");
    return {};
}

Status check_apart(const char* operation, const TensorView& input, const char* input_name, const TensorView& ids,
                   const TensorView& weights) {
    const bool with_ids = may_overlap(ids, input);
    if (!with_ids && !may_overlap(weights, input)) return {};
    return fail(operation, with_ids ? "ids" : "weights",
                std::string("and ") + input_name + " share a range of memory; give the results memory of their own");
}

}  // namespace fastffn
