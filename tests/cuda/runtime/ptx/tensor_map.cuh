// cuda/src/ptx/tensor_map.cuh on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "emulator/asynchronous.hpp"

namespace fastffn::ptx {

using TensorMap = emulator::TensorMap;

struct TensorRows {
    const void* data;
    std::int64_t row_bytes, rows, stride, matrices, matrix_bytes;
};

inline bool make_tensor_map(TensorMap* map, const TensorRows& rows, int box_rows) {
    return emulator::make_tensor_map(map, rows.data, {rows.row_bytes, rows.rows, rows.matrices},
                                     {rows.stride, rows.matrix_bytes}, rows.matrices == 0 ? 2 : 3, 128, box_rows, 128);
}

}  // namespace fastffn::ptx
