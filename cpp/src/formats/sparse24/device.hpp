// sparse24 between the CPU's panels and the tiles of CUDA devices: the same kept weights at the same positions.
#pragma once

#include "core/kernel.hpp"
#include "cuda/src/layout.hpp"

namespace fastffn {

// One matrix; `payload` has layout.bytes, zeroed.
void pack_sparse24_for_device(const MatrixView& matrix, const cuda::DeviceLayout& layout, std::byte* payload) noexcept;

// The way back: what pack() wrote, byte for byte. `matrix` is the CPU's, its payload zeroed and written here.
void restore_sparse24(const std::byte* device, const cuda::DeviceLayout& layout, const MatrixView& matrix,
                      std::byte* payload) noexcept;

}  // namespace fastffn
