// What a weight format is, apart from its kernels: a name, a layout, and how weights go in and out of it.
#pragma once

#include "core/kernel.hpp"
#include "fastffn/codes.hpp"
#include "fastffn/cpu.hpp"
#include "fastffn/packed.hpp"
#include "formats/options.hpp"

namespace fastffn {

// One plain [out_features, in_features] matrix of a stack, any strides (bytes), f32, f16, bf16 or f64.
struct PlainMatrix {
    const std::byte* data;
    DType dtype;
    std::int64_t out_features, in_features;
    std::int64_t row_stride, col_stride;
};

// What a format's pack() gets beside the weights. Not for keeping: everything lives as long as the call.
struct PackJob {
    const PackedHeader& header;  // dims, flags, parameters, matrix_bytes
    const PackOptions& options;  // checked by read_options; for arrays that the header cannot hold
    std::int64_t index;          // of the matrix in its stack
    std::byte* payload;          // matrix_bytes, zeroed
    const std::string& which;    // names the matrix in errors: "pack" or "pack: matrix 3"
};

// How a format of codes gives them back; see fastffn/codes.hpp.
struct CodesReader {
    CodesInfo (*describe)(const PackedHeader& header) noexcept;
    // One row: in_features codes, and `groups` scales and zeros (zeros only where there are any).
    void (*read_row)(const MatrixView& matrix, std::int64_t row, std::byte* codes, float* scales,
                     float* zeros) noexcept;
    // Whether w holds codes by what its header says, so that it may be of integers.
    bool (*packs_codes)(const PackedHeader& header) noexcept;
};

// Kernels by instruction set; nullptr: the next lower set's serve.
using KernelTable = const FormatKernels* const*;

struct FormatDefinition {
    Format id;
    const char* name;
    // Payload bytes of one matrix; a multiple of 64.
    std::int64_t (*matrix_bytes)(const PackedHeader& header) noexcept;
    // nullptr: not made of one matrix but by a function of its own (lowrank).
    Status (*pack)(const PlainMatrix& matrix, const PackJob& job);
    // One row of weights as f32.
    void (*unpack_row)(const MatrixView& matrix, std::int64_t row, float* weights) noexcept;
    // For weights packed without options.
    const FormatKernels* kernels[isa_count];
    // Whether flags and parameters of a header are ones this version writes; nullptr: all must be 0.
    bool (*options_valid)(const PackedHeader& header) noexcept = nullptr;
    // Options of pack() → flags and parameters of the header, whose format and dims are set; nullptr: it takes none.
    void (*read_options)(OptionReader& options, PackedHeader* header) = nullptr;
    // The other way round, for info(); nullptr: none.
    PackOptions (*list_options)(const PackedHeader& header) = nullptr;
    // isa_count kernels for what the header says; nullptr: `kernels`.
    KernelTable (*kernels_for)(const PackedHeader& header) noexcept = nullptr;
    // The whole matrix to dst, [out_features, in_features] of dtype f32, f16 or bf16, where rows have work in common; false
    // when memory ran out. nullptr: row by row.
    bool (*unpack_all)(const MatrixView& matrix, std::byte* dst, DType dtype) noexcept = nullptr;
    // What verify_packed() and unpack() look for beside the checksum: bytes that no pack() writes; `fault` names them.
    bool (*payload_valid)(const MatrixView& matrix, std::string* fault) = nullptr;
    const CodesReader* codes = nullptr;  // for formats of codes and scales
};

// The options of a call of `operation` into a header whose format and dims are set.
Status read_options(const char* operation, const FormatDefinition& format, const PackOptions& options,
                    PackedHeader* header);

// nullptr when unknown.
const FormatDefinition* find_format(Format format) noexcept;

// The kernels of the best set up to `isa`, for weights packed without options.
const FormatKernels& format_kernels(const FormatDefinition& format, Isa isa) noexcept;

// A packed weight whose header was checked.
struct PackedMatrix {
    const FormatDefinition* format = nullptr;
    PackedHeader header;
    const std::byte* payload = nullptr;

    MatrixView view(std::int64_t index = 0) const {
        return {payload + index * header.matrix_bytes,
                header.out_features,
                header.in_features,
                header.flags,
                {header.parameters[0], header.parameters[1]}};
    }
};

// The same for these weights: what runs may depend on the options they were packed with.
const FormatKernels& format_kernels(const PackedMatrix& matrix, Isa isa) noexcept;
const FormatKernels& format_kernels(const FormatDefinition& format, const PackedHeader& header, Isa isa) noexcept;

// The layout of a header: who can multiply by such bytes.
constexpr std::uint8_t cpu_panels_layout = 1, device_rows_layout = 2;

// open_packed(), and every byte: the payload's checksum, and on the CPU what payload_valid() looks for.
Status open_and_verify(const PackedView& packed, const char* operation, const char* name, PackedMatrix* matrix,
                       std::uint8_t layout = cpu_panels_layout);

// Checks a packed weight as every call does: `operation` and `name` go into the message. Weights on a device (layout
// device_rows_layout) bring a copy of their header; nothing behind it is read.
Status open_packed(const PackedView& packed, const char* operation, const char* name, PackedMatrix* matrix,
                   std::uint8_t layout = cpu_panels_layout);

extern const FormatDefinition f32_format, f16_format, bf16_format, int8_format;
extern const FormatDefinition lowrank_format, sparse24_format, ternary_format, int4_format;

}  // namespace fastffn
