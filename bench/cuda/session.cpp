#include "session.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "fastffn/fastffn.hpp"

namespace bench::cuda {

namespace {

void check(std::int32_t status, const ModuleError& error) {
    if (status != 0) throw std::runtime_error(error.message);
}

// Beside the plugin, or where FASTFFN_CUDA_BENCH says.
const Module* open_module(const std::string& plugin) {
    const char* setting = std::getenv("FASTFFN_CUDA_BENCH");
    const std::size_t slash = plugin.find_last_of('/');
    const std::string path =
        setting ? setting : (slash == std::string::npos ? "" : plugin.substr(0, slash + 1)) + module_file;
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char* text = dlerror();
        throw std::runtime_error(
            "the bench's device part " + path +
            " could not be loaded (FASTFFN_CUDA_BENCH names another): " + (text ? text : "unknown"));
    }
    void* symbol = dlsym(library, module_symbol);
    if (!symbol) throw std::runtime_error(path + " is no device part of fastffn-bench: it exports no " + module_symbol);
    ModuleFunction function;
    std::memcpy(&function, &symbol, sizeof function);
    const Module* module = function();
    if (module->abi != module_abi || module->bytes != sizeof(Module) ||
        std::strcmp(module->version, fastffn::version()) != 0)
        throw std::runtime_error(path + " is of another version of fastffn; install both in the same version");
    return module;
}

}  // namespace

DeviceBuffer::DeviceBuffer(const Session& session, std::int64_t bytes) : module_(&session.module()), bytes_(bytes) {
    ModuleError error;
    check(module_->allocate((std::max<std::int64_t>(bytes, 1) + 255) / 256 * 256, &data_, &error), error);
}

DeviceBuffer::~DeviceBuffer() {
    if (data_) module_->release(data_);
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
    std::swap(module_, other.module_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
}

Recording::Recording(const Session& session, std::function<void(void*)> launch)
    : module_(session.module()), launch_(std::move(launch)) {
    ModuleError error;
    std::int32_t is_graph = 0;
    check(module_.record(call, this, &recording_, &is_graph, &error), error);
    thrown_ = nullptr;  // of a capture that was not possible: the calls themselves ran
    is_graph_ = is_graph != 0;
}

Recording::~Recording() {
    if (recording_) module_.forget(recording_);
}

double Recording::seconds(int times) {
    ModuleError error;
    double seconds = 0;
    check(module_.time(recording_, times, &seconds, &error), error);
    return seconds;
}

std::int32_t Recording::call(void* self, void* stream) {
    auto& recording = *static_cast<Recording*>(self);
    try {
        recording.launch_(stream);
        return 0;
    } catch (...) {
        recording.thrown_ = std::current_exception();
        return 1;
    }
}

void Recording::check(std::int32_t status, const ModuleError& error) {
    if (status != 0 && thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
    cuda::check(status, error);
}

LibraryProduct::LibraryProduct(const Session& session, Library library, const ProductShape& shape, const void* w,
                               const void* x, void* y)
    : module_(session.module()) {
    ModuleError error;
    check(module_.plan(library, &shape, w, x, y, &product_, &weight_bytes_, &memory_bytes_, &error), error);
}

LibraryProduct::~LibraryProduct() { module_.drop(product_); }

void LibraryProduct::encode(const void* w, void* to) const {
    ModuleError error;
    check(module_.encode(product_, w, to, &error), error);
}

void LibraryProduct::multiply(const void* encoded, const void* x, void* y, void* stream) const {
    ModuleError error;
    check(module_.multiply(product_, encoded, x, y, stream, &error), error);
}

Session::Session(int device, const std::string& places) : device_(device) {
    const fastffn::CudaReport& report = fastffn::cuda_report();
    if (!report.available) throw std::runtime_error("--device cuda: CUDA is unavailable: " + report.reason);
    if (device >= static_cast<int>(report.devices.size()))
        throw std::runtime_error("--device cuda: device number " + std::to_string(device) + ", and there are " +
                                 std::to_string(report.devices.size()));
    module_ = open_module(report.path);
    ModuleError error;
    check(module_->open(device, &facts_, &stream_, &error), error);
    for (Library library : {Library::cublaslt, Library::cusparselt}) {
        char text[512] = {};
        LibraryState& state = libraries_[static_cast<int>(library)];
        state.found = module_->load(library, places.c_str(), text, &error) == 0;
        state.text = state.found ? text : error.message;
    }
}

void Session::copy(void* to, const void* from, std::int64_t bytes) const {
    ModuleError error;
    check(module_->copy(to, from, bytes, &error), error);
}

void Session::copy_on(void* stream, void* to, const void* from, std::int64_t bytes) const {
    ModuleError error;
    check(module_->copy_on_stream(to, from, bytes, stream, &error), error);
}

void Session::fill(void* to, Element element, std::int64_t count, std::uint64_t seed) const {
    ModuleError error;
    check(module_->fill(to, element, count, seed, &error), error);
}

}  // namespace bench::cuda
