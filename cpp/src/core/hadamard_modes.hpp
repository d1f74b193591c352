// What to say of Hadamard modes: which ones a row length has.
#pragma once

#include <string>

#include "fastffn/hadamard.hpp"

namespace fastffn {

// Empty where rows of n have this transform; else what is wrong, and which modes would do. `n_name` is what the text calls n.
std::string hadamard_fault(Hadamard mode, std::int64_t n, std::int64_t block, const char* n_name);

}  // namespace fastffn
