// Packed weights: what is damaged, cut off or foreign is refused with a message, never followed; what is whole survives.
#include "check.hpp"
#include "support.hpp"

namespace {
using namespace support;
using fastffn::PackedHeader;
using fastffn::PackedInfo;

// Every entrance a packed weight can take.
bool refused_everywhere(const PackedView& packed, std::string* message) {
    PackedInfo info;
    std::vector<float> x(64), y(64), plain(40 * 33);
    fastffn::Context context(1);
    fastffn::FfnWeights weights;
    weights.w_up = weights.w_down = packed;
    const TensorView x_view(x.data(), DType::f32, {1, 33}), y_view(y.data(), DType::f32, {1, 40});
    const Status statuses[] = {
        fastffn::inspect(packed, &info),
        fastffn::verify_packed(packed),
        fastffn::linear(context, x_view, packed, nullptr, y_view),
        fastffn::ffn(context, x_view, weights, y_view),
        fastffn::unpack(packed, TensorView(plain.data(), DType::f32, {40, 33})),
    };
    bool all = true;
    for (const Status& status : statuses) {
        all = all && !status.ok() && status.code() == StatusCode::corrupt && !status.message().empty();
        *message = status.message();
    }
    return all;
}

TEST(whole_weights_pass) {
    for (const Kind& format : all_kinds()) {
        const auto packed = pack_random(format, 40, 33, 1);
        PackedInfo info;
        CHECK(fastffn::inspect(view(packed), &info).ok());
        CHECK(fastffn::verify_packed(view(packed)).ok());
        CHECK(info.format == format && info.out_features == 40 && info.in_features == 33 && info.count == 1);
        CHECK(info.bytes == static_cast<std::int64_t>(packed.size()));
        CHECK(packed.size() % 64 == 0);
    }
}

// The header's checksum as cpp/src/formats/packed.cpp defines it, for headers of 60 bytes before it.
std::uint32_t header_checksum(const PackedHeader& header) {
    std::uint64_t lanes[4] = {1, 2, 3, 4}, words[8] = {};
    std::memcpy(words, &header, 60);
    auto mix = [](std::uint64_t& lane, std::uint64_t word) {
        lane = (lane ^ word) * 0x9e3779b97f4a7c15u;
        lane ^= lane >> 29;
    };
    for (int i = 0; i < 4; i++) mix(lanes[i], words[i]);
    for (int i = 4; i < 8; i++) mix(lanes[0], words[i]);
    std::uint64_t sum = 60;
    for (std::uint64_t lane : lanes) mix(sum, lane);
    return static_cast<std::uint32_t>(sum ^ (sum >> 32));
}

// What a later version may add to a format must not be ignored by this one.
TEST(unknown_options) {
    for (const Kind& format : all_kinds())
        for (int option = 0; option < 3; option++) {
            auto packed = pack_random(format, 40, 33, 1);
            PackedHeader header;
            std::memcpy(&header, packed.data(), sizeof header);
            CHECK(header.header_check == header_checksum(header)) << "this test's checksum is the library's";
            (option == 0 ? header.flags : header.parameters[option - 1]) = 1 << 15;
            header.header_check = header_checksum(header);
            std::memcpy(packed.data(), &header, sizeof header);
            std::string message;
            CHECK(refused_everywhere(view(packed), &message)) << message;
            CHECK(message.find("options") != std::string::npos) << message;
        }
}

TEST(any_address) {
    const auto packed = pack_random(Format::bf16, 40, 33, 1);
    std::vector<std::byte> moved(packed.size() + 7);
    for (int offset : {1, 3, 7}) {
        std::memcpy(moved.data() + offset, packed.data(), packed.size());
        CHECK(fastffn::verify_packed({moved.data() + offset, static_cast<std::int64_t>(packed.size())}).ok());
    }
}

TEST(every_header_bit) {
    for (const Kind& format : all_kinds()) {
        auto packed = pack_random(format, 40, 33, 1);
        for (int byte = 0; byte < 64; byte++)
            for (int bit = 0; bit < 8; bit++) {
                const auto mask = static_cast<std::byte>(1 << bit);
                packed[static_cast<std::size_t>(byte)] ^= mask;
                std::string message;
                // The header's own checksum covers all but itself, and a flip there is a mismatch as well.
                CHECK(refused_everywhere(view(packed), &message))
                    << "byte " << byte << " bit " << bit << ": " << message;
                packed[static_cast<std::size_t>(byte)] ^= mask;
            }
        for (int byte = 0; byte < 64; byte++)
            for (int value : {0, 255}) {
                auto copy = packed;
                if (copy[static_cast<std::size_t>(byte)] == static_cast<std::byte>(value)) continue;
                copy[static_cast<std::size_t>(byte)] = static_cast<std::byte>(value);
                std::string message;
                CHECK(refused_everywhere(view(copy), &message)) << "byte " << byte << " set to " << value;
            }
    }
}

TEST(every_truncation) {
    for (const Kind& format : all_kinds()) {
        const auto packed = pack_random(format, 40, 33, 1);
        std::string message;
        for (std::size_t bytes = 0; bytes < packed.size(); bytes++) {
            // A copy of exactly that size, so that a sanitizer sees a read past its end.
            const std::vector<std::byte> cut(packed.begin(), packed.begin() + static_cast<std::ptrdiff_t>(bytes));
            const std::byte nothing{};
            CHECK(refused_everywhere({bytes ? cut.data() : &nothing, static_cast<std::int64_t>(bytes)}, &message))
                << bytes << " bytes: " << message;
        }
        CHECK(message.find("truncated") != std::string::npos) << message;
        CHECK(message.find(std::to_string(packed.size())) != std::string::npos) << message;
    }
}

TEST(oversize) {
    auto packed = pack_random(Format::f32, 40, 33, 1);
    for (int more : {1, 63, 64, 4096}) {
        auto longer = packed;
        longer.resize(packed.size() + static_cast<std::size_t>(more));
        std::string message;
        CHECK(refused_everywhere(view(longer), &message)) << more << " more bytes";
    }
    std::string message;
    CHECK(refused_everywhere({packed.data(), -1}, &message)) << message;
}

TEST(foreign_bytes) {
    std::string message;
    for (unsigned seed = 0; seed < 20; seed++) {
        const auto noise = random_array(DType::f32, 2000, seed);
        CHECK(refused_everywhere(view(noise), &message)) << message;
    }
    const std::vector<std::byte> zeros(8192);
    CHECK(refused_everywhere(view(zeros), &message));
    CHECK(message.find("pack") != std::string::npos) << "says how to make one: " << message;
}

#if defined(__x86_64__)
// Where the caller's mode makes subnormals zero, the message still names the group that packing found.
TEST(sparse24_error_in_a_mode_that_flushes_subnormals) {
    std::vector<float> plain(16 * 32);
    for (int i = 0; i < 3; i++) plain[5 * 32 + 9 + i] = 1e-40f;
    const TensorView w(plain.data(), DType::f32, {16, 32});
    std::int64_t bytes = 0;
    fastffn::packed_bytes(w, Format::sparse24, &bytes).value();
    std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
    const unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040u);
    const Status status = fastffn::pack(w, Format::sparse24, packed.data(), bytes);
    __builtin_ia32_ldmxcsr(before);
    CHECK(!status.ok());
    CHECK(status.message().find("row 5 of w has 3 nonzero weights in group 2 (columns 8 to 11)") != std::string::npos)
        << status.message();
}
#endif

TEST(no_pointer) {
    PackedInfo info;
    CHECK(!fastffn::inspect({nullptr, 4096}, &info).ok());
    CHECK(!fastffn::verify_packed({nullptr, 0}).ok());
}

TEST(damaged_payload_is_found_by_verify) {
    for (const Kind& format : all_kinds()) {
        auto packed = pack_random(format, 40, 33, 1);
        for (std::size_t at = 64; at < packed.size(); at += 37) {
            packed[at] ^= std::byte{4};
            const Status status = fastffn::verify_packed(view(packed));
            CHECK(status.code() == StatusCode::corrupt) << "byte " << at;
            std::vector<float> plain(40 * 33);
            CHECK(fastffn::unpack(view(packed), TensorView(plain.data(), DType::f32, {40, 33})).code() ==
                  StatusCode::corrupt);
            packed[at] ^= std::byte{4};
        }
    }
}

// A payload of any bits may give nonsense, but reads and writes nothing outside (sanitizers watch).
TEST(any_payload_is_safe) {
    for (const Kind& format : all_kinds()) {
        auto packed = pack_random(format, 40, 33, 1);
        std::mt19937 bits(3);
        for (int round = 0; round < 20; round++) {
            for (std::size_t at = 64; at < packed.size(); at++) packed[at] = static_cast<std::byte>(bits());
            std::vector<float> x(17 * 33, 1.5f), y(17 * 40);
            fastffn::Context context(1);
            CHECK(fastffn::linear(context, TensorView(x.data(), DType::f32, {17, 33}), view(packed), nullptr,
                                  TensorView(y.data(), DType::f32, {17, 40}))
                      .ok());
        }
    }
}

TEST(stacks) {
    for (const Kind& format : all_kinds()) {
        const auto plain = random_weights(format, DType::f32, 3 * 20, 33, 1);
        const auto packed = pack_weights(TensorView(plain.data(), DType::f32, {3, 20, 33}), format);
        PackedInfo info;
        fastffn::inspect(view(packed), &info).value();
        CHECK(info.count == 3 && info.out_features == 20 && info.in_features == 33);
        std::vector<float> back(3 * 20 * 33);
        CHECK(fastffn::unpack(view(packed), TensorView(back.data(), DType::f32, {3, 20, 33})).ok());
        if (format == Format::f32) CHECK(std::memcmp(back.data(), plain.data(), plain.size()) == 0);
        // Each matrix of the stack is packed as it would be alone.
        for (int i = 0; i < 3; i++) {
            const TensorView one(plain.data() + i * 20 * 33 * 4, DType::f32, {20, 33});
            const auto alone = pack_weights(one, format);
            const auto payload = alone.size() - 64;
            CHECK(std::memcmp(packed.data() + 64 + static_cast<std::size_t>(i) * payload, alone.data() + 64, payload) ==
                  0);
        }
        // A layer takes single matrices.
        std::vector<float> x(33), y(20);
        fastffn::Context context(1);
        const Status status = fastffn::linear(context, TensorView(x.data(), DType::f32, {1, 33}), view(packed), nullptr,
                                              TensorView(y.data(), DType::f32, {1, 20}));
        CHECK(status.code() == StatusCode::invalid_argument) << status.message();
    }
}

TEST(strided_sources) {
    const std::int64_t out = 21, in = 34;
    const auto plain = random_weights(Format::sparse24, DType::f32, out, in, 1);  // what every format can hold
    std::vector<float> transposed(static_cast<std::size_t>(out * in)), reversed(static_cast<std::size_t>(out * in));
    const float* const values = reinterpret_cast<const float*>(plain.data());
    for (std::int64_t o = 0; o < out; o++)
        for (std::int64_t k = 0; k < in; k++) {
            transposed[static_cast<std::size_t>(k * out + o)] = values[o * in + k];
            reversed[static_cast<std::size_t>((out - 1 - o) * in + in - 1 - k)] = values[o * in + k];
        }
    TensorView contiguous(plain.data(), DType::f32, {out, in}), columns(transposed.data(), DType::f32, {out, in});
    columns.strides[0] = 1;
    columns.strides[1] = out;
    TensorView backwards(reversed.data() + out * in - 1, DType::f32, {out, in});
    backwards.strides[0] = -in;
    backwards.strides[1] = -1;
    for (const Kind& format : all_kinds()) {
        const auto a = pack_weights(contiguous, format);
        CHECK(a == pack_weights(columns, format)) << format.name();
        CHECK(a == pack_weights(backwards, format)) << format.name();
    }
}

TEST(pack_refuses) {
    std::vector<float> w(12, 1);
    std::int64_t bytes = 0;
    std::vector<std::byte> out(4096);
    auto check = [&](const TensorView& plain, const char* expected) {
        const Status status = fastffn::packed_bytes(plain, Format::f32, &bytes);
        CHECK(status.code() == StatusCode::invalid_argument && status.message().find(expected) != std::string::npos)
            << status.message();
    };
    check(TensorView(w.data(), DType::f32, {12}), "(12,)");
    check(TensorView(w.data(), DType::f32, {1, 2, 2, 3}), "(1, 2, 2, 3)");
    check(TensorView(w.data(), DType::f32, {0, 12}), "(0, 12)");
    check(TensorView(w.data(), DType::f32, {12, 0}), "(12, 0)");
    check(TensorView(w.data(), DType::i32, {3, 4}), "i32");
    check(TensorView(w.data(), DType::f32, {std::int64_t{1} << 62, std::int64_t{1} << 62}), "shape");
    check(TensorView(w.data(), DType::f32, {std::int64_t{1} << 30, std::int64_t{1} << 30}), "shape");
    const TensorView good(w.data(), DType::f32, {3, 4});
    fastffn::packed_bytes(good, Format::f32, &bytes).value();
    CHECK(fastffn::pack(good, Format::f32, out.data(), bytes - 1).code() == StatusCode::invalid_argument);
    CHECK(fastffn::pack(good, Format::f32, nullptr, bytes).code() == StatusCode::invalid_argument);
    CHECK(fastffn::pack(good, static_cast<Format>(15), out.data(), bytes).code() == StatusCode::invalid_argument);
    CHECK(fastffn::pack(good, static_cast<Format>(200), out.data(), bytes).code() == StatusCode::invalid_argument);
    for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
        w[7] = bad;
        fastffn::packed_bytes(good, Format::int8, &bytes).value();
        const Status status = fastffn::pack(good, Format::int8, out.data(), bytes);
        CHECK(status.code() == StatusCode::invalid_argument && status.message().find("row 1") != std::string::npos)
            << status.message();
        fastffn::packed_bytes(good, Format::f32, &bytes).value();
        CHECK(fastffn::pack(good, Format::f32, out.data(), bytes).ok());
    }
}

TEST(unpack_refuses) {
    const auto packed = pack_random(Format::f32, 3, 4, 1);
    std::vector<float> w(64);
    auto refused = [&](const TensorView& plain) {
        return fastffn::unpack(view(packed), plain).code() == StatusCode::invalid_argument;
    };
    CHECK(refused(TensorView(w.data(), DType::f32, {4, 3})));
    CHECK(refused(TensorView(w.data(), DType::f32, {12})));
    CHECK(refused(TensorView(w.data(), DType::i32, {3, 4})));
    TensorView strided(w.data(), DType::f32, {3, 4});
    strided.strides[0] = 5;
    CHECK(refused(strided));
}

// Options go into the header and come back; what a format has not is refused before anything is written.
TEST(options) {
    std::vector<float> w(12);
    const TensorView plain(w.data(), DType::f32, {3, 4});
    for (const Kind& kind : all_kinds()) {
        const auto packed = pack_weights(plain, kind);
        PackedInfo info;
        fastffn::inspect(view(packed), &info).value();
        // Also those that were left to their defaults.
        CHECK(info.options.size() >= kind.options.size()) << kind.name();
        for (const auto& option : kind.options) {
            bool same = false;
            for (const auto& found : info.options)
                same = same || (found.name == option.name && found.value.to_string() == option.value.to_string());
            CHECK(same) << kind.name();
        }
        std::string name;
        CHECK(fastffn::active_kernel(kind.format, kind.options, &name).ok() && !name.empty()) << kind.name();
    }
    std::int64_t bytes = 0;
    auto refused = [&](Format format, const fastffn::PackOptions& options, const char* text) {
        const Status status = fastffn::packed_bytes(plain, format, options, &bytes);
        CHECK(status.code() == StatusCode::invalid_argument && status.message() == text) << status.message();
        std::string name;
        CHECK(!fastffn::active_kernel(format, options, &name).ok());
    };
    refused(Format::bf16, {{"values", "int8"}}, "pack: format 'bf16' has no option 'values'; it takes none");
    refused(Format::sparse24, {{"group", 32}}, "pack: format 'sparse24' has no option 'group'; it takes values");
    refused(Format::sparse24, {{"values", 0.5}},
            "pack: option 'values' of format 'sparse24' is 0.5, expected bf16, f16, f32 or int8");
    refused(Format::sparse24, {{"values", "f16"}, {"values", "f16"}}, "pack: option 'values' is given twice");
}

TEST(names) {
    for (Format format : all_formats()) {
        Format parsed{};
        CHECK(fastffn::parse_format(fastffn::format_name(format), &parsed).ok() && parsed == format);
    }
    Format parsed{};
    const Status status = fastffn::parse_format("int7", &parsed);
    CHECK(status.code() == StatusCode::invalid_argument);
    for (Format format : all_formats())
        CHECK(status.message().find(fastffn::format_name(format)) != std::string::npos) << status.message();
    CHECK(status.message().find("int7") != std::string::npos) << status.message();
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
