// fastffn-bench --device cuda.
#pragma once

#include <string>
#include <vector>

#include "measure.hpp"

namespace bench::cuda {

// The device number of "--device cuda" or "--device cuda:1"; -1: the arguments ask for none ("cpu", or nothing). Throws
// std::invalid_argument for any other.
int device_of(const std::vector<std::string>& arguments);

// Throws std::invalid_argument naming the option, what it takes and what was found.
Options parse_options(const std::vector<std::string>& arguments);

// 0: every row ran, whether its bars are met or not; 1: some failed.
int run(const Options& options);

}  // namespace bench::cuda
