// Small helpers for error messages.
#pragma once

#include <string>
#include <vector>

namespace fastffn {

// "f32, f16 or bf16"
std::string quoted_list(const std::vector<std::string>& names, const char* last = "or");

}  // namespace fastffn
