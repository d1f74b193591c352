// Named sets of rows.
#pragma once

#include <string>

#include "options.hpp"

namespace bench {

// "default", "quick" or "smoke"; throws std::invalid_argument for any other name.
void apply_suite(const std::string& name, Options* options);

}  // namespace bench
