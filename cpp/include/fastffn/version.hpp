// Version numbers; CMake and the Python package read them from here.
#pragma once

#define FASTFFN_VERSION "0.1.0"
// Raised whenever a struct or function shared with a plugin changes; a plugin of another number is refused.
#define FASTFFN_ABI 1

namespace fastffn {
const char* version() noexcept;
}
