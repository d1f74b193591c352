// Codes of a quantised weight: what "ternary", "int4" and "int8" hold, taken out as plain arrays.
//
//   ternary   codes i8: -1, 0, 1        w = scale · code
//   int4      codes u8: 0 to 15         w = scale · (code - zero)    zero: 8 where there are none;   or scale · code + minimum
//   int8      codes i8: -127 to 127     w = scale · code
//
// pack() takes the codes of ternary and int4 back as they are (options "scale"; "scales", "zeros", "minima"): the same bytes
// again, but for how the header says that the scales came. Other programs' files are read and written through these arrays.
#pragma once

#include <cstdint>

#include "fastffn/packed.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

enum class CodeZeros : std::uint8_t { none, points, minima };

struct CodesInfo {
    DType dtype;          // of the codes: i8 or u8
    std::int64_t group;   // weights of a row that share a scale; the last group of a row may hold fewer
    std::int64_t groups;  // scales per row
    CodeZeros zeros;      // what goes with each scale
};

// An error for weights of any other format. `name` is what errors call the argument.
Status inspect_codes(const PackedView& packed, CodesInfo* info, const char* name = "packed");

// Writes codes [out_features, in_features] of info.dtype and scales [out_features, groups] f32, both contiguous, with a first
// dimension `count` for a stack; and where info.zeros is not none, zeros of scales' shape and dtype (else `zeros` has no data).
// Codes of weights packed with a Hadamard transform are those of the transformed weights. Verifies the checksum.
Status unpack_codes(const PackedView& packed, const TensorView& codes, const TensorView& scales,
                    const TensorView& zeros);

}  // namespace fastffn
