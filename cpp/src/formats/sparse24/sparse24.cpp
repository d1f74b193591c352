// sparse24: 2:4 weights, two of every four consecutive ones kept, as bf16, f16, f32 or int8; see layout.hpp.
#include "formats/sparse24/layout.hpp"

#include <cmath>
#include <vector>

#include "formats/common/panels.hpp"
#include "formats/int8/codes.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

const std::vector<std::string> values_names = {"bf16", "f16", "f32", "int8"};

Sparse24Values values_of(std::uint32_t flags) { return static_cast<Sparse24Values>(flags); }

void read_options(OptionReader& options, PackedHeader* header) {
    header->flags = static_cast<std::uint32_t>(options.choice("values", values_names, 0));
}

PackOptions list_options(const PackedHeader& header) { return {{"values", values_names[header.flags]}}; }

bool options_valid(const PackedHeader& header) noexcept {
    return header.flags < sparse24_values_limit && header.parameters[0] == 0 && header.parameters[1] == 0;
}

std::int64_t matrix_bytes(const PackedHeader& header) noexcept {
    const std::int64_t panels = divide_up(header.out_features, panel_columns);
    const Sparse24Values values = values_of(header.flags);
    const std::int64_t sections = values == Sparse24Values::int8 ? 128 : 0;
    return panels * (sections + Sparse24Layout(values).panel_bytes(header.in_features));
}

// What one value is stored as; the scale is that of an int8 row.
struct Stored {
    std::uint32_t bits;
    bool is_zero, overflows;
};

Stored store_value(Sparse24Values values, float weight, float scale) {
    switch (values) {
        case Sparse24Values::f32: return {bits_of(weight), weight == 0, false};
        case Sparse24Values::int8: {
            const std::int8_t code = int8_code(weight, scale);
            return {static_cast<std::uint8_t>(code), code == 0, false};
        }
        default: break;
    }
    const bool bf16 = values == Sparse24Values::bf16;
    const std::uint16_t half = bf16 ? f32_to_bf16(weight) : f32_to_f16(weight);
    const float back = bf16 ? bf16_to_f32(half) : f16_to_f32(half);
    return {half, back == 0, std::isfinite(weight) && !std::isfinite(back)};
}

std::int64_t value_bytes(Sparse24Values values) {
    return values == Sparse24Values::f32 ? 4 : values == Sparse24Values::int8 ? 1 : 2;
}

// The kept positions of a group whose nonzero ones are these; at most two are.
struct Kept {
    int first, second;
};
Kept kept_positions(const bool (&nonzero)[4]) {
    int found[4], count = 0;
    for (int i = 0; i < 4; ++i)
        if (nonzero[i]) found[count++] = i;
    if (count == 0) return {2, 3};
    if (count == 1) return found[0] == 3 ? Kept{2, 3} : Kept{found[0], 3};
    return {found[0], found[1]};
}

// One group of a row. Returns false where more than two weights are nonzero.
bool pack_group(const float (&weights)[4], Sparse24Values values, float scale, std::byte* panel, std::int64_t group,
                std::int64_t column, std::int32_t* sum, bool* overflows) {
    Stored stored[4];
    bool nonzero[4];
    int count = 0;
    for (int i = 0; i < 4; ++i) {
        count += weights[i] != 0;  // NaN is; -0 is not
        stored[i] = store_value(values, weights[i], scale);
        nonzero[i] = !stored[i].is_zero;
        *overflows = *overflows || stored[i].overflows;
    }
    if (count > 2) return false;
    // Which positions are kept follows from what is stored: packing what was unpacked then gives the same bytes.
    const Kept kept = kept_positions(nonzero);
    const CodeAt at = code_at(Sparse24Layout(values), group, column);
    const auto code = static_cast<std::uint32_t>(kept.first | kept.second << 2);
    panel[at.byte] &= ~static_cast<std::byte>(0xFu << at.shift);
    panel[at.byte] |= static_cast<std::byte>(code << at.shift);
    const std::int64_t offset = value_offset(values, group, column), bytes = value_bytes(values);
    int which = 0;
    for (int position : {kept.first, kept.second}) {
        const std::uint32_t bits = nonzero[position] ? stored[position].bits : 0;  // never -0
        std::memcpy(panel + offset + which * second_offset(values), &bits, static_cast<std::size_t>(bytes));
        if (values == Sparse24Values::int8) *sum += static_cast<std::int8_t>(bits);
        ++which;
    }
    return true;
}

Status pack(const PlainMatrix& matrix, const PackJob& job) {
    const Sparse24Values values = values_of(job.header.flags);
    const Sparse24Layout layout(values);
    const bool int8 = values == Sparse24Values::int8;
    if (int8 && matrix.in_features > int8_depth_limit)
        return {StatusCode::invalid_argument, job.which + ": w has in_features " + std::to_string(matrix.in_features) +
                                                  ", int8 values take at most " + std::to_string(int8_depth_limit) +
                                                  " (their int32 sums would overflow)"};
    const MatrixView view{job.payload, matrix.out_features, matrix.in_features, job.header.flags, {0, 0}};
    const Sparse24Payload payload = sparse24_payload(view, values);
    auto* panels = const_cast<std::byte*>(payload.panels);
    for (std::int64_t block = 0; block < panels_of(view) * payload.blocks; ++block)
        std::memset(panels + block * layout.block_bytes(), 0xEE, static_cast<std::size_t>(layout.code_bytes));

    LowestRow too_dense, too_large, not_finite;
    Status status = for_each_row(matrix, job.which, [&](std::int64_t row, const float* weights) {
        float scale = 1;
        if (int8 && !int8_scale(weights, matrix.in_features, &scale)) return not_finite.note(row);
        std::byte* panel = panels + row / panel_columns * payload.panel_bytes;
        std::int32_t sum = 0;
        bool overflows = false;
        for (std::int64_t k = 0; k < matrix.in_features; k += 4) {
            float group[4] = {};
            for (std::int64_t i = 0; i < 4 && k + i < matrix.in_features; ++i) group[i] = weights[k + i];
            if (!pack_group(group, values, scale, panel, k / 4, row % panel_columns, &sum, &overflows))
                return too_dense.note(row);
        }
        if (overflows) too_large.note(row);
        if (!int8) return;
        std::memcpy(const_cast<std::byte*>(payload.scales) + row * 4, &scale, 4);
        std::memcpy(const_cast<std::byte*>(payload.sums) + row * 4, &sum, 4);
    });
    if (!status.ok()) return status;
    auto fail = [&](const LowestRow& row, const std::string& text) {
        return Status(StatusCode::invalid_argument, job.which + ": row " + std::to_string(row.row()) + " of w " + text);
    };
    if (not_finite.found()) return fail(not_finite, "holds NaN or infinity, which int8 cannot represent");
    if (too_dense.found()) {
        const std::byte* src = matrix.data + too_dense.row() * matrix.row_stride;
        auto is_nonzero = [&](std::int64_t k) {
            if (k >= matrix.in_features) return false;
            if (matrix.dtype != DType::f64) return load_f32(src + k * matrix.col_stride, matrix.dtype) != 0;
            double value;
            std::memcpy(&value, src + k * matrix.col_stride, 8);
            return static_cast<float>(value) != 0;
        };
        std::int64_t group = 0;
        auto count = [&] {
            int nonzero = 0;
            for (int i = 0; i < 4; ++i) nonzero += is_nonzero(4 * group + i);
            return nonzero;
        };
        while (4 * group < matrix.in_features && count() <= 2) ++group;
        return fail(too_dense, "has " + std::to_string(count()) + " nonzero weights in group " + std::to_string(group) +
                                   " (columns " + std::to_string(4 * group) + " to " + std::to_string(4 * group + 3) +
                                   "), sparse24 keeps at most 2 of every 4; prune it first");
    }
    if (too_large.found())
        return fail(too_large, values == Sparse24Values::f16 ? "holds a weight beyond 65504, the largest f16"
                                                             : "holds a weight beyond 3.39e38, the largest bf16");
    return {};
}

void unpack_row(const MatrixView& matrix, std::int64_t row, float* weights) noexcept {
    const Sparse24Values values = values_of(matrix.flags);
    const Sparse24Layout layout(values);
    const Sparse24Payload payload = sparse24_payload(matrix, values);
    const std::byte* panel = payload.panels + row / panel_columns * payload.panel_bytes;
    const std::int64_t column = row % panel_columns;
    float scale = 1;
    if (values == Sparse24Values::int8) scale = load_f32(payload.scales + row * 4, DType::f32);
    std::memset(weights, 0, static_cast<std::size_t>(matrix.in_features) * 4);
    for (std::int64_t group = 0; group * 4 < matrix.in_features; ++group) {
        const std::uint32_t code = read_code(panel, code_at(layout, group, column));
        const std::byte* at = panel + value_offset(values, group, column);
        for (int which = 0; which < 2; ++which) {
            const std::int64_t k = group * 4 + ((code >> (2 * which)) & 3);
            const std::byte* value = at + which * second_offset(values);
            if (k >= matrix.in_features) continue;
            switch (values) {
                case Sparse24Values::bf16: weights[k] = load_f32(value, DType::bf16); break;
                case Sparse24Values::f16: weights[k] = load_f32(value, DType::f16); break;
                case Sparse24Values::f32: weights[k] = load_f32(value, DType::f32); break;
                default: weights[k] = scale * static_cast<float>(static_cast<std::int8_t>(*value));
            }
        }
    }
}

// Codes that stand for no pair are damage, whatever the checksum says.
bool payload_valid(const MatrixView& matrix, std::string* fault) {
    const Sparse24Values values = values_of(matrix.flags);
    const Sparse24Layout layout(values);
    const Sparse24Payload payload = sparse24_payload(matrix, values);
    constexpr std::uint32_t legal = 1u << 0x4 | 1u << 0x8 | 1u << 0xC | 1u << 0x9 | 1u << 0xD | 1u << 0xE;
    for (std::int64_t panel = 0; panel < panels_of(matrix); ++panel)
        for (std::int64_t block = 0; block < payload.blocks; ++block) {
            const std::byte* codes = payload.panels + panel * payload.panel_bytes + block * layout.block_bytes();
            bool all = true;
            for (std::int64_t i = 0; i < layout.code_bytes; ++i) {
                const auto two = static_cast<std::uint32_t>(codes[i]);
                all = all && (legal >> (two & 15) & 1) && (legal >> (two >> 4) & 1);
            }
            if (all) continue;
            *fault = "codes that are no pair of kept weights, in rows " + std::to_string(panel * panel_columns) +
                     " to " + std::to_string(panel * panel_columns + panel_columns - 1) + ", columns " +
                     std::to_string(block * layout.block_depth()) + " to " +
                     std::to_string((block + 1) * layout.block_depth() - 1);
            return false;
        }
    return true;
}

const FormatKernels* const bf16_table[isa_count] = {
    &ref::sparse24_bf16_kernels,
    FASTFFN_X86_KERNELS(&avx2::sparse24_bf16_kernels, &avx512::sparse24_bf16_kernels, nullptr,
                        &avx512bf16::sparse24_bf16_kernels, &amx::sparse24_bf16_kernels)};
const FormatKernels* const f16_table[isa_count] = {
    &ref::sparse24_f16_kernels,
    FASTFFN_X86_KERNELS(&avx2::sparse24_f16_kernels, &avx512::sparse24_f16_kernels, nullptr, nullptr, nullptr)};
const FormatKernels* const f32_table[isa_count] = {
    &ref::sparse24_f32_kernels,
    FASTFFN_X86_KERNELS(&avx2::sparse24_f32_kernels, &avx512::sparse24_f32_kernels, nullptr, nullptr, nullptr)};
const FormatKernels* const int8_table[isa_count] = {
    &ref::sparse24_int8_kernels,
    FASTFFN_X86_KERNELS(&avx2::sparse24_int8_kernels, nullptr, &avx512vnni::sparse24_int8_kernels, nullptr,
                        &amx::sparse24_int8_kernels)};

KernelTable kernels_for(const PackedHeader& header) noexcept {
    constexpr const FormatKernels* const* tables[sparse24_values_limit] = {bf16_table, f16_table, f32_table,
                                                                           int8_table};
    return tables[header.flags];
}

}  // namespace

const FormatDefinition sparse24_format = {
    Format::sparse24,
    "sparse24",
    matrix_bytes,
    pack,
    unpack_row,
    {&ref::sparse24_bf16_kernels,
     FASTFFN_X86_KERNELS(&avx2::sparse24_bf16_kernels, &avx512::sparse24_bf16_kernels, nullptr,
                         &avx512bf16::sparse24_bf16_kernels, &amx::sparse24_bf16_kernels)},
    options_valid,
    read_options,
    list_options,
    kernels_for,
    nullptr,  // row by row
    payload_valid,
};

}  // namespace fastffn
