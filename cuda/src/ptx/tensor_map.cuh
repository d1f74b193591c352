// What a bulk tensor copy knows of its tensor: made by the host, passed to the kernel by value (const __grid_constant__).
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastffn::ptx {

using TensorMap = CUtensorMap;

// Rows of bytes, of one matrix or of a stack.
struct TensorRows {
    const void* data;        // 16-aligned
    std::int64_t row_bytes;  // what lies behind is read as zeros, as are rows behind the last
    std::int64_t rows;
    std::int64_t stride;        // bytes from row to row, a multiple of 16
    std::int64_t matrices;      // 0: only one, and a map of two dimensions; else of three
    std::int64_t matrix_bytes;  // from one to the next, a multiple of 16
};

// A map of boxes of 128 bytes × box_rows (at most 256), with the 128-byte swizzle: 16-byte chunk c of row r lies in chunk c ^ (r % 8)
// of its row, rows of 128 bytes in turn, the destination 1024-aligned. False where the driver has no such maps, or refuses.
inline bool make_tensor_map(TensorMap* map, const TensorRows& rows, int box_rows) {
    // From the driver that is loaded, never linked: the library must load where there is none.
    using Encode = decltype(&cuTensorMapEncodeTiled);
    static const Encode encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
        const cudaError_t status =
            cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
        const cudaError_t status =
            cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
        if (status != cudaSuccess) cudaGetLastError();
        return status == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found)
                                                                              : nullptr;
    }();
    if (!encode) return false;
    const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(rows.row_bytes), static_cast<cuuint64_t>(rows.rows),
                                 static_cast<cuuint64_t>(rows.matrices)};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(rows.stride), static_cast<cuuint64_t>(rows.matrix_bytes)};
    const cuuint32_t box[3] = {128, static_cast<cuuint32_t>(box_rows), 1}, steps[3] = {1, 1, 1};
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_UINT8, rows.matrices == 0 ? 2 : 3, const_cast<void*>(rows.data), sizes,
                  strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace fastffn::ptx
