// Opens a library that may not be installed, and its functions by name.
#pragma once

#include <dlfcn.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace bench::cuda {

// The first of `names` in `places` (files, or folders that hold one of the names), separated by colons, then where the system
// looks. Throws with what was tried. Never closed: such libraries keep threads and memory of their own.
inline void* open_library(const std::string& places, const std::vector<std::string>& names, std::string* path) {
    std::vector<std::string> candidates;
    for (std::size_t begin = 0; begin < places.size();) {
        const std::size_t end = std::min(places.find(':', begin), places.size());
        const std::string place = places.substr(begin, end - begin);
        for (const std::string& name : names) {
            const std::size_t slash = place.find_last_of('/');
            if (place.substr(slash == std::string::npos ? 0 : slash + 1)
                    .rfind(name.substr(0, name.find('.')) + ".so", 0) == 0)
                candidates.push_back(place);
            else if (!place.empty()) candidates.push_back(place + "/" + name);
        }
        begin = end + 1;
    }
    candidates.insert(candidates.end(), names.begin(), names.end());
    std::string reason;
    for (const std::string& candidate : candidates) {
        if (void* library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL)) {
            *path = candidate;
            return library;
        }
        const char* text = dlerror();
        if (candidate.find('/') == std::string::npos || reason.empty()) reason = text ? text : candidate;
    }
    throw std::runtime_error(names[0] + " is not installed (" + reason + ")");
}

template <class Function>
void find_function(void* library, const char* name, Function* function) {
    void* symbol = dlsym(library, name);
    if (!symbol) throw std::runtime_error(std::string("the library has no ") + name);
    static_assert(sizeof *function == sizeof symbol);
    std::memcpy(function, &symbol, sizeof symbol);
}

}  // namespace bench::cuda
