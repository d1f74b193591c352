// Which devices machine code runs on, from the plugin's list of architectures: without asking the device, as that would make a context
// on it.
#pragma once

#include <cstdlib>

namespace fastffn::cuda {

// Whether one of `names` ("80 86 90 90a ptx120") is machine code for this compute capability: of its major number, and of its minor
// number or an earlier one; names with an a run on their own alone. PTX does not count, as the driver may be too old for it.
inline bool has_machine_code(const char* names, int major, int minor) {
    for (const char* at = names; *at;) {
        char* end = nullptr;
        const long number = std::strtol(at, &end, 10);
        const bool is_number = end != at, is_exact = is_number && *end == 'a';
        if (is_exact) end++;
        if (is_number && (*end == ' ' || !*end) && number / 10 == major &&
            (is_exact ? number % 10 == minor : number % 10 <= minor))
            return true;
        for (at = end; *at && *at != ' ';) at++;
        while (*at == ' ') at++;
    }
    return false;
}

}  // namespace fastffn::cuda
