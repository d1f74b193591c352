// inspect_codes and unpack_codes: the checks, and the formats' own readers row by row.
#include "fastffn/codes.hpp"

#include "core/overlap.hpp"
#include "core/parallel.hpp"
#include "fastffn/context.hpp"
#include "formats/format.hpp"

namespace fastffn {

namespace {

Status find_reader(const PackedMatrix& matrix, const char* operation, const char* name) {
    if (matrix.format->codes) return {};
    return {StatusCode::invalid_argument, std::string(operation) + ": " + name + " holds format '" +
                                              matrix.format->name +
                                              "', which has no codes; 'ternary', 'int4' and "
                                              "'int8' have"};
}

Status check_view(const TensorView& view, const char* name, DType dtype, const PackedHeader& header,
                  std::int64_t columns) {
    const bool stack = view.ndim == 3;
    const std::int64_t expected[3] = {header.count, header.out_features, columns};
    bool fits = view.dtype == dtype && view.data && is_contiguous(view) && (stack || header.count == 1) &&
                (stack || view.ndim == 2);
    for (int i = 0; fits && i < view.ndim; ++i) fits = view.shape[i] == expected[i + 3 - view.ndim];
    if (fits) return {};
    const TensorView wanted = header.count == 1 && !stack
                                  ? TensorView(view.data, dtype, {header.out_features, columns})
                                  : TensorView(view.data, dtype, {header.count, header.out_features, columns});
    return {StatusCode::invalid_argument, std::string("unpack_codes: ") + name + " is " + dtype_name(view.dtype) +
                                              " of shape " + view.shape_string() + ", expected contiguous " +
                                              dtype_name(dtype) + " of shape " + wanted.shape_string()};
}

}  // namespace

Status inspect_codes(const PackedView& packed, CodesInfo* info, const char* name) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, "inspect_codes", name, &matrix); !status.ok()) return status;
    if (Status status = find_reader(matrix, "inspect_codes", name); !status.ok()) return status;
    *info = matrix.format->codes->describe(matrix.header);
    return {};
}

Status unpack_codes(const PackedView& packed, const TensorView& codes, const TensorView& scales,
                    const TensorView& zeros) {
    PackedMatrix matrix;
    if (Status status = open_and_verify(packed, "unpack_codes", "packed", &matrix); !status.ok()) return status;
    if (Status status = find_reader(matrix, "unpack_codes", "packed"); !status.ok()) return status;
    const PackedHeader& header = matrix.header;
    const CodesInfo info = matrix.format->codes->describe(header);
    if (Status status = check_view(codes, "codes", info.dtype, header, header.in_features); !status.ok()) return status;
    if (Status status = check_view(scales, "scales", DType::f32, header, info.groups); !status.ok()) return status;
    if (info.zeros == CodeZeros::none) {
        if (zeros.data)
            return {StatusCode::invalid_argument, "unpack_codes: packed has no zeros, expected a view without data"};
    } else if (Status status = check_view(zeros, "zeros", DType::f32, header, info.groups); !status.ok()) {
        return status;
    }
    for (const TensorView* view : {&codes, &scales, &zeros})
        if (view->data && may_overlap(*view, packed.data, packed.bytes))
            return {StatusCode::invalid_argument,
                    "unpack_codes: packed and a result share a range of memory; give results memory of their own"};
    auto* code = static_cast<std::byte*>(codes.data);
    auto* scale = static_cast<float*>(scales.data);
    auto* zero = static_cast<float*>(zeros.data);
    const std::int64_t rows = header.count * header.out_features;
    // 64 rows a task: enough work to hand out.
    parallel_for(usable_threads(default_threads()), (rows + 63) / 64, [&](std::int64_t task, int) {
        for (std::int64_t row = task * 64; row < rows && row < task * 64 + 64; ++row)
            matrix.format->codes->read_row(matrix.view(row / header.out_features), row % header.out_features,
                                           code + row * header.in_features, scale + row * info.groups,
                                           zero ? zero + row * info.groups : nullptr);
    });
    return {};
}

}  // namespace fastffn
