#include "core/hadamard_modes.hpp"

#include <cstring>

#include "core/hadamard.hpp"
#include "core/names.hpp"

namespace fastffn {

namespace {

constexpr const char* mode_names[hadamard_mode_count] = {"none", "pow2", "kron", "block"};
constexpr const char* codes_names[activation_codes_count] = {"int8", "int4"};

template <class Enum, int count>
Status parse_name(const char* what, const char* name, const char* const (&names)[count], Enum* value) {
    for (int i = 0; i < count; ++i)
        if (std::strcmp(name, names[i]) == 0) {
            *value = static_cast<Enum>(i);
            return {};
        }
    return {StatusCode::invalid_argument,
            std::string(what) + " '" + name + "' is not known; expected " + quoted_list({names, names + count})};
}

// " ('kron' works: 108 · 64)", for each mode that has n.
std::string modes_that_work(std::int64_t n) {
    std::string text;
    HadamardShape shape;
    const auto add = [&](const std::string& mode) { text += (text.empty() ? "" : ", ") + mode; };
    if (hadamard_shape(Hadamard::pow2, n, 0, false, &shape)) add("'pow2'");
    else if (hadamard_shape(Hadamard::kron, n, 0, false, &shape))
        add("'kron' (" + std::to_string(shape.order) + " · " + std::to_string(shape.power) + ")");
    if (hadamard_shape(Hadamard::block, n, 0, false, &shape))
        add("'block' (" + std::to_string(n / shape.power) + " of " + std::to_string(shape.power) + ")");
    return text.empty() ? "no mode but 'none' works" : "what works: " + text;
}

}  // namespace

const char* hadamard_name(Hadamard mode) noexcept {
    const int index = static_cast<int>(mode);
    return index < hadamard_mode_count ? mode_names[index] : "unknown";
}

Status parse_hadamard(const char* name, Hadamard* mode) { return parse_name("hadamard mode", name, mode_names, mode); }

const char* activation_codes_name(ActivationCodes codes) noexcept {
    const int index = static_cast<int>(codes);
    return index < activation_codes_count ? codes_names[index] : "unknown";
}

Status parse_activation_codes(const char* name, ActivationCodes* codes) {
    return parse_name("dtype", name, codes_names, codes);
}

std::string hadamard_fault(Hadamard mode, std::int64_t n, std::int64_t block, const char* n_name) {
    const std::string length = std::string(n_name) + " " + std::to_string(n);
    if (block && mode != Hadamard::block)
        return "block is " + std::to_string(block) + " with hadamard mode '" + hadamard_name(mode) +
               "'; it is for mode 'block'";
    HadamardShape shape;
    if (hadamard_shape(mode, n, block, false, &shape)) return {};
    if (mode == Hadamard::block && block) {
        if (!hadamard_shape(mode, n, 0, false, &shape))
            return "block is " + std::to_string(block) + ", and " + length + " has no blocks of 2 or more; " +
                   modes_that_work(n);
        return "block is " + std::to_string(block) + ", expected a power of two that divides " + length + ": 2 to " +
               std::to_string(shape.power);
    }
    const std::string lack = mode == Hadamard::pow2 ? " is no power of two"
                             : mode == Hadamard::kron
                                 ? " is not K · 2^m with K 1, 12, 20, 28, 36, 52, 60, 108, 140, 156 or 172"
                                 : " is odd";
    return "hadamard mode '" + std::string(hadamard_name(mode)) + "' does not fit: " + length + lack + "; " +
           modes_that_work(n);
}

}  // namespace fastffn
