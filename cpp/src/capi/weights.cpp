// C: contexts, arrays and packed weights.
#include "capi/capi.hpp"

using namespace fastffn;
using namespace fastffn::capi;

namespace {

PackOptions read_options(const char* operation, const fastffn_option* options, std::size_t count) {
    PackOptions result;
    if (count && !options) refuse(operation, "options is NULL with option_count " + std::to_string(count));
    for (std::size_t i = 0; i < count; ++i) {
        const fastffn_option& option = options[i];
        const std::string which = "options[" + std::to_string(i) + "]";
        if (!option.name) refuse(operation, which + ".name is NULL");
        switch (option.kind) {
            case FASTFFN_OPTION_TEXT:
                if (!option.value.text) refuse(operation, which + ".value.text is NULL");
                result.push_back({option.name, option.value.text});
                break;
            case FASTFFN_OPTION_INTEGER: result.push_back({option.name, option.value.integer}); break;
            case FASTFFN_OPTION_REAL: result.push_back({option.name, option.value.real}); break;
            case FASTFFN_OPTION_BOOLEAN: result.push_back({option.name, option.value.integer != 0}); break;
            case FASTFFN_OPTION_ARRAY:
                result.push_back({option.name, view(operation, option.name, option.value.array)});
                break;
            default: refuse(operation, which + ".kind is " + std::to_string(option.kind) + ", expected 0 to 4");
        }
    }
    return result;
}

std::int64_t* checked(const char* operation, std::int64_t* bytes) {
    if (!bytes) refuse(operation, "bytes is NULL");
    return bytes;
}

}  // namespace

fastffn_tensor fastffn_array(const void* data, std::int32_t dtype, std::int32_t ndim, const std::int64_t* shape) {
    fastffn_tensor result{};
    result.data = const_cast<void*>(data);
    result.dtype = dtype;
    result.ndim = ndim;  // a number that is out of range is refused by the call that gets the array
    if (!shape && ndim > 0) result.ndim = -1;
    std::int64_t stride = 1;
    for (std::int32_t i = result.ndim < FASTFFN_MAX_DIMS ? result.ndim - 1 : FASTFFN_MAX_DIMS - 1; i >= 0; --i) {
        result.shape[i] = shape[i];
        result.strides[i] = stride;
        if (__builtin_mul_overflow(stride, shape[i] > 0 ? shape[i] : 1, &stride)) stride = INT64_MAX;  // refused later
    }
    return result;
}

const char* fastffn_version(void) { return version(); }
std::int32_t fastffn_c_api(void) { return FASTFFN_C_API; }

fastffn_context* fastffn_context_new(std::int32_t threads) {
    return new (std::nothrow) fastffn_context{Context(threads)};
}
void fastffn_context_free(fastffn_context* context) { delete context; }
void fastffn_context_set_threads(fastffn_context* context, std::int32_t threads) {
    if (context) context->context.set_threads(threads);
}
const char* fastffn_context_last_kernel(const fastffn_context* context) {
    return context ? context->context.last_kernel() : "";
}
std::int64_t fastffn_context_workspace_bytes(const fastffn_context* context) {
    return context ? context->context.workspace_bytes() : 0;
}
void fastffn_context_release(fastffn_context* context) {
    if (context) context->context.release();
}

fastffn_status fastffn_packed_bytes(const fastffn_tensor* w, const char* format, const fastffn_option* options,
                                    std::size_t option_count, std::int64_t* bytes, fastffn_error* error) {
    return call(error, [&] {
        return packed_bytes(view("packed_bytes", "w", w), parse("packed_bytes", "format", format, parse_format),
                            read_options("packed_bytes", options, option_count), checked("packed_bytes", bytes));
    });
}

fastffn_status fastffn_pack(const fastffn_tensor* w, const char* format, const fastffn_option* options,
                            std::size_t option_count, void* out, std::int64_t out_bytes, fastffn_error* error) {
    return call(error, [&] {
        if (!out) refuse("pack", "out is NULL");
        return pack(view("pack", "w", w), parse("pack", "format", format, parse_format),
                    read_options("pack", options, option_count), out, out_bytes);
    });
}

fastffn_status fastffn_packed_factors_bytes(const fastffn_tensor* u, const fastffn_tensor* v, const char* factors,
                                            std::int64_t* bytes, fastffn_error* error) {
    constexpr const char* operation = "packed_factors_bytes";
    return call(error, [&] {
        return packed_factors_bytes(view(operation, "u", u), view(operation, "v", v),
                                    parse(operation, "factors", factors, parse_format), checked(operation, bytes));
    });
}

fastffn_status fastffn_pack_factors(const fastffn_tensor* u, const fastffn_tensor* v, const char* factors, void* out,
                                    std::int64_t out_bytes, fastffn_error* error) {
    constexpr const char* operation = "pack_factors";
    return call(error, [&] {
        if (!out) refuse(operation, "out is NULL");
        return pack_factors(view(operation, "u", u), view(operation, "v", v),
                            parse(operation, "factors", factors, parse_format), out, out_bytes);
    });
}

fastffn_status fastffn_unpack(fastffn_packed packed, const fastffn_tensor* w, fastffn_error* error) {
    return call(error, [&] { return unpack(view(packed), view("unpack", "w", w)); });
}

fastffn_status fastffn_inspect(fastffn_packed packed, fastffn_packed_info* info, fastffn_error* error) {
    return call(error, [&] {
        if (!info) refuse("inspect", "info is NULL");
        PackedInfo found;
        Status status = inspect(view(packed), &found);
        if (status.ok())
            *info = {format_name(found.format), found.out_features, found.in_features, found.count, found.bytes};
        return status;
    });
}

fastffn_status fastffn_verify(fastffn_packed packed, fastffn_error* error) {
    return call(error, [&] { return verify_packed(view(packed)); });
}

fastffn_status fastffn_isa(const char** isa, const char** reason, fastffn_error* error) {
    return call(error, [&] {
        Status status = check_isa();
        if (!status.ok()) return status;
        const CpuReport& cpu = cpu_report();
        if (isa) *isa = isa_name(cpu.chosen);
        if (reason) *reason = cpu.reason.c_str();
        return status;
    });
}
