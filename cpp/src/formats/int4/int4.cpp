// int4: groups of 32 to 256 weights of a row share a scale, 4 bits each; see codes/layout.hpp.
//
//   symmetric          scale = max |w| / 7,          code = 8 + clamp(nearest_even(w / scale), -8, 7),  w ≈ scale · (code - 8)
//   zero_points=true   scale = (max - min) / 15,     code = clamp(nearest_even(w / scale) + zero, 0, 15), w ≈ scale · (code - zero)
//
// with min <= 0 <= max and zero = nearest_even(-min / scale); scales are f16, and codes are those of the scale as stored. Or all of
// it as another library has it: codes in w, with scales and, where it has them, zero points or minima (w ≈ scale · code + minimum).
#include <cmath>

#include "core/names.hpp"
#include "formats/codes/pack.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

constexpr CodesScale computed = CodesScale::row, given = CodesScale::given;

CodesScale scale_kind(const PackedHeader& header) {
    return static_cast<CodesScale>((header.flags & codes_scale_mask) >> codes_scale_shift);
}

void read_int4_options(OptionReader& options, PackedHeader* header) {
    read_codes_options(options, header);
    const std::int64_t group = options.integer("group", 32, 256, 128);
    if (!codes_group_valid(group))
        options.fail("option 'group' of format 'int4' is " + std::to_string(group) + ", expected 32, 64, 128 or 256");
    header->parameters[0] = static_cast<std::uint32_t>(group);
    const std::int64_t entries =
        header->count * header->out_features * divide_up(header->in_features, group ? group : 1);
    auto check = [&](const char* name) {
        const TensorView* array = options.array(name);
        if (!array) return false;
        if (array->dtype != DType::f32 || !is_contiguous(*array) || array->size() != entries)
            options.fail("option '" + std::string(name) + "' of format 'int4' is " + dtype_name(array->dtype) +
                         " of shape " + array->shape_string() +
                         ", expected contiguous f32, one per row and group: " + std::to_string(entries) + " in all");
        return true;
    };
    const bool scales = check("scales"), zeros = check("zeros"), minima = check("minima");
    const bool zero_points = options.boolean("zero_points", false);
    if ((zeros || minima) && !scales) options.fail("options 'zeros' and 'minima' of format 'int4' need 'scales'");
    if (zeros && minima) options.fail("format 'int4' takes 'zeros' or 'minima', not both");
    if (scales && zero_points)
        options.fail("option 'zero_points' of format 'int4' is for weights; with 'scales' give 'zeros'");
    header->flags |= static_cast<std::uint32_t>(scales ? given : computed) << codes_scale_shift;
    if (scales) read_codes_are_given(options, header);
    if (zeros || zero_points) header->flags |= codes_zero_points;
    if (minima) header->flags |= codes_minima;
}

bool int4_options_valid(const PackedHeader& header) noexcept {
    return (header.flags & ~codes_all_flags) == 0 && (header.flags & codes_zeros_mask) <= codes_minima &&
           codes_act(header.flags) <= codes_act_bf16 && (header.flags & codes_scale_mask) >> codes_scale_shift <= 2 &&
           header.parameters[0] != 0 && codes_group_valid(header.parameters[0]) && codes_hadamard_valid(header) &&
           codes_order_valid(header);
}

PackOptions list_int4_options(const PackedHeader& header) {
    constexpr const char* zeros[] = {"none", "zero_points", "minima"};
    PackOptions options = {{"act", codes_act_name(header.flags)},
                           {"group", static_cast<std::int64_t>(header.parameters[0])},
                           {"zeros", zeros[header.flags & codes_zeros_mask]}};
    list_hadamard_options(header, &options);
    list_order_option(header, &options);
    return options;
}

const float* given_array(const PackJob& job, const char* name) {
    for (const PackOption& option : job.options)
        if (option.name == name) return static_cast<const float*>(option.value.array().data);
    return nullptr;
}

Status pack_int4(const PlainMatrix& matrix, const PackJob& job) {
    const std::string& which = job.which;
    const CodesLayout<4> layout(job.payload, matrix.out_features, matrix.in_features, job.header.flags,
                                job.header.parameters[0]);
    const std::uint32_t zeros_kind = job.header.flags & codes_zeros_mask;
    const bool is_given = scale_kind(job.header) == given;
    const std::int64_t first_entry = job.index * matrix.out_features * layout.groups;
    auto of_matrix = [&](const char* name) {
        const float* array = is_given ? given_array(job, name) : nullptr;
        return array ? array + first_entry : nullptr;
    };
    const float *scales_in = of_matrix("scales"), *zeros_in = of_matrix("zeros"), *minima_in = of_matrix("minima");
    auto* scales = const_cast<std::byte*>(layout.scales);
    auto* zeros = const_cast<std::byte*>(layout.zeros);
    LowestRow not_finite, no_code, bad_scale, bad_zero;
    Status status = for_each_code_row(matrix, job, [&](std::int64_t row, const float* weights) {
        for (std::int64_t k = 0; k < matrix.in_features; ++k)
            if (!std::isfinite(weights[k])) return not_finite.note(row);
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::int64_t begin = g * layout.group, entry = layout.entry(row, begin);
            const std::int64_t end =
                begin + layout.group < matrix.in_features ? begin + layout.group : matrix.in_features;
            float low = 0, high = 0;
            for (std::int64_t k = begin; k < end; ++k) {
                low = std::fmin(low, weights[k]);
                high = std::fmax(high, weights[k]);
            }
            float scale = zeros_kind == codes_zero_points ? (high - low) / 15.0f : std::fmax(-low, high) / 7.0f;
            if (is_given) scale = scales_in[row * layout.groups + g];
            store_f32(scales + entry * 2, DType::f16, scale);
            scale = load_f32(scales + entry * 2, DType::f16);
            if (!std::isfinite(scale)) return bad_scale.note(row);
            float zero = 8;
            if (zeros_kind == codes_zero_points) {
                zero = is_given ? zeros_in[row * layout.groups + g] : scale > 0 ? std::nearbyint(-low / scale) : 0.0f;
                if (!is_given) zero = std::fmin(zero, 15.0f);
                if (!(zero >= 0 && zero <= 15) || zero != std::nearbyint(zero)) return bad_zero.note(row);
                zeros[entry] = static_cast<std::byte>(static_cast<int>(zero));
            } else if (zeros_kind == codes_minima) {
                store_f32(zeros + entry * 2, DType::f16, minima_in[row * layout.groups + g]);
                if (!std::isfinite(load_f32(zeros + entry * 2, DType::f16))) return bad_zero.note(row);
            }
            for (std::int64_t k = begin; k < end; ++k) {
                float code = weights[k];
                if (is_given) {
                    if (!(code >= 0 && code <= 15) || code != std::nearbyint(code)) return no_code.note(row);
                } else {
                    code = scale > 0 ? std::nearbyint(code / scale) + zero : zero;
                    code = std::fmin(std::fmax(code, 0.0f), 15.0f);
                }
                put_code(layout, row, k, static_cast<int>(code));
            }
        }
    });
    if (!status.ok()) return status;
    auto fail = [&](const LowestRow& row, const char* text) {
        return Status(StatusCode::invalid_argument, which + ": row " + std::to_string(row.row()) + " of w " + text);
    };
    if (not_finite.found()) return fail(not_finite, "holds NaN or infinity, which int4 cannot represent");
    if (no_code.found())
        return fail(no_code, "holds a code that is no whole number from 0 to 15, as w must with given scales");
    if (bad_scale.found()) return fail(bad_scale, "needs a scale beyond the range of f16");
    if (bad_zero.found())
        return fail(bad_zero, "has a zero point that is no whole number from 0 to 15, or a minimum beyond f16");
    return {};
}

const FormatKernels* const panel_kernels[isa_count] = {
    &ref::int4_kernels,
    FASTFFN_X86_KERNELS(&avx2::int4_kernels, nullptr, &avx512vnni::int4_kernels, nullptr, &amx::int4_kernels)};
const FormatKernels* const bf16_kernels[isa_count] = {
    &ref::int4_bf16_kernels, FASTFFN_X86_KERNELS(&avx2::int4_bf16_kernels, &avx512::int4_bf16_kernels, nullptr,
                                                 &avx512bf16::int4_bf16_kernels, &amx::int4_bf16_kernels)};
const FormatKernels* const rows_kernels[isa_count] = {
    &ref::int4_rows_kernels,
    FASTFFN_X86_KERNELS(&avx2::int4_rows_kernels, nullptr, &avx512vnni::int4_rows_kernels, nullptr, nullptr)};
const FormatKernels* const columns_kernels[isa_count] = {
    &ref::int4_columns_kernels,
    FASTFFN_X86_KERNELS(&avx2::int4_columns_kernels, nullptr, &avx512vnni::int4_columns_kernels, nullptr, nullptr)};

KernelTable int4_kernels_for(const PackedHeader& header) noexcept {
    if (codes_order(header.flags) == codes_order_rows) return rows_kernels;
    if (codes_order(header.flags) == codes_order_columns) return columns_kernels;
    return codes_act(header.flags) == codes_act_bf16 ? bf16_kernels : panel_kernels;
}

}  // namespace

const FormatDefinition int4_format = {
    Format::int4,
    "int4",
    codes_matrix_bytes<4>,
    pack_int4,
    codes_unpack_row<4>,
    {},
    int4_options_valid,
    read_int4_options,
    list_int4_options,
    int4_kernels_for,
    nullptr,  // unpack_all
    codes_scales_valid<4>,
    &codes_reader<4>,
};

}  // namespace fastffn
