// sparse24 with int8 values and VPDPBUSD: rows as the dense kernel prepares them.
//   instruction          latency  per cycle    (Zen 4; Intel server cores)
//   vpdpbusd zmm            4         1         (1)
//   vpshufb zmm             1         1         (1: port 5)
//   vpermw zmm              4         1         (1 per 2)
#pragma once

#include "formats/int8/quads_avx512vnni.hpp"
#include "formats/sparse24/picks_avx512.hpp"
#include "formats/sparse24/select_int8.hpp"

namespace fastffn {
namespace {

inline void select_quads_multiply(const MultiplyArgs& a) noexcept {
    const Sparse24Payload payload = sparse24_payload(a.matrix, Sparse24Values::int8);
    quads_multiply_as<SelectOp<Int8Slots<DotInt8>>>(a, int8_sections(payload), payload.blocks);
}

}  // namespace
}  // namespace fastffn
