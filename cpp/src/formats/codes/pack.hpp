// What packing ternary and int4 shares: options, writing codes, and reading them back.
#pragma once

#include <cmath>

#include "core/cpu.hpp"
#include "core/hadamard_modes.hpp"
#include "formats/codes/layout.hpp"
#include "formats/common/panels.hpp"

namespace fastffn {
namespace {

// How pack() came by the scales, in the header for info().
enum class CodesScale : std::uint32_t { tensor = 0, row = 1, given = 2 };

template <int bits>
std::int64_t codes_matrix_bytes(const PackedHeader& header) noexcept {
    return CodesLayout<bits>(nullptr, header.out_features, header.in_features, header.flags, header.parameters[0])
        .bytes;
}

inline bool codes_group_valid(std::int64_t group) {
    return group == 0 || group == 32 || group == 64 || group == 128 || group == 256;
}

// hadamard: x meets the weights as H · x. w is latent weights, rotated before they become codes, unless `rotated`.
inline void read_hadamard_options(OptionReader& options, PackedHeader* header) {
    const int mode = options.choice("hadamard", {"none", "pow2", "kron", "block"}, 0);
    const std::int64_t block = options.integer("block", 2, codes_hadamard_limit, 0);
    const bool rotated = options.boolean("rotated", false);
    if (mode == 0) {
        if (rotated) options.fail("option 'rotated' needs a 'hadamard' mode other than 'none'");
        if (block) options.fail("option 'block' is for hadamard='block'");
        return;
    }
    const std::string fault =
        hadamard_fault(static_cast<Hadamard>(mode), header->in_features, block, "w's in_features");
    if (!fault.empty()) return options.fail(fault);
    if (header->in_features > codes_hadamard_limit)
        return options.fail("w has in_features " + std::to_string(header->in_features) +
                            ", with a hadamard mode it may have up to " + std::to_string(codes_hadamard_limit));
    HadamardShape shape;
    hadamard_shape(static_cast<Hadamard>(mode), header->in_features, block, false, &shape);
    header->flags |= static_cast<std::uint32_t>(mode) << codes_hadamard_shift | (rotated ? codes_rotated : 0);
    if (static_cast<Hadamard>(mode) == Hadamard::block) header->parameters[1] = static_cast<std::uint32_t>(shape.power);
}

// Options that both formats have: act, order; hadamard, block and rotated.
inline void read_codes_options(OptionReader& options, PackedHeader* header) {
    const bool has_bf16 = static_cast<Format>(header->format) == Format::int4;
    const int act = options.choice(
        "act", has_bf16 ? std::vector<std::string>{"int8", "int4", "bf16"} : std::vector<std::string>{"int8", "int4"},
        0);
    header->flags |= static_cast<std::uint32_t>(act) << codes_act_shift;
    const int order = options.choice("order", {"panels", "rows", "columns"}, 0);
    header->flags |= static_cast<std::uint32_t>(order) << codes_order_shift;
    if (order != codes_order_panels && act == codes_act_bf16)
        options.fail("option 'act' of format 'int4' is 'bf16', which is for order 'panels' only");
    if (order == codes_order_columns && header->in_features > codes_columns_depth_limit)
        options.fail("w has in_features " + std::to_string(header->in_features) + ", order 'columns' takes at most " +
                     std::to_string(codes_columns_depth_limit) + " (its int32 sums would overflow)");
    if (header->in_features > codes_depth_limit)
        options.fail("w has in_features " + std::to_string(header->in_features) + ", this format takes at most " +
                     std::to_string(codes_depth_limit) + " (its int32 sums would overflow)");
    read_hadamard_options(options, header);
}

// Codes with scales of the caller's cannot be rotated: they are of the basis of H · x already.
inline void read_codes_are_given(OptionReader& options, PackedHeader* header) {
    if (!(header->flags & codes_hadamard_mask)) return;
    if (!options.boolean("rotated", true))
        options.fail("option 'rotated' is false with given scales: codes cannot be rotated");
    header->flags |= codes_rotated;
}

inline bool codes_hadamard_valid(const PackedHeader& header) {
    HadamardShape shape;
    const bool transforms = (header.flags & codes_hadamard_mask) != 0;
    if (!transforms) return !(header.flags & codes_rotated) && header.parameters[1] == 0;
    const bool blocks = (header.flags & codes_hadamard_mask) >> codes_hadamard_shift == std::uint32_t(Hadamard::block);
    return header.in_features <= codes_hadamard_limit && blocks == (header.parameters[1] != 0) &&
           codes_hadamard(header.flags, header.in_features, header.parameters[1], false, &shape);
}

inline void list_hadamard_options(const PackedHeader& header, PackOptions* options) {
    const auto mode = static_cast<Hadamard>((header.flags & codes_hadamard_mask) >> codes_hadamard_shift);
    options->push_back({"hadamard", hadamard_name(mode)});
    if (mode == Hadamard::block) options->push_back({"block", static_cast<std::int64_t>(header.parameters[1])});
    if (mode != Hadamard::none) options->push_back({"rotated", (header.flags & codes_rotated) != 0});
}

// for_each_row() of w in the basis of H · x.
template <class Put>
Status for_each_code_row(const PlainMatrix& matrix, const PackJob& job, Put&& put) {
    const std::uint32_t flags = job.header.flags;
    if (!(flags & codes_hadamard_mask) || (flags & codes_rotated)) return for_each_row(matrix, job.which, put);
    HadamardShape shape;
    codes_hadamard(flags, matrix.in_features, job.header.parameters[1], false, &shape);
    const HadamardKernel transform = hadamard_kernel(chosen_isa());
    return for_each_row(matrix, job.which, [&](std::int64_t row, float* weights) {
        transform(reinterpret_cast<const std::byte*>(weights), DType::f32, weights, shape);
        put(row, weights);
    });
}

inline const char* codes_act_name(std::uint32_t flags) {
    constexpr const char* names[] = {"int8", "int4", "bf16", "unknown"};
    return names[(flags & codes_act_mask) >> codes_act_shift];
}

inline void list_order_option(const PackedHeader& header, PackOptions* options) {
    constexpr const char* names[] = {"panels", "rows", "columns", "unknown"};
    options->push_back({"order", names[codes_order(header.flags)]});
}

// The bits of order that a header of this version may have.
inline bool codes_order_valid(const PackedHeader& header) {
    return codes_order(header.flags) <= codes_order_columns &&
           (codes_order(header.flags) == codes_order_panels || codes_act(header.flags) != codes_act_bf16) &&
           (codes_order(header.flags) != codes_order_columns || header.in_features <= codes_columns_depth_limit);
}

template <int bits>
void put_code(const CodesLayout<bits>& layout, std::int64_t column, std::int64_t k, int code) {
    auto* byte = const_cast<std::byte*>(layout.panels) + layout.code_byte(column, k);
    const auto bits_in_place = static_cast<std::byte>(code << layout.code_shift(column, k));
    // In order columns a byte belongs to rows of several panels, and so to several threads.
    if (layout.order == codes_order_columns)
        __atomic_fetch_or(reinterpret_cast<unsigned char*>(byte), static_cast<unsigned char>(bits_in_place),
                          __ATOMIC_RELAXED);
    else *byte |= bits_in_place;
}

template <int bits>
int get_code(const CodesLayout<bits>& layout, std::int64_t column, std::int64_t k) {
    return static_cast<int>(layout.panels[layout.code_byte(column, k)]) >> layout.code_shift(column, k) &
           CodeTraits<bits>::mask;
}

template <int bits>
void codes_unpack_row(const MatrixView& matrix, std::int64_t row, float* weights) noexcept {
    const CodesLayout<bits> layout(matrix);
    const std::uint32_t zeros_kind = matrix.flags & codes_zeros_mask;
    for (std::int64_t k = 0; k < matrix.in_features; ++k) {
        const std::int64_t entry = layout.entry(row, k);
        const float scale = layout.group ? load_f32(layout.scales + entry * 2, DType::f16)
                                         : load_f32(layout.scales + row * 4, DType::f32);
        const int code = get_code(layout, row, k);
        if (zeros_kind == codes_minima) {
            weights[k] = scale * static_cast<float>(code) + load_f32(layout.zeros + entry * 2, DType::f16);
            continue;
        }
        const int zero =
            zeros_kind == codes_zero_points ? static_cast<int>(layout.zeros[entry]) : CodeTraits<bits>::zero;
        weights[k] = scale * static_cast<float>(code - zero);
    }
    if (!(matrix.flags & codes_hadamard_mask) || (matrix.flags & codes_rotated)) return;
    HadamardShape shape;
    codes_hadamard(matrix.flags, matrix.in_features, matrix.parameters[1], true, &shape);
    hadamard_kernel(chosen_isa())(reinterpret_cast<const std::byte*>(weights), DType::f32, weights, shape);
}

// What no pack() writes, whatever the checksum says: scales and minima that are not finite, zero points beyond 15.
template <int bits>
bool codes_scales_valid(const MatrixView& matrix, std::string* fault) {
    const CodesLayout<bits> layout(matrix);
    const std::uint32_t zeros_kind = matrix.flags & codes_zeros_mask;
    for (std::int64_t row = 0; row < matrix.out_features; ++row)
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::int64_t entry = layout.entry(row, g * layout.group);
            const float scale = layout.group ? load_f32(layout.scales + entry * 2, DType::f16)
                                             : load_f32(layout.scales + row * 4, DType::f32);
            if (!std::isfinite(scale)) {
                *fault = "a scale that is not finite, of row " + std::to_string(row);
            } else if (zeros_kind == codes_zero_points && layout.zeros[entry] > std::byte{15}) {
                *fault = "a zero point beyond 15, of row " + std::to_string(row);
            } else if (zeros_kind == codes_minima && !std::isfinite(load_f32(layout.zeros + entry * 2, DType::f16))) {
                *fault = "a minimum that is not finite, of row " + std::to_string(row);
            } else {
                continue;
            }
            return false;
        }
    return true;
}

// For fastffn/codes.hpp.
template <int bits>
CodesInfo codes_describe(const PackedHeader& header) noexcept {
    const CodesLayout<bits> layout(nullptr, header.out_features, header.in_features, header.flags,
                                   header.parameters[0]);
    const std::uint32_t zeros = header.flags & codes_zeros_mask;
    return {bits == 2 ? DType::i8 : DType::u8, layout.group ? layout.group : header.in_features, layout.groups,
            zeros == codes_zero_points ? CodeZeros::points
            : zeros == codes_minima    ? CodeZeros::minima
                                       : CodeZeros::none};
}

template <int bits>
void codes_read_row(const MatrixView& matrix, std::int64_t row, std::byte* codes, float* scales,
                    float* zeros) noexcept {
    const CodesLayout<bits> layout(matrix);
    for (std::int64_t k = 0; k < matrix.in_features; ++k)
        codes[k] = static_cast<std::byte>(get_code(layout, row, k) - (bits == 2 ? 1 : 0));
    for (std::int64_t g = 0; g < layout.groups; ++g) {
        const std::int64_t entry = layout.entry(row, g * layout.group);
        scales[g] = layout.group ? load_f32(layout.scales + entry * 2, DType::f16)
                                 : load_f32(layout.scales + row * 4, DType::f32);
        if ((matrix.flags & codes_zeros_mask) == codes_minima)
            zeros[g] = load_f32(layout.zeros + entry * 2, DType::f16);
        else if ((matrix.flags & codes_zeros_mask) == codes_zero_points)
            zeros[g] = static_cast<float>(static_cast<std::uint8_t>(layout.zeros[entry]));
    }
}

inline bool codes_are_given(const PackedHeader& header) noexcept {
    return static_cast<CodesScale>((header.flags & codes_scale_mask) >> codes_scale_shift) == CodesScale::given;
}

template <int bits>
constexpr CodesReader codes_reader = {codes_describe<bits>, codes_read_row<bits>, codes_are_given};

}  // namespace
}  // namespace fastffn
