// Loading of the CUDA plugin: every way in which it can fail names its reason, and none ends the process.
//
// The folder of fake plugins is FAKE_PLUGINS; REAL_PLUGIN is the one that nvcc built, or "".
#include <cstring>

#include "check.hpp"
#include "core/cuda_plugin.hpp"
#include "fastffn/version.hpp"

namespace {

using fastffn::CudaReport;

std::string fake(const char* name) { return std::string(FAKE_PLUGINS) + "/libfake_plugin_" + name + ".so"; }

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

CudaReport load(const std::string& setting, bool expected) {
    CudaReport report;
    const bool found = fastffn::load_cuda_plugin(setting.c_str(), &report) != nullptr;
    CHECK(found == expected) << setting << ": " << report.reason;
    CHECK(report.available == expected);
    CHECK(report.reason.empty() == expected) << report.reason;
    return report;
}

}  // namespace

TEST(good) {
    const CudaReport report = load(fake("good"), true);
    CHECK(report.path == fake("good"));
    CHECK(report.version == fastffn::version());
    CHECK(report.architectures == "85 ptx85");
    CHECK(report.devices.size() == 2);
    if (report.devices.size() == 2) {
        CHECK(report.devices[1].name == "Imaginary 1" && report.devices[1].major == 8 && report.devices[1].minor == 5);
        CHECK(!report.devices[0].has_code && report.devices[1].has_code);
    }
}

TEST(other_interface) {
    const CudaReport report = load(fake("other_abi"), false);
    CHECK(contains(report.reason, "interface 99")) << report.reason;
    CHECK(contains(report.reason, fastffn::version()) && contains(report.reason, "same version")) << report.reason;
    CHECK(report.devices.empty());
}

TEST(other_version) {
    const CudaReport report = load(fake("other_version"), false);
    CHECK(contains(report.reason, "0.0.9") && contains(report.reason, fastffn::version())) << report.reason;
}

TEST(no_driver) {
    const CudaReport report = load(fake("no_driver"), false);
    CHECK(contains(report.reason, "no NVIDIA driver")) << report.reason;
    CHECK(report.path == fake("no_driver"));
}

TEST(no_devices) { CHECK(contains(load(fake("no_devices"), false).reason, "lists no devices")); }

TEST(no_code_for_the_device) {
    const CudaReport report = load(fake("no_code"), false);
    CHECK(contains(report.reason, "Imaginary 0") && contains(report.reason, "7.5") &&
          contains(report.reason, "85 ptx85"))
        << report.reason;
    CHECK(report.devices.size() == 2);
}

TEST(off) { CHECK(contains(load("off", false).reason, "FASTFFN_CUDA_PLUGIN=off")); }

TEST(missing_file) {
    const CudaReport report = load("/nowhere/libfastffn_cuda.so", false);
    CHECK(contains(report.reason, "/nowhere/libfastffn_cuda.so")) << report.reason;
    CHECK(report.path.empty());
}

TEST(not_a_plugin) {
    const CudaReport report = load(fake("no_symbol"), false);
    CHECK(contains(report.reason, "is no fastffn plugin")) << report.reason;
}

TEST(the_searched_folders) {
    // No plugin lies beside this program, and none in the system's folders: a reason, whatever it is, and no crash.
    CudaReport report;
    const bool found = fastffn::load_cuda_plugin(nullptr, &report) != nullptr;
    CHECK(found == report.available);
    CHECK(found != !report.reason.empty());
}

TEST(the_real_one) {
    if (!*REAL_PLUGIN) return check::skip("built without nvcc");
    CudaReport report;
    const auto* plugin = fastffn::load_cuda_plugin(REAL_PLUGIN, &report);
    CHECK(report.path == REAL_PLUGIN) << report.reason;  // it loads, driver or not
    CHECK(report.version == fastffn::version());
    CHECK(!report.architectures.empty());
    CHECK((plugin != nullptr) == report.available);
    if (!plugin) CHECK(!report.reason.empty());
    std::printf("        %s\n", plugin ? report.devices[0].name.c_str() : report.reason.c_str());
}

TEST(asked_once) {
    const CudaReport& first = fastffn::cuda_report();
    CHECK(&first == &fastffn::cuda_report());
    CHECK((fastffn::cuda_plugin() != nullptr) == first.available);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
