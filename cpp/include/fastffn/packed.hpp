// Packed weights: one matrix, or a stack of `count` of them, as plain bytes with a 64-byte header.
//
// A packed weight is position independent and needs no alignment, so NumPy, safetensors, torch state_dicts, mmap and
// DLPack carry it unchanged as a contiguous uint8 array. (64-byte aligned is fastest: one cache line per load.)
// One layout per format serves every CPU instruction set.
#pragma once

#include <cstdint>
#include <string>

#include "fastffn/pack_options.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

enum class Format : std::uint8_t {
    f32 = 1,
    f16 = 2,
    bf16 = 3,
    int8 = 4,  // symmetric per output row; activations quantised per token at run time; int32 accumulation
    // Two of every four consecutive weights of a row. Option "values": how the kept ones are stored, "bf16" (default),
    // "f16", "f32" or "int8"; activations and sums are then those of that format. More than two nonzero weights in a group
    // are refused; -0 is zero. Positions that are not kept are skipped: NaN or infinity in x there reaches no sum. (A group
    // with fewer than two nonzero weights keeps zeros at fixed places; formats/sparse24/layout.hpp says which.)
    sparse24 = 5,
    lowrank = 6,  // a product of two thin matrices, each in a format of its own; see lowrank.hpp
    // -1, 0 and 1 times a scale (BitNet). Options "act", "group", "scale": see formats/ternary. Activations as int8 or int4, whose
    // sums are exact and scaled per token: one with NaN or infinity has outputs of NaN, and no other token is touched.
    ternary = 7,
    // A scale per group of a row. Options "act", "group", "zero_points", or "scales", "zeros", "minima" with codes in w. act="bf16"
    // rounds activations to bf16 instead: NaN and infinity in a token give NaN or infinity in its outputs, and in no other's.
    int4 = 8,
};
constexpr int format_limit = 16;  // one more than the largest value a Format may take in header version 1

const char* format_name(Format format) noexcept;
Status parse_format(const char* name, Format* format);  // "bf16" → Format::bf16; the error lists the known names
// Every format that packs one matrix (all but lowrank, which packs a pair), in a fixed order; returns how many were written (at most `capacity`).
int list_formats(Format* formats, int capacity) noexcept;

// The first 64 bytes of every packed weight, little endian.
struct PackedHeader {
    char magic[8];                // "fastffn\0"
    std::uint16_t version;        // of this header and of the layouts: 1
    std::uint8_t format;          // Format
    std::uint8_t layout;          // 1: CPU panels of 16 output columns; 2: rows for GPUs (cuda.hpp)
    std::uint32_t flags;          // per format, from its options; 0 for a format without options
    std::int64_t out_features;    // rows of the weight as torch.nn.Linear holds it
    std::int64_t in_features;     // columns: the reduction dimension
    std::int64_t count;           // matrices in the stack: 1 unless packed from a [count, out, in] array
    std::int64_t matrix_bytes;    // payload bytes per matrix, a multiple of 64
    std::uint32_t parameters[2];  // per format, from its options (group or block size); 0 for a format without options
    std::uint32_t payload_check;  // checksum of the payload; verify_packed compares it
    std::uint32_t header_check;   // checksum of the 60 bytes before it; every call compares it
};
static_assert(sizeof(PackedHeader) == 64, "the header is one cache line");

struct PackedInfo {
    Format format;
    std::int64_t out_features, in_features, count;
    std::int64_t bytes;  // header and payload
    std::uint32_t flags;
    PackOptions options;  // that pack() was given, and the defaults of those it was not; empty for a format without any
};

// A packed weight as callers pass it: bytes and how many there are.
struct PackedView {
    const void* data = nullptr;
    std::int64_t bytes = 0;
    const PackedHeader* header = nullptr;  // of bytes on a device: a copy of their first 64 that the CPU can read
};

// Bytes that pack() writes for w of shape [out_features, in_features] or [count, out_features, in_features].
Status packed_bytes(const TensorView& w, Format format, std::int64_t* bytes);
Status packed_bytes(const TensorView& w, Format format, const PackOptions& options, std::int64_t* bytes);

// Packs w (f32, f16, bf16, or f64, which is rounded to f32 first; any strides) into `out`, which holds exactly
// packed_bytes(). Finite weights that the format would turn into infinity are refused, and NaN and infinity by int8; dimensions of 0 too.
Status pack(const TensorView& w, Format format, void* out, std::int64_t out_bytes);
// With options that the format has; one that it has not, or a value it does not take, is an error.
Status pack(const TensorView& w, Format format, const PackOptions& options, void* out, std::int64_t out_bytes);

// Writes the weights back, dequantised, to w of the shape they were packed from (f32, f16 or bf16, contiguous).
Status unpack(const PackedView& packed, const TensorView& w);

// Checks the header and the size in constant time; fills info. `name` is what errors call the argument.
Status inspect(const PackedView& packed, PackedInfo* info, const char* name = "packed");

// inspect(), and reads every byte to compare the payload's checksum.
Status verify_packed(const PackedView& packed, const char* name = "packed");

}  // namespace fastffn
