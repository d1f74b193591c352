// ternary: weights in {-1, 0, 1} times a scale, 2 bits each (BitNet b1.58, Ma et al. 2024, arXiv:2402.17764); see codes/layout.hpp.
//
//   scale = max(mean |w|, 1e-5) over the matrix ("tensor"), a row ("row") or a group of a row; q = clamp(nearest_even(w / scale), -1, 1)
//
// or scales that the caller brings, with w holding the codes -1, 0 and 1 themselves.
#include <cmath>

#include "core/names.hpp"
#include "formats/codes/pack.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

constexpr float smallest_scale = 1e-5f;  // the paper's ε

CodesScale scale_kind(const PackedHeader& header) {
    return static_cast<CodesScale>((header.flags & codes_scale_mask) >> codes_scale_shift);
}

void read_ternary_options(OptionReader& options, PackedHeader* header) {
    read_codes_options(options, header);
    const std::int64_t group = options.integer("group", 0, 256, 0);
    if (!codes_group_valid(group))
        options.fail("option 'group' of format 'ternary' is " + std::to_string(group) +
                     ", expected 0 (none), 32, 64, 128 or 256");
    else header->parameters[0] = static_cast<std::uint32_t>(group);
    auto kind = static_cast<CodesScale>(options.choice_unless_given("scale", {"tensor", "row"}, group ? 1 : 0, 2));
    if (group && kind == CodesScale::tensor)
        options.fail("option 'scale' of format 'ternary' is 'tensor' with group=" + std::to_string(group) +
                     "; groups have scales of their own, leave it out");
    header->flags |= static_cast<std::uint32_t>(kind) << codes_scale_shift;
    if (kind == CodesScale::given) read_codes_are_given(options, header);
    if (const TensorView* scales = options.given_array("scale")) {
        const std::int64_t groups = group ? divide_up(header->in_features, group) : 1;
        const std::int64_t wanted = header->count * header->out_features * groups;
        if (scales->size() != 1 && scales->size() != header->count && scales->size() != wanted)
            options.fail("option 'scale' of format 'ternary' has shape " + scales->shape_string() +
                         ", expected one number, one per matrix (" + std::to_string(header->count) +
                         "), or one per row and group (" + std::to_string(wanted) + ")");
        if (scales->dtype != DType::f32 || !is_contiguous(*scales))
            options.fail("option 'scale' of format 'ternary' must be a contiguous f32 array");
    }
}

bool ternary_options_valid(const PackedHeader& header) noexcept {
    return (header.flags & ~codes_all_flags) == 0 && (header.flags & codes_zeros_mask) == codes_no_zeros &&
           (header.flags & codes_act_mask) >> codes_act_shift <= codes_act_int4 &&
           (header.flags & codes_scale_mask) >> codes_scale_shift <= 2 && codes_group_valid(header.parameters[0]) &&
           codes_hadamard_valid(header) && codes_order_valid(header);
}

PackOptions list_ternary_options(const PackedHeader& header) {
    constexpr const char* scales[] = {"tensor", "row", "given"};
    PackOptions options = {{"act", codes_act_name(header.flags)},
                           {"group", static_cast<std::int64_t>(header.parameters[0])},
                           {"scale", scales[static_cast<int>(scale_kind(header))]}};
    list_hadamard_options(header, &options);
    list_order_option(header, &options);
    return options;
}

// Σ|w| of all rows, in f64 and in order, so that threads do not change it.
Status mean_magnitude(const PlainMatrix& matrix, const PackJob& job, float* mean) {
    const auto rows = static_cast<std::size_t>(matrix.out_features);
    const std::unique_ptr<double[]> sums(new (std::nothrow) double[rows]);
    if (!sums) return {StatusCode::out_of_memory, job.which + ": no memory for sums of rows"};
    Status status = for_each_code_row(matrix, job, [&](std::int64_t row, const float* weights) {
        double sum = 0;
        for (std::int64_t k = 0; k < matrix.in_features; ++k) sum += std::fabs(static_cast<double>(weights[k]));
        sums[static_cast<std::size_t>(row)] = sum;
    });
    double total = 0;
    for (std::size_t i = 0; i < rows; ++i) total += sums[i];
    *mean =
        static_cast<float>(total / static_cast<double>(matrix.out_features) / static_cast<double>(matrix.in_features));
    return status;
}

// Scales as the caller gave them: of this matrix, row by row and group by group.
float given_scale(const PackJob& job, const OptionValue& value, std::int64_t row, std::int64_t group,
                  std::int64_t groups) {
    if (value.kind() != OptionValue::Kind::array) return static_cast<float>(value.real());
    const auto* scales = static_cast<const float*>(value.array().data);
    const std::int64_t size = value.array().size();
    if (size == 1) return scales[0];
    if (size == job.header.count) return scales[job.index];
    return scales[(job.index * job.header.out_features + row) * groups + group];
}

Status pack_ternary(const PlainMatrix& matrix, const PackJob& job) {
    const std::string& which = job.which;
    const CodesLayout<2> layout(job.payload, matrix.out_features, matrix.in_features, job.header.flags,
                                job.header.parameters[0]);
    const CodesScale kind = scale_kind(job.header);
    const OptionValue* given = nullptr;
    for (const PackOption& option : job.options)
        if (option.name == "scale" && kind == CodesScale::given) given = &option.value;
    float tensor_scale = 0;
    if (kind == CodesScale::tensor) {
        if (Status status = mean_magnitude(matrix, job, &tensor_scale); !status.ok()) return status;
        tensor_scale = tensor_scale > smallest_scale ? tensor_scale : smallest_scale;
    }
    LowestRow not_finite, no_code, bad_scale;
    auto* scales = const_cast<std::byte*>(layout.scales);
    Status status = for_each_code_row(matrix, job, [&](std::int64_t row, const float* weights) {
        for (std::int64_t k = 0; k < matrix.in_features; ++k)
            if (!std::isfinite(weights[k])) return not_finite.note(row);
        const std::int64_t group = layout.group ? layout.group : matrix.in_features;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::int64_t begin = g * group;
            const std::int64_t end = begin + group < matrix.in_features ? begin + group : matrix.in_features;
            float scale = tensor_scale;
            if (kind == CodesScale::given) {
                scale = given_scale(job, *given, row, g, layout.groups);
            } else if (kind == CodesScale::row) {
                double sum = 0;
                for (std::int64_t k = begin; k < end; ++k) sum += std::fabs(static_cast<double>(weights[k]));
                scale = static_cast<float>(sum / static_cast<double>(end - begin));
                scale = scale > smallest_scale ? scale : smallest_scale;
            }
            if (layout.group) {
                std::byte* at = scales + layout.entry(row, begin) * 2;
                store_f32(at, DType::f16, scale);
                scale = load_f32(at, DType::f16);  // codes are those of the scale that is stored
            } else {
                store_f32(scales + row * 4, DType::f32, scale);
            }
            if (!std::isfinite(scale)) bad_scale.note(row);
            for (std::int64_t k = begin; k < end; ++k) {
                float q = weights[k];
                if (kind == CodesScale::given) {
                    if (q != -1.0f && q != 0.0f && q != 1.0f) return no_code.note(row);
                } else {
                    q = scale > 0 ? std::nearbyint(q / scale) : 0.0f;
                    q = q < -1.0f ? -1.0f : q > 1.0f ? 1.0f : q;
                }
                put_code(layout, row, k, static_cast<int>(q) + 1);
            }
        }
    });
    if (!status.ok()) return status;
    auto fail = [&](const LowestRow& row, const char* text) {
        return Status(StatusCode::invalid_argument, which + ": row " + std::to_string(row.row()) + " of w " + text);
    };
    if (not_finite.found()) return fail(not_finite, "holds NaN or infinity, which ternary cannot represent");
    if (no_code.found())
        return fail(no_code, "holds a weight that is none of -1, 0 and 1, as codes with a given scale must be");
    if (bad_scale.found()) return fail(bad_scale, "has a scale that is not finite (group scales are f16)");
    return {};
}

// Two bits have a fourth code, which stands for no weight.
bool ternary_payload_valid(const MatrixView& matrix, std::string* fault) {
    const CodesLayout<2> layout(matrix);
    for (std::int64_t at = 0, panel = 0; at < layout.code_bytes(); at += layout.panel_bytes, ++panel) {
        auto threes = std::byte{0};
        for (std::int64_t i = 0; i < layout.panel_bytes; ++i)
            threes |= layout.panels[at + i] & layout.panels[at + i] >> 1 & std::byte{0x55};
        if (threes == std::byte{0}) continue;
        *fault = "codes that are none of -1, 0 and 1";
        if (layout.order != codes_order_columns)
            *fault += ", in rows " + std::to_string(panel * panel_columns) + " to " +
                      std::to_string(panel * panel_columns + panel_columns - 1);
        return false;
    }
    return codes_scales_valid<2>(matrix, fault);
}

const FormatKernels* const panel_kernels[isa_count] = {
    &ref::ternary_kernels,
    FASTFFN_X86_KERNELS(&avx2::ternary_kernels, nullptr, &avx512vnni::ternary_kernels, nullptr, &amx::ternary_kernels)};
const FormatKernels* const rows_kernels[isa_count] = {
    &ref::ternary_rows_kernels,
    FASTFFN_X86_KERNELS(&avx2::ternary_rows_kernels, nullptr, &avx512vnni::ternary_rows_kernels, nullptr, nullptr)};
const FormatKernels* const columns_kernels[isa_count] = {
    &ref::ternary_columns_kernels, FASTFFN_X86_KERNELS(&avx2::ternary_columns_kernels, nullptr,
                                                       &avx512vnni::ternary_columns_kernels, nullptr, nullptr)};

KernelTable ternary_kernels_for(const PackedHeader& header) noexcept {
    if (codes_order(header.flags) == codes_order_rows) return rows_kernels;
    if (codes_order(header.flags) == codes_order_columns) return columns_kernels;
    return panel_kernels;
}

}  // namespace

const FormatDefinition ternary_format = {
    Format::ternary,
    "ternary",
    codes_matrix_bytes<2>,
    pack_ternary,
    codes_unpack_row<2>,
    {},
    ternary_options_valid,
    read_ternary_options,
    list_ternary_options,
    ternary_kernels_for,
    nullptr,  // unpack_all
    ternary_payload_valid,
    &codes_reader<2>,
};

}  // namespace fastffn
