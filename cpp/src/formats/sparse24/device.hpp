// sparse24 as CUDA devices read it, from the CPU's bytes: the same kept weights at the same positions.
#pragma once

#include "core/kernel.hpp"
#include "cuda/src/layout.hpp"

namespace fastffn {

// One matrix; `payload` has layout.bytes, zeroed.
void pack_sparse24_for_device(const MatrixView& matrix, const cuda::DeviceLayout& layout, std::byte* payload) noexcept;

// And back, bit for bit: `matrix` is the CPU's, whose payload is zeroed and written.
void restore_sparse24(const MatrixView& matrix, const cuda::DeviceLayout& layout, const std::byte* device,
                      std::byte* payload) noexcept;

}  // namespace fastffn
