// The packed container: header, checksums, and packing and unpacking through the format's own functions.
#include "fastffn/packed.hpp"

#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "core/checksum.hpp"
#include "core/convert.hpp"
#include "core/names.hpp"
#include "core/overlap.hpp"
#include "core/parallel.hpp"
#include "fastffn/context.hpp"
#include "formats/container.hpp"
#include "formats/device_layout.hpp"
#include "formats/format.hpp"

namespace fastffn {

namespace {

constexpr char magic[8] = {'f', 'a', 's', 't', 'f', 'f', 'n', '\0'};
constexpr std::uint16_t header_version = 1;

std::uint32_t header_checksum(const PackedHeader& header) {
    return checksum(reinterpret_cast<const std::byte*>(&header), 60);
}

bool is_float(DType dtype) {
    return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16 || dtype == DType::f64;
}

// Shape and dtype of a plain weight, as a header without checksums.
Status plan_pack(const char* operation, const TensorView& w, const FormatDefinition& format, const PackOptions& options,
                 PackedHeader* header) {
    auto fail = [&](const std::string& text) {
        return Status(StatusCode::invalid_argument, std::string(operation) + ": " + text);
    };
    if (!format.pack)
        return fail(std::string("format '") + format.name +
                    "' packs a pair of factors, not a matrix; give pack() (u, v), or call pack_factors()");
    if (w.ndim != 2 && w.ndim != 3)
        return fail("w has shape " + w.shape_string() +
                    ", expected [out_features, in_features] or [count, out_features, in_features]");
    const bool integers = w.dtype == DType::i8 || w.dtype == DType::u8;
    const bool takes_codes = format.codes && format.codes->packs_codes;
    if (!is_float(w.dtype) && !(integers && takes_codes))
        return fail(std::string("w has dtype ") + dtype_name(w.dtype) + ", expected f32, f16, bf16 or f64");
    std::int64_t extents[3] = {1, 0, 0};
    for (int i = 0; i < w.ndim; ++i) extents[3 - w.ndim + i] = w.shape[i];
    for (std::int64_t extent : extents)
        if (extent < 1 || extent >= dimension_limit)
            return fail("w has shape " + w.shape_string() + ", expected every dimension from 1 to 2^31 - 1");
    *header = new_header(format.id, extents[0], extents[1], extents[2]);
    if (extents[1] > bytes_limit / 16 / extents[2]) return fail("w has shape " + w.shape_string() + ", too large");
    if (Status status = read_options(operation, format, options, header); !status.ok()) return status;
    if (integers && !format.codes->packs_codes(*header))
        return fail(std::string("w has dtype ") + dtype_name(w.dtype) +
                    ", which is for codes that come with their scales; expected f32, f16, bf16 or f64");
    header->matrix_bytes = format.matrix_bytes(*header);
    if (header->matrix_bytes > bytes_limit / extents[0]) return fail("w has shape " + w.shape_string() + ", too large");
    return {};
}

// Payload bytes of one matrix in the layout that the header names.
std::int64_t layout_bytes(const FormatDefinition& format, const PackedHeader& header) {
    return header.layout == device_rows_layout ? device_matrix_bytes(header) : format.matrix_bytes(header);
}

Status find_or_fail(const char* operation, Format format, const FormatDefinition** definition) {
    *definition = find_format(format);
    if (*definition) return {};
    return {StatusCode::invalid_argument,
            std::string(operation) + ": format number " + std::to_string(static_cast<int>(format)) + " is not known"};
}

}  // namespace

PackedHeader new_header(Format format, std::int64_t count, std::int64_t out_features,
                        std::int64_t in_features) noexcept {
    PackedHeader header{};
    std::memcpy(header.magic, magic, sizeof magic);
    header.version = header_version;
    header.format = static_cast<std::uint8_t>(format);
    header.layout = cpu_panels_layout;
    header.count = count;
    header.out_features = out_features;
    header.in_features = in_features;
    return header;
}

std::int64_t total_bytes(const PackedHeader& header) noexcept {
    return static_cast<std::int64_t>(sizeof(PackedHeader)) + header.count * header.matrix_bytes;
}

void seal_header(PackedHeader header, std::byte* out) noexcept {
    header.payload_check = checksum(out + sizeof header, header.count * header.matrix_bytes);
    header.header_check = header_checksum(header);
    std::memcpy(out, &header, sizeof header);
}

Status packed_bytes(const TensorView& w, Format format, std::int64_t* bytes) {
    return packed_bytes(w, format, {}, bytes);
}

Status packed_bytes(const TensorView& w, Format format, const PackOptions& options, std::int64_t* bytes) {
    const FormatDefinition* definition = nullptr;
    if (Status status = find_or_fail("packed_bytes", format, &definition); !status.ok()) return status;
    PackedHeader header;
    if (Status status = plan_pack("pack", w, *definition, options, &header); !status.ok()) return status;
    *bytes = total_bytes(header);
    return {};
}

Status pack(const TensorView& w, Format format, void* out, std::int64_t out_bytes) {
    return pack(w, format, {}, out, out_bytes);
}

Status pack(const TensorView& w, Format format, const PackOptions& options, void* out, std::int64_t out_bytes) {
    const FormatDefinition* definition = nullptr;
    if (Status status = find_or_fail("pack", format, &definition); !status.ok()) return status;
    PackedHeader header;
    if (Status status = plan_pack("pack", w, *definition, options, &header); !status.ok()) return status;
    if (w.ndim > 0 && w.data && out && may_overlap(w, out, out_bytes))
        return {StatusCode::invalid_argument, "pack: w and out share a range of memory; give out memory of its own"};
    if (!w.data || !out) return {StatusCode::invalid_argument, "pack: w and out must not be null"};
    if (out_bytes != total_bytes(header))
        return {StatusCode::invalid_argument, "pack: out has " + std::to_string(out_bytes) + " bytes, expected " +
                                                  std::to_string(total_bytes(header))};
    auto* bytes = static_cast<std::byte*>(out);
    const std::int64_t element = dtype_bytes(w.dtype);
    const int rows_dim = w.ndim - 2;
    std::memset(bytes, 0, static_cast<std::size_t>(out_bytes));
    for (std::int64_t i = 0; i < header.count; ++i) {
        const std::int64_t offset = w.ndim == 3 ? i * w.strides[0] * element : 0;
        const PlainMatrix matrix{static_cast<const std::byte*>(w.data) + offset,
                                 w.dtype,
                                 header.out_features,
                                 header.in_features,
                                 w.strides[rows_dim] * element,
                                 w.strides[rows_dim + 1] * element};
        const std::string which = header.count == 1 ? "pack" : "pack: matrix " + std::to_string(i);
        const PackJob job{header, options, i, bytes + sizeof header + i * header.matrix_bytes, which};
        Status status = definition->pack(matrix, job);
        if (!status.ok()) return status;
    }
    seal_header(header, bytes);
    return {};
}

Status unpack(const PackedView& packed, const TensorView& w) {
    PackedMatrix matrix;
    if (Status status = open_and_verify(packed, "unpack", "packed", &matrix); !status.ok()) return status;
    const PackedHeader& header = matrix.header;
    TensorView expected = header.count == 1 && w.ndim == 2
                              ? TensorView(w.data, w.dtype, {header.out_features, header.in_features})
                              : TensorView(w.data, w.dtype, {header.count, header.out_features, header.in_features});
    bool same = w.ndim == expected.ndim;
    for (int i = 0; same && i < w.ndim; ++i)
        same = w.shape[i] == expected.shape[i] && (w.shape[i] == 1 || w.strides[i] == expected.strides[i]);
    if (!same)
        return {StatusCode::invalid_argument,
                "unpack: w has shape " + w.shape_string() + ", expected contiguous " + expected.shape_string()};
    if (!is_float(w.dtype) || w.dtype == DType::f64)
        return {StatusCode::invalid_argument,
                std::string("unpack: w has dtype ") + dtype_name(w.dtype) + ", expected f32, f16 or bf16"};
    if (!w.data) return {StatusCode::invalid_argument, "unpack: w has no data"};
    auto* dst = static_cast<std::byte*>(w.data);
    const std::int64_t element = dtype_bytes(w.dtype), row_bytes = header.in_features * element;
    std::atomic<bool> out_of_memory{false};
    if (matrix.format->unpack_all) {
        for (std::int64_t i = 0; i < header.count && !out_of_memory; ++i)
            if (!matrix.format->unpack_all(matrix.view(i), dst + i * header.out_features * row_bytes, w.dtype))
                out_of_memory = true;
        if (out_of_memory) return {StatusCode::out_of_memory, "unpack: no memory for the factors"};
        return {};
    }
    parallel_for(usable_threads(default_threads()), header.count, [&](std::int64_t i, int) {
        const std::unique_ptr<float[]> row(new (std::nothrow) float[static_cast<std::size_t>(header.in_features)]);
        if (!row) {
            out_of_memory = true;
            return;
        }
        for (std::int64_t r = 0; r < header.out_features; ++r) {
            matrix.format->unpack_row(matrix.view(i), r, row.get());
            std::byte* at = dst + (i * header.out_features + r) * row_bytes;
            for (std::int64_t c = 0; c < header.in_features; ++c)
                store_f32(at + c * element, w.dtype, row[static_cast<std::size_t>(c)]);
        }
    });
    if (out_of_memory) return {StatusCode::out_of_memory, "unpack: no memory for a row of weights"};
    return {};
}

Status open_packed(const PackedView& packed, const char* operation, const char* name, PackedMatrix* matrix,
                   std::uint8_t layout) {
    auto fail = [&](const std::string& text) {
        return Status(StatusCode::corrupt, std::string(operation) + ": " + name + " " + text);
    };
    if (!packed.data) return {StatusCode::invalid_argument, std::string(operation) + ": " + name + " is null"};
    if (packed.bytes < static_cast<std::int64_t>(sizeof(PackedHeader)))
        return fail("has " + std::to_string(packed.bytes) +
                    " bytes, less than the 64-byte header of a packed weight; make it with pack()");
    PackedHeader& header = matrix->header;
    std::memcpy(&header, packed.header ? static_cast<const void*>(packed.header) : packed.data, sizeof header);
    if (std::memcmp(header.magic, magic, sizeof magic) != 0)
        return fail("is not a packed weight (its first bytes are not 'fastffn'); make it with pack()");
    if (header.header_check != header_checksum(header)) return fail("has a damaged header (its checksum differs)");
    if (header.version != header_version)
        return fail("has header version " + std::to_string(header.version) + ", this library reads version " +
                    std::to_string(header_version) + "; pack the weight again");
    matrix->format = find_format(static_cast<Format>(header.format));
    if (!matrix->format)
        return fail("has format number " + std::to_string(header.format) + ", unknown to this version of the library");
    if (header.layout == device_rows_layout && layout == cpu_panels_layout)
        return fail("is packed for CUDA devices, and this call runs on the CPU; pack it without device=");
    if (header.layout != layout)
        return fail("has layout " + std::to_string(header.layout) + ", expected " + std::to_string(layout) +
                    (layout == cpu_panels_layout ? " of CPUs" : " of CUDA devices; pack it with device="));
    const bool no_options = header.flags == 0 && header.parameters[0] == 0 && header.parameters[1] == 0;
    if (matrix->format->options_valid ? !matrix->format->options_valid(header) : !no_options)
        return fail("has options that this version of the library does not know (flags " +
                    std::to_string(header.flags) + ", parameters " + std::to_string(header.parameters[0]) + " and " +
                    std::to_string(header.parameters[1]) + ")");
    // The checksum above is no proof of origin: a forged header must still not lead a kernel out of the payload.
    auto in_range = [](std::int64_t extent) { return extent >= 1 && extent < dimension_limit; };
    if (!in_range(header.out_features) || !in_range(header.in_features) || !in_range(header.count) ||
        header.out_features > bytes_limit / 16 / header.in_features ||
        header.matrix_bytes != layout_bytes(*matrix->format, header) ||
        header.matrix_bytes > bytes_limit / header.count)
        return fail("has a header whose sizes contradict each other");
    if (packed.bytes != total_bytes(header))
        return fail("has " + std::to_string(packed.bytes) + " bytes, its header says " +
                    std::to_string(total_bytes(header)) +
                    (packed.bytes < total_bytes(header) ? "; it was truncated" : "; something follows it"));
    matrix->payload = static_cast<const std::byte*>(packed.data) + sizeof header;
    return {};
}

Status open_and_verify(const PackedView& packed, const char* operation, const char* name, PackedMatrix* matrix,
                       std::uint8_t layout) {
    if (Status status = open_packed(packed, operation, name, matrix, layout); !status.ok()) return status;
    const std::int64_t bytes = packed.bytes - static_cast<std::int64_t>(sizeof(PackedHeader));
    if (checksum(matrix->payload, bytes) != matrix->header.payload_check)
        return {StatusCode::corrupt,
                std::string(operation) + ": " + name + " has damaged weights (their checksum differs)"};
    if (layout != cpu_panels_layout) return {};
    std::string fault;
    for (std::int64_t i = 0; matrix->format->payload_valid && i < matrix->header.count; ++i)
        if (!matrix->format->payload_valid(matrix->view(i), &fault))
            return {StatusCode::corrupt, std::string(operation) + ": " + name + " has damaged weights (" +
                                             (matrix->header.count > 1 ? "matrix " + std::to_string(i) + ": " : "") +
                                             fault + ")"};
    return {};
}

Status inspect(const PackedView& packed, PackedInfo* info, const char* name) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, "inspect", name, &matrix); !status.ok()) return status;
    const PackedHeader& header = matrix.header;
    *info = {matrix.format->id, header.out_features, header.in_features, header.count, packed.bytes, header.flags, {}};
    if (matrix.format->list_options) info->options = matrix.format->list_options(header);
    return {};
}

Status verify_packed(const PackedView& packed, const char* name) {
    PackedMatrix matrix;
    return open_and_verify(packed, "verify", name, &matrix);
}

}  // namespace fastffn
