// What every packer writes around its payload.
#pragma once

#include "fastffn/packed.hpp"

namespace fastffn {

// Far above any real layer, and small enough that no product of two of them overflows a signed 64-bit integer.
constexpr std::int64_t dimension_limit = std::int64_t{1} << 31;
constexpr std::int64_t bytes_limit = std::int64_t{1} << 46;

// A header without matrix_bytes, options and checksums.
PackedHeader new_header(Format format, std::int64_t count, std::int64_t out_features,
                        std::int64_t in_features) noexcept;

// Bytes of the packed weight: header and payload.
std::int64_t total_bytes(const PackedHeader& header) noexcept;

// Computes the checksums of the payload that follows in `out`, and writes the header there.
void seal_header(PackedHeader header, std::byte* out) noexcept;

}  // namespace fastffn
