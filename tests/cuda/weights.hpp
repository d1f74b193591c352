// Weights packed for the CPU library and for the emulated device, and how far results of the two are apart.
#pragma once

#include <cmath>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "abi.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/fastffn.hpp"
#include "reference.hpp"
#include "support.hpp"

namespace support {

using namespace fastffn;

struct Kind {
    Format format;
    PackOptions options;
    bool has_minima = false;  // int4: codes with scales and minima of another library's
};

// Every format that devices have.
inline std::vector<Kind> kinds() {
    return {{Format::f32, {}},
            {Format::f16, {}},
            {Format::bf16, {}},
            {Format::int8, {}},
            {Format::sparse24, {}},
            {Format::sparse24, {{"values", "f16"}}},
            {Format::sparse24, {{"values", "f32"}}},
            {Format::sparse24, {{"values", "int8"}}},
            {Format::ternary, {}},
            {Format::ternary, {{"act", "int4"}}},
            {Format::ternary, {{"group", 64}}},
            {Format::ternary, {{"order", "rows"}}},
            {Format::int4, {}},
            {Format::int4, {{"group", 32}, {"zero_points", true}}},
            {Format::int4, {{"group", 128}, {"act", "int4"}}},
            {Format::int4, {{"group", 64}}, true},
            {Format::int4, {{"act", "bf16"}}},
            {Format::int4, {{"group", 32}, {"act", "bf16"}, {"zero_points", true}}},
            {Format::int4, {{"group", 32}, {"act", "bf16"}}, true}};
}

inline std::string name(const Kind& kind) {
    std::string text = format_name(kind.format);
    for (const auto& option : kind.options) text += " " + option.name + "=" + option.value.to_string();
    return text + (kind.has_minima ? " minima: " : ": ");
}

inline std::vector<float> random(std::int64_t count, std::mt19937& generator, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = normal(generator);
    return values;
}

inline std::vector<std::byte> bytes_as(const std::vector<float>& values, DType dtype) {
    const int element = reference::bytes_of(dtype);
    std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(element));
    for (std::size_t i = 0; i < values.size(); i++)
        reference::store(reinterpret_cast<unsigned char*>(bytes.data()) + i * static_cast<std::size_t>(element), dtype,
                         values[i]);
    return bytes;
}

inline double value(const std::vector<std::byte>& bytes, std::size_t i, DType dtype) {
    return reference::load(
        reinterpret_cast<const unsigned char*>(bytes.data()) + i * static_cast<std::size_t>(reference::bytes_of(dtype)),
        dtype);
}

// Weights that the format can hold: sparse24 wants two of every four in a row to be zero.
inline std::vector<float> values_for(const Kind& kind, std::int64_t out, std::int64_t in, std::mt19937& generator) {
    auto w = random(out * in, generator, 1 / std::sqrt(static_cast<float>(in)));
    if (kind.format != Format::sparse24) return w;
    std::vector<std::uint8_t> mask(w.size());
    mask24({w.data(), DType::f32, {out, in}}, Mask24::largest, {mask.data(), DType::u8, {out, in}}).value();
    for (std::size_t i = 0; i < w.size(); i++) w[i] = mask[i] ? w[i] : 0;
    return w;
}

inline std::vector<float> codes(std::int64_t count, std::mt19937& generator) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = static_cast<float>(generator() % 16);
    return values;
}

// Scales and minima, one per row and group, as options; the arrays live as long as the program.
inline Kind with_minima(Kind kind, std::int64_t out, std::int64_t in, std::mt19937& generator) {
    static std::deque<std::vector<float>> arrays;
    const std::int64_t group = kind.options[0].value.integer(), groups = (in + group - 1) / group;
    for (const char* name : {"scales", "minima"}) {
        arrays.push_back(random(out * groups, generator, 1 / std::sqrt(static_cast<float>(in)) / 8));
        kind.options.push_back({name, TensorView(arrays.back().data(), DType::f32, {out, groups})});
    }
    return kind;
}

// One matrix, or a stack of them, for both sides.
struct Weights {
    std::vector<std::byte> host;
    Device<std::byte> device;
    PackedHeader header;

    Weights(const Kind& kind, std::int64_t out, std::int64_t in, std::mt19937& generator)
        : Weights(kind, values_for(kind, out, in, generator), out, in) {}
    Weights(const Kind& kind, const std::vector<float>& w, std::int64_t out, std::int64_t in)
        : Weights(kind, {w.data(), DType::f32, {out, in}}) {}
    Weights(const Kind& kind, std::int64_t count, std::int64_t out, std::int64_t in, std::mt19937& generator)
        : Weights(kind, {values_for(kind, count * out, in, generator).data(), DType::f32, {count, out, in}}) {}
    Weights(const Kind& kind, const TensorView& w) : host(pack_host(kind, w)), device(pack_device(kind, w)) {
        cudaMemcpy(&header, device.data(), sizeof header, cudaMemcpyDeviceToHost);
    }
    static std::vector<std::byte> pack_host(const Kind& kind, const TensorView& w) {
        std::int64_t bytes = 0;
        packed_bytes(w, kind.format, kind.options, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack(w, kind.format, kind.options, packed.data(), bytes).value();
        return packed;
    }
    static std::vector<std::byte> pack_device(const Kind& kind, const TensorView& w) {
        std::int64_t bytes = 0;
        device_packed_bytes(w, kind.format, kind.options, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack_for_device(w, kind.format, kind.options, packed.data(), bytes).value();
        return packed;
    }
    PackedView view() const { return {host.data(), static_cast<std::int64_t>(host.size())}; }
    cuda::DeviceMatrix matrix() const {
        return {device.data() + sizeof header,
                header.format,
                header.flags,
                {header.parameters[0], header.parameters[1]},
                header.out_features,
                header.in_features,
                header.count,
                header.matrix_bytes};
    }
};

// The largest difference over the largest result.
inline double difference(const std::vector<std::byte>& host, const std::vector<std::byte>& device, DType dtype) {
    double largest = 0, apart = 0;
    for (std::size_t i = 0; i < host.size() / static_cast<std::size_t>(reference::bytes_of(dtype)); i++) {
        const double a = value(host, i, dtype), b = value(device, i, dtype);
        largest = std::fmax(largest, std::fabs(a));
        apart = std::fabs(a - b) <= apart ? apart : std::fabs(a - b);
    }
    return apart / largest;
}

}  // namespace support
