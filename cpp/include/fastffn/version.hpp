// Version numbers; CMake and the Python package read them from here.
#pragma once

#define FASTFFN_VERSION "0.1.0"

namespace fastffn {
const char* version() noexcept;
}
