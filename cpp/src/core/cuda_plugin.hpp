// Loading of the CUDA plugin.
#pragma once

#include <string>

#include "cuda/src/abi.hpp"
#include "fastffn/cuda.hpp"

namespace fastffn {

// The plugin's table, or nullptr where cuda_report() is not available.
const cuda::Plugin* cuda_plugin();

// What a search in this environment finds; cuda_report() keeps the first answer. `setting`: FASTFFN_CUDA_PLUGIN, or nullptr.
const cuda::Plugin* load_cuda_plugin(const char* setting, CudaReport* report);

}  // namespace fastffn
