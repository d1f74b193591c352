// The formats of this build. A new format adds one line here.
#include <cstring>

#include "core/cpu.hpp"
#include "core/names.hpp"
#include "formats/format.hpp"

namespace fastffn {

namespace {
const FormatDefinition* const formats[] = {
    &f32_format,
    &f16_format,
    &bf16_format,
    &int8_format,
    &lowrank_format,
};
}  // namespace

const FormatDefinition* find_format(Format format) noexcept {
    for (const FormatDefinition* candidate : formats)
        if (candidate->id == format) return candidate;
    return nullptr;
}

namespace {
const FormatKernels& best_kernels(const FormatKernels* const* kernels, Isa isa) noexcept {
    int level = static_cast<int>(isa);
    while (!kernels[level]) --level;  // every format has a ref
    return *kernels[level];
}
}  // namespace

const FormatKernels& format_kernels(const FormatDefinition& format, Isa isa) noexcept {
    if (format.kernels_for) {
        PackedHeader defaults{};
        return best_kernels(format.kernels_for(defaults), isa);
    }
    return best_kernels(format.kernels, isa);
}

const FormatKernels& format_kernels(const PackedMatrix& matrix, Isa isa) noexcept {
    return best_kernels(matrix.format->kernels_for ? matrix.format->kernels_for(matrix.header) : matrix.format->kernels,
                        isa);
}

const char* format_name(Format format) noexcept {
    const FormatDefinition* definition = find_format(format);
    return definition ? definition->name : "unknown";
}

Status parse_format(const char* name, Format* format) {
    std::vector<std::string> names;
    for (const FormatDefinition* candidate : formats) {
        if (std::strcmp(candidate->name, name) == 0) {
            *format = candidate->id;
            return {};
        }
        names.push_back(candidate->name);
    }
    return {StatusCode::invalid_argument,
            "format '" + std::string(name) + "' is not known; expected " + quoted_list(names)};
}

int list_formats(Format* out, int capacity) noexcept {
    int count = 0;
    for (const FormatDefinition* candidate : formats)
        if (candidate->pack && count < capacity) out[count++] = candidate->id;
    return count;
}

Status active_kernel(Format format, std::string* name) {
    if (Status status = check_isa(); !status.ok()) return status;
    const FormatDefinition* definition = find_format(format);
    if (!definition) return {StatusCode::invalid_argument, "active_kernel: unknown format"};
    *name = format_kernels(*definition, chosen_isa()).name;
    return {};
}

}  // namespace fastffn
