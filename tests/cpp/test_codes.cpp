// unpack_codes: what pack() was given comes back, nothing beyond the views is touched, and what does not fit is refused.
#include "check.hpp"
#include "fastffn/codes.hpp"
#include "guarded.hpp"
#include "support.hpp"

namespace {
using namespace support;
using fastffn::CodesInfo;
using fastffn::CodeZeros;
using fastffn::PackOptions;

std::vector<std::byte> pack_codes(const TensorView& codes, Format format, const PackOptions& options) {
    std::int64_t bytes = 0;
    fastffn::packed_bytes(codes, format, options, &bytes).value();
    std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
    fastffn::pack(codes, format, options, packed.data(), bytes).value();
    return packed;
}

PackedView view_of(const std::vector<std::byte>& packed) {
    return {packed.data(), static_cast<std::int64_t>(packed.size())};
}

// Codes [out, in] that run through all values of the format, and scales and zeros that differ from group to group.
struct Given {
    std::int64_t out, in, groups;
    std::vector<std::int8_t> codes;
    std::vector<float> scales, zeros;

    Given(Format format, std::int64_t out_, std::int64_t in_, std::int64_t group)
        : out(out_), in(in_), groups(group ? (in_ + group - 1) / group : 1) {
        for (std::int64_t i = 0; i < out * in; ++i)
            codes.push_back(static_cast<std::int8_t>(format == Format::ternary ? i * 7 % 3 - 1 : i * 11 % 16));
        for (std::int64_t i = 0; i < out * groups; ++i) {
            scales.push_back(static_cast<float>(i % 13 + 1) / 8);
            zeros.push_back(static_cast<float>(i * 5 % 16));
        }
    }
};

TEST(given_codes_come_back_against_guard_pages) {
    for (Side side : {Side::end, Side::begin})
        for (std::int64_t in : {1, 63, 64, 300})
            for (std::int64_t group : {0, 32, 128})
                for (int kind = 0; kind < 4; ++kind) {  // ternary; int4 without zeros, with points, with minima
                    const Format format = kind == 0 ? Format::ternary : Format::int4;
                    if (kind && !group) continue;
                    const Given given(format, 17, in, group);
                    const DType dtype = kind == 0 ? DType::i8 : DType::u8;
                    const TensorView scales(given.scales.data(), DType::f32, {17, given.groups});
                    const TensorView zeros(given.zeros.data(), DType::f32, {17, given.groups});
                    PackOptions options = {{"group", group}, {kind == 0 ? "scale" : "scales", scales}};
                    if (kind == 2) options.push_back({"zeros", zeros});
                    if (kind == 3) options.push_back({"minima", zeros});
                    const auto packed = pack_codes(TensorView(given.codes.data(), dtype, {17, in}), format, options);
                    const Guarded source(packed, side);
                    const PackedView view{source.data(), source.size()};
                    CodesInfo info;
                    CHECK(fastffn::inspect_codes(view, &info).ok());
                    CHECK(info.dtype == dtype && info.groups == given.groups && info.group == (group ? group : in));
                    CHECK(info.zeros == (kind == 2   ? CodeZeros::points
                                         : kind == 3 ? CodeZeros::minima
                                                     : CodeZeros::none));
                    const auto entries = static_cast<std::size_t>(17 * given.groups);
                    const Guarded codes(static_cast<std::size_t>(17 * in), side), found(4 * entries, side),
                        found_zeros(4 * entries, side);
                    const TensorView no_zeros;
                    const Status status = fastffn::unpack_codes(
                        view, TensorView(codes.data(), dtype, {17, in}),
                        TensorView(found.data(), DType::f32, {17, given.groups}),
                        kind >= 2 ? TensorView(found_zeros.data(), DType::f32, {17, given.groups}) : no_zeros);
                    CHECK(status.ok()) << status.message();
                    CHECK(std::memcmp(codes.data(), given.codes.data(), given.codes.size()) == 0);
                    CHECK(std::memcmp(found.data(), given.scales.data(), 4 * entries) == 0);
                    if (kind >= 2) CHECK(std::memcmp(found_zeros.data(), given.zeros.data(), 4 * entries) == 0);
                }
}

TEST(what_does_not_fit_is_refused) {
    const Given given(Format::ternary, 20, 64, 0);
    const TensorView scale(given.scales.data(), DType::f32, {1});
    const auto packed =
        pack_codes(TensorView(given.codes.data(), DType::i8, {20, 64}), Format::ternary, {{"scale", scale}});
    std::vector<std::int8_t> codes(20 * 64);
    std::vector<float> scales(20), zeros(20);
    const TensorView good(codes.data(), DType::i8, {20, 64}), good_scales(scales.data(), DType::f32, {20, 1}), none;
    CHECK(fastffn::unpack_codes(view_of(packed), good, good_scales, none).ok());
    auto refused = [&](const PackedView& view, const TensorView& c, const TensorView& s, const TensorView& z,
                       const char* text) {
        const Status status = fastffn::unpack_codes(view, c, s, z);
        CHECK(!status.ok() && status.message().find(text) != std::string::npos) << status.message();
    };
    refused(view_of(packed), TensorView(codes.data(), DType::u8, {20, 64}), good_scales, none,
            "unpack_codes: codes is u8 of shape (20, 64), expected contiguous i8 of shape (20, 64)");
    refused(view_of(packed), TensorView(codes.data(), DType::i8, {64, 20}), good_scales, none,
            "expected contiguous i8");
    refused(view_of(packed), none, good_scales, none, "unpack_codes: codes is");
    refused(view_of(packed), good, TensorView(scales.data(), DType::f32, {20}), none,
            "unpack_codes: scales is f32 of shape (20,), expected contiguous f32 of shape (20, 1)");
    refused(view_of(packed), good, good_scales, TensorView(zeros.data(), DType::f32, {20, 1}), "packed has no zeros");
    TensorView strided = good;
    strided.strides[0] = 65;
    refused(view_of(packed), strided, good_scales, none, "expected contiguous");
    refused(view_of(packed), TensorView(packed.data() + 64, DType::i8, {20, 64}), good_scales, none,
            "share a range of memory");
    auto damaged = packed;
    damaged[100] ^= std::byte{1};
    refused(view_of(damaged), good, good_scales, none, "packed has damaged weights");
    refused({packed.data(), static_cast<std::int64_t>(packed.size()) - 1}, good, good_scales, none, "truncated");
    const auto dense = pack_random(Format::bf16, 20, 64, 1);
    refused(view_of(dense), good, good_scales, none, "packed holds format 'bf16', which has no codes");
    CodesInfo info;
    CHECK(!fastffn::inspect_codes(view_of(dense), &info).ok());
}

TEST(stacks_and_many_rows) {
    const Given given(Format::int4, 3 * 500, 96, 32);
    const TensorView scales(given.scales.data(), DType::f32, {3, 500, 3});
    const auto packed = pack_codes(TensorView(given.codes.data(), DType::u8, {3, 500, 96}), Format::int4,
                                   {{"group", 32}, {"scales", scales}});
    std::vector<std::int8_t> codes(given.codes.size());
    std::vector<float> found(given.scales.size());
    const TensorView all(codes.data(), DType::u8, {3, 500, 96}), all_scales(found.data(), DType::f32, {3, 500, 3});
    CHECK(fastffn::unpack_codes(view_of(packed), all, all_scales, {}).ok());
    CHECK(codes == given.codes && found == given.scales);
    const TensorView flat(codes.data(), DType::u8, {1500, 96});
    CHECK(!fastffn::unpack_codes(view_of(packed), flat, all_scales, {}).ok());
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
