// Weights packed for CUDA devices: made of plain weights or of the CPU's bytes, and turned back into those. Everything here is in
// the host's memory; what lies on a device is copied by its framework.
#include <cstring>
#include <memory>
#include <new>

#include "core/overlap.hpp"
#include "fastffn/cuda.hpp"
#include "formats/container.hpp"
#include "formats/device_layout.hpp"

namespace fastffn {

namespace {

Status invalid(const std::string& text) { return {StatusCode::invalid_argument, text}; }

using Bytes = std::unique_ptr<std::byte[]>;

// A CPU's bytes of the same weights, of which the device's are made.
Status pack_on_cpu(const TensorView& w, Format format, const PackOptions& options, Bytes* bytes, PackedMatrix* matrix) {
    std::int64_t size = 0;
    if (Status status = packed_bytes(w, format, options, &size); !status.ok()) return status;
    bytes->reset(new (std::nothrow) std::byte[static_cast<std::size_t>(size)]);
    if (!*bytes) return {StatusCode::out_of_memory, "pack: no memory for " + std::to_string(size) + " bytes"};
    if (Status status = pack(w, format, options, bytes->get(), size); !status.ok()) return status;
    return open_packed({bytes->get(), size}, "pack", "w", matrix);
}

// The header of the same weights for devices.
Status device_header(const char* operation, PackedHeader header, PackedHeader* result) {
    header.layout = device_rows_layout;
    header.matrix_bytes = device_matrix_bytes(header);
    if (header.matrix_bytes == 0)
        return {StatusCode::unsupported, std::string(operation) + ": format '" +
                                             format_name(static_cast<Format>(header.format)) +
                                             "': " + device_layout_refusal(header)};
    *result = header;
    return {};
}

// And for the CPU.
PackedHeader host_header(const PackedMatrix& device) {
    PackedHeader header = device.header;
    header.layout = cpu_panels_layout;
    header.matrix_bytes = device.format->matrix_bytes(header);
    return header;
}

Status check_out(const char* operation, const PackedView& from, const void* out, std::int64_t out_bytes,
                 std::int64_t expected) {
    if (!out || out_bytes != expected)
        return invalid(std::string(operation) + ": out has " + std::to_string(out ? out_bytes : 0) +
                       " bytes, expected " + std::to_string(expected));
    if (may_overlap(TensorView(const_cast<void*>(from.data), DType::u8, {from.bytes}), out, out_bytes))
        return invalid(std::string(operation) + ": packed and out share a range of memory; give out memory of its own");
    return {};
}

Status write_device_layout(const char* operation, const PackedMatrix& matrix, const PackedHeader& header, void* out,
                           std::int64_t out_bytes) {
    auto* payload = static_cast<std::byte*>(out) + sizeof header;
    std::memset(out, 0, static_cast<std::size_t>(out_bytes));
    for (std::int64_t i = 0; i < header.count; ++i)
        if (!pack_device_matrix(matrix, i, payload + i * header.matrix_bytes))
            return {StatusCode::out_of_memory, std::string(operation) + ": no memory for a row of weights"};
    seal_header(header, static_cast<std::byte*>(out));
    return {};
}

}  // namespace

Status device_packed_bytes(const TensorView& w, Format format, const PackOptions& options, std::int64_t* bytes) {
    std::int64_t cpu_bytes = 0;
    if (Status status = packed_bytes(w, format, options, &cpu_bytes); !status.ok()) return status;
    PackedHeader header = new_header(format, w.ndim == 3 ? w.shape[0] : 1, w.shape[w.ndim - 2], w.shape[w.ndim - 1]);
    if (Status status = read_options("pack", *find_format(format), options, &header); !status.ok()) return status;
    if (Status status = device_header("pack", header, &header); !status.ok()) return status;
    *bytes = total_bytes(header);
    return {};
}

Status pack_for_device(const TensorView& w, Format format, const PackOptions& options, void* out,
                       std::int64_t out_bytes) {
    std::int64_t expected = 0;
    if (Status status = device_packed_bytes(w, format, options, &expected); !status.ok()) return status;
    if (!out || out_bytes != expected)
        return invalid("pack: out has " + std::to_string(out ? out_bytes : 0) + " bytes, expected " +
                       std::to_string(expected));
    Bytes bytes;
    PackedMatrix matrix;
    if (Status status = pack_on_cpu(w, format, options, &bytes, &matrix); !status.ok()) return status;
    PackedHeader header;
    if (Status status = device_header("pack", matrix.header, &header); !status.ok()) return status;
    return write_device_layout("pack", matrix, header, out, out_bytes);
}

Status to_device_bytes(const PackedView& packed, std::int64_t* bytes) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, "to_device", "packed", &matrix); !status.ok()) return status;
    PackedHeader header;
    if (Status status = device_header("to_device", matrix.header, &header); !status.ok()) return status;
    *bytes = total_bytes(header);
    return {};
}

Status to_device_layout(const PackedView& packed, void* out, std::int64_t out_bytes) {
    std::int64_t expected = 0;
    if (Status status = to_device_bytes(packed, &expected); !status.ok()) return status;
    if (Status status = check_out("to_device", packed, out, out_bytes, expected); !status.ok()) return status;
    PackedMatrix matrix;
    if (Status status = open_and_verify(packed, "to_device", "packed", &matrix); !status.ok()) return status;
    PackedHeader header;
    if (Status status = device_header("to_device", matrix.header, &header); !status.ok()) return status;
    return write_device_layout("to_device", matrix, header, out, out_bytes);
}

Status to_cpu_bytes(const PackedView& packed, std::int64_t* bytes) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, "to_cpu", "packed", &matrix, device_rows_layout); !status.ok())
        return status;
    *bytes = total_bytes(host_header(matrix));
    return {};
}

Status to_cpu_layout(const PackedView& packed, void* out, std::int64_t out_bytes) {
    std::int64_t expected = 0;
    if (Status status = to_cpu_bytes(packed, &expected); !status.ok()) return status;
    if (Status status = check_out("to_cpu", packed, out, out_bytes, expected); !status.ok()) return status;
    PackedMatrix matrix;
    if (Status status = open_and_verify(packed, "to_cpu", "packed", &matrix, device_rows_layout); !status.ok())
        return status;
    const PackedHeader header = host_header(matrix);
    auto* payload = static_cast<std::byte*>(out) + sizeof header;
    std::memset(out, 0, static_cast<std::size_t>(out_bytes));
    for (std::int64_t i = 0; i < header.count; ++i) {
        const Status status = restore_matrix(header, *matrix.format, i, matrix.payload + i * matrix.header.matrix_bytes,
                                             payload + i * header.matrix_bytes);
        if (!status.ok()) return {status.code(), "to_cpu: " + status.message()};
    }
    seal_header(header, static_cast<std::byte*>(out));
    return {};
}

Status check_device_weight(const PackedView& packed, const char* operation, const char* name, PackedInfo* info) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, operation, name, &matrix, device_rows_layout); !status.ok()) return status;
    const PackedHeader& header = matrix.header;
    if (info) {
        *info = {
            matrix.format->id, header.out_features, header.in_features, header.count, packed.bytes, header.flags, {}};
        if (matrix.format->list_options) info->options = matrix.format->list_options(header);
    }
    return {};
}

Status verify_device_bytes(const PackedView& packed, const char* operation, const char* name) {
    PackedMatrix matrix;
    return open_and_verify(packed, operation, name, &matrix, device_rows_layout);
}

}  // namespace fastffn
