// Packed weights from the CPU's layout to that of devices and back: bit for bit, in memory of exactly the promised size.
#include "check.hpp"
#include "fastffn/cuda.hpp"
#include "support.hpp"

namespace {
using namespace support;
using fastffn::PackedHeader;
using fastffn::PackedInfo;

PackedView of(const std::vector<std::byte>& bytes) { return {bytes.data(), static_cast<std::int64_t>(bytes.size())}; }

TEST(there_and_back) {
    int kinds = 0;
    for (const Kind& kind : all_kinds())
        for (const auto& [out, in] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {17, 33}, {40, 130}, {16, 512}}) {
            const auto packed = pack_random(kind, out, in, 3);
            std::int64_t bytes = 0;
            const Status status = fastffn::device_packed_bytes(of(packed), &bytes);
            if (status.code() == StatusCode::unsupported) continue;  // a format without a layout for devices
            ++kinds;
            CHECK(status.ok()) << status.message();
            std::vector<std::byte> device(static_cast<std::size_t>(bytes));
            fastffn::pack_for_device(of(packed), device.data(), bytes).value();
            PackedInfo info;
            fastffn::check_device_weight(of(device), "test", "device", &info).value();
            CHECK(info.out_features == out && info.in_features == in && info.bytes == bytes);
            CHECK(fastffn::verify_device_bytes(of(device), "test", "device").ok());

            fastffn::cpu_packed_bytes(of(device), &bytes).value();
            CHECK(bytes == static_cast<std::int64_t>(packed.size()));
            std::vector<std::byte> back(static_cast<std::size_t>(bytes));
            fastffn::pack_for_cpu(of(device), back.data(), bytes).value();
            CHECK(back == packed) << kind.name() << " " << out << " x " << in;
            CHECK(fastffn::pack_for_cpu(of(device), back.data(), bytes - 64).code() == StatusCode::invalid_argument);
            device.back() ^= std::byte{1};
            CHECK(fastffn::pack_for_cpu(of(device), back.data(), bytes).code() == StatusCode::corrupt);
        }
    CHECK(kinds >= 4 * 6) << kinds;
}

TEST(pairs_of_factors_there_and_back) {
    for (Format factors : {Format::f32, Format::f16, Format::bf16, Format::int8})
        for (const auto& [out, in] : {std::pair<std::int64_t, std::int64_t>{40, 130}, {17, 600}}) {
            const auto packed = pack_random_pair(factors, out, in, 21, 3);
            std::int64_t bytes = 0;
            fastffn::device_packed_bytes(of(packed), &bytes).value();
            std::vector<std::byte> device(static_cast<std::size_t>(bytes)), back(packed.size());
            fastffn::pack_for_device(of(packed), device.data(), bytes).value();
            PackedInfo info;
            fastffn::check_device_weight(of(device), "test", "device", &info).value();
            CHECK(info.format == Format::lowrank && info.out_features == out && info.options.size() == 2);
            fastffn::pack_for_cpu(of(device), back.data(), static_cast<std::int64_t>(back.size())).value();
            CHECK(back == packed) << fastffn::format_name(factors) << " " << out << " x " << in;
        }
}

TEST(other_bytes_are_refused) {
    const auto packed = pack_random(all_kinds()[0], 40, 33, 1);
    std::int64_t bytes = 0;
    fastffn::device_packed_bytes(of(packed), &bytes).value();
    std::vector<std::byte> device(static_cast<std::size_t>(bytes));
    fastffn::pack_for_device(of(packed), device.data(), bytes).value();
    CHECK(fastffn::device_packed_bytes(of(device), &bytes).code() == StatusCode::corrupt);
    CHECK(fastffn::cpu_packed_bytes(of(packed), &bytes).code() == StatusCode::corrupt);
    CHECK(fastffn::check_device_weight(of(packed), "test", "w", nullptr).code() == StatusCode::corrupt);
    for (std::size_t at = 0; at < sizeof(PackedHeader); ++at) {
        auto broken = device;
        broken[at] ^= std::byte{1};
        CHECK(fastffn::cpu_packed_bytes(of(broken), &bytes).code() == StatusCode::corrupt) << at;
    }
    device.resize(70);
    CHECK(fastffn::cpu_packed_bytes(of(device), &bytes).code() == StatusCode::corrupt);
    CHECK(fastffn::cpu_packed_bytes({nullptr, 64}, &bytes).code() == StatusCode::invalid_argument);
}

}  // namespace

int main(int argc, char** argv) { return check::run_all(argc, argv); }
