// The formats of this build. A new format adds one line here.
#include <cstring>

#include "core/cpu.hpp"
#include "core/names.hpp"
#include "formats/format.hpp"

namespace fastffn {

namespace {
const FormatDefinition* const formats[] = {
    &f32_format,       //
    &f16_format,       //
    &bf16_format,      //
    &int8_format,      //
    &sparse24_format,  //
    &lowrank_format,   //
    &ternary_format,   //
    &int4_format,      //
};
}  // namespace

const FormatDefinition* find_format(Format format) noexcept {
    for (const FormatDefinition* candidate : formats)
        if (candidate->id == format) return candidate;
    return nullptr;
}

namespace {
const FormatKernels& best_kernels(KernelTable kernels, Isa isa) noexcept {
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

const FormatKernels& format_kernels(const FormatDefinition& format, const PackedHeader& header, Isa isa) noexcept {
    return best_kernels(format.kernels_for ? format.kernels_for(header) : format.kernels, isa);
}

const FormatKernels& format_kernels(const PackedMatrix& matrix, Isa isa) noexcept {
    return format_kernels(*matrix.format, matrix.header, isa);
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

Status active_kernel(Format format, std::string* name) { return active_kernel(format, {}, name); }

Status active_kernel(Format format, const PackOptions& options, std::string* name) {
    if (Status status = check_isa(); !status.ok()) return status;
    const FormatDefinition* definition = find_format(format);
    if (!definition) return {StatusCode::invalid_argument, "active_kernel: unknown format"};
    PackedHeader header{};
    header.format = static_cast<std::uint8_t>(format);
    header.out_features = header.count = 1;
    header.in_features = 4096;  // a width that every option is for
    if (Status status = read_options("active_kernel", *definition, options, &header); !status.ok()) return status;
    *name = format_kernels(*definition, header, chosen_isa()).name;
    return {};
}

Status read_options(const char* operation, const FormatDefinition& format, const PackOptions& options,
                    PackedHeader* header) {
    OptionReader reader(operation, format.name, options);
    if (format.read_options) format.read_options(reader, header);
    return reader.finish();
}

}  // namespace fastffn
