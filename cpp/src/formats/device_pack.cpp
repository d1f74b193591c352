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

Status renamed(const Status& status, const char* operation) {
    constexpr const char* prefix = "pack: ";
    return status.message().rfind(prefix, 0) == 0
               ? Status(status.code(), std::string(operation) + status.message().substr(std::strlen(prefix) - 2))
               : status;
}

// The header of the same weights for the CPU.
PackedHeader host_header(const PackedMatrix& device) {
    PackedHeader header = cpu_header(device.header);
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
    if (Status status = device_header(header, &header); !status.ok()) return status;
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
    if (Status status = device_header(matrix, &header); !status.ok()) return status;
    return write_device_layout("pack", matrix, header, out, out_bytes);
}

Status device_packed_bytes(const PackedView& packed, std::int64_t* bytes) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, "to_device", "packed", &matrix); !status.ok()) return status;
    PackedHeader header;
    if (Status status = device_header(matrix, &header); !status.ok()) return renamed(status, "to_device");
    *bytes = total_bytes(header);
    return {};
}

Status pack_for_device(const PackedView& packed, void* out, std::int64_t out_bytes) {
    std::int64_t expected = 0;
    if (Status status = device_packed_bytes(packed, &expected); !status.ok()) return status;
    if (Status status = check_out("to_device", packed, out, out_bytes, expected); !status.ok()) return status;
    PackedMatrix matrix;
    if (Status status = open_and_verify(packed, "to_device", "packed", &matrix); !status.ok()) return status;
    PackedHeader header;
    if (Status status = device_header(matrix, &header); !status.ok()) return renamed(status, "to_device");
    return write_device_layout("to_device", matrix, header, out, out_bytes);
}

Status cpu_packed_bytes(const PackedView& packed, std::int64_t* bytes) {
    PackedMatrix matrix;
    if (Status status = open_packed(packed, "to_cpu", "packed", &matrix, device_rows_layout); !status.ok())
        return status;
    *bytes = total_bytes(host_header(matrix));
    return {};
}

Status pack_for_cpu(const PackedView& packed, void* out, std::int64_t out_bytes) {
    std::int64_t expected = 0;
    if (Status status = cpu_packed_bytes(packed, &expected); !status.ok()) return status;
    if (Status status = check_out("to_cpu", packed, out, out_bytes, expected); !status.ok()) return status;
    PackedMatrix matrix;
    if (Status status = open_and_verify(packed, "to_cpu", "packed", &matrix, device_rows_layout); !status.ok())
        return status;
    const PackedHeader header = host_header(matrix);
    auto* payload = static_cast<std::byte*>(out) + sizeof header;
    std::memset(out, 0, static_cast<std::size_t>(out_bytes));
    for (std::int64_t i = 0; i < header.count; ++i) {
        const Status status = restore_matrix(header, *matrix.format, matrix.payload + i * matrix.header.matrix_bytes,
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
