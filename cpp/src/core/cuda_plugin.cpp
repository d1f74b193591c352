#include "core/cuda_plugin.hpp"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fastffn/version.hpp"

namespace fastffn {

namespace {

constexpr const char* file_name = "libfastffn_cuda.so";

std::string folder_of(const std::string& path) {
    const std::size_t slash = path.find_last_of('/');
    return slash == std::string::npos ? std::string(".") : path.substr(0, slash);
}

// The folder of the library or program that this code was linked into.
std::string own_folder() {
    Dl_info info{};
    if (!dladdr(reinterpret_cast<const void*>(&cuda_report), &info) || !info.dli_fname) return {};
    // Of a program that is the name it was called by, which may have no folder.
    char path[4096];
    if (!std::strchr(info.dli_fname, '/')) {
        const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
        if (length > 0 && length < static_cast<ssize_t>(sizeof path))
            return folder_of(std::string(path, static_cast<std::size_t>(length)));
    }
    return folder_of(info.dli_fname);
}

// A plugin that this version can call, or nullptr with the reason in the report.
const cuda::Plugin* open_plugin(const std::string& path, CudaReport* report) {
    // Local: a plugin brings its own CUDA runtime, which must not be mixed with another one in the process.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char* text = dlerror();
        report->reason = "the plugin " + path + " could not be loaded: " + (text ? text : "unknown");
        return nullptr;
    }
    // Never closed: a CUDA runtime does not survive it.
    void* symbol = dlsym(library, cuda::plugin_symbol);
    if (!symbol) {
        report->reason = path + " is no fastffn plugin: it exports no " + cuda::plugin_symbol;
        return nullptr;
    }
    cuda::PluginFunction function;
    std::memcpy(&function, &symbol, sizeof function);
    const cuda::Plugin* plugin = function();
    if (!plugin || plugin->abi != cuda::plugin_abi) {
        report->reason = "the plugin " + path + " has interface " + (plugin ? std::to_string(plugin->abi) : "none") +
                         ", and fastffn " + version() + " needs " + std::to_string(cuda::plugin_abi) +
                         "; install both in the same version";
        return nullptr;
    }
    report->path = path;
    report->version = plugin->version;
    report->architectures = plugin->architectures;
    if (plugin->bytes != sizeof(cuda::Plugin) || std::strcmp(plugin->version, version()) != 0) {
        report->reason = "the plugin " + path + " is of fastffn " + plugin->version + ", and this is fastffn " +
                         version() + "; install both in the same version";
        return nullptr;
    }
    return plugin;
}

bool readable(const std::string& path) {
    if (std::FILE* file = std::fopen(path.c_str(), "rb")) {
        std::fclose(file);
        return true;
    }
    return false;
}

}  // namespace

const cuda::Plugin* load_cuda_plugin(const char* setting, CudaReport* report) {
    *report = {};
    const cuda::Plugin* plugin = nullptr;
    if (setting && std::strcmp(setting, "off") == 0) {
        report->reason = "FASTFFN_CUDA_PLUGIN=off";
        return nullptr;
    }
    if (setting && *setting) {
        plugin = open_plugin(setting, report);
    } else {
        const std::string folder = own_folder();
        std::string found;
        // A program of an installation or a wheel lies in bin, the plugin in lib or above.
        for (const char* place : {"/", "/lib/", "/../lib/", "/../lib64/", "/../"}) {
            const std::string candidate = folder + place + file_name;
            if (found.empty() && !folder.empty() && readable(candidate)) found = candidate;
        }
        if (found.empty()) {
            // The system's search path; a library that is not there is not worth the loader's message.
            void* library = dlopen(file_name, RTLD_NOW | RTLD_LOCAL);
            if (!library) {
                dlerror();
                report->reason = std::string("no plugin: ") + file_name + " is not installed";
                return nullptr;
            }
            found = file_name;
        }
        plugin = open_plugin(found, report);
    }
    if (!plugin) return nullptr;

    cuda::PluginError error;
    std::int32_t count = 0;
    if (plugin->device_count(&count, &error) != 0) {
        report->reason = error.message;
        return nullptr;
    }
    for (std::int32_t i = 0; i < count; ++i) {
        cuda::DeviceInfo info{};
        cuda::PluginError device_error;
        CudaDevice device;
        if (plugin->device_info(i, &info, &device_error) == 0) {
            device = {info.name,          info.major,        info.minor,   info.multiprocessors,
                      info.has_code != 0, info.memory_bytes, info.l2_bytes};
            if (device.has_code) report->available = true;
        } else {
            device.name = device_error.message;
        }
        report->devices.push_back(device);
    }
    if (report->available) return plugin;
    report->reason = count == 0 ? "the driver lists no devices"
                                : "the plugin holds no code for " + report->devices[0].name + " (compute capability " +
                                      std::to_string(report->devices[0].major) + "." +
                                      std::to_string(report->devices[0].minor) + "); it has " + report->architectures;
    return nullptr;
}

namespace {

struct Loaded {
    Loaded() : plugin(load_cuda_plugin(std::getenv("FASTFFN_CUDA_PLUGIN"), &report)) {}
    CudaReport report;
    const cuda::Plugin* plugin;
};

const Loaded& loaded() {
    static const Loaded once;
    return once;
}

}  // namespace

const CudaReport& cuda_report() { return loaded().report; }
const cuda::Plugin* cuda_plugin() { return loaded().plugin; }

}  // namespace fastffn
