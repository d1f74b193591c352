// What this machine and this build have, for `python -m fastffn`.
#include "machine.hpp"

#include <string>

#include "build_info.hpp"
#include "contexts.hpp"
#include "errors.hpp"
#include "fastffn/cpu.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/version.hpp"
#include "pack_options.hpp"

namespace py = pybind11;

namespace fastffn::python {

namespace {

py::dict machine() {
    const CpuReport& report = cpu_report();
    const Status isa = check_isa();
    py::dict result;
    result["vendor"] = report.vendor;
    result["brand"] = report.brand;
    result["isa_found"] = isa_name(report.found);
    result["isa_chosen"] = isa_name(report.chosen);
    result["isa_reason"] = report.reason;
    result["isa_error"] = isa.ok() ? "" : isa.message();
    result["l1d_bytes"] = report.l1d_bytes;
    result["l2_bytes"] = report.l2_bytes;
    result["l3_bytes"] = report.l3_bytes;
    result["threading"] = threading_backend();
    result["cuda_build"] = cuda_state;
    result["compiler"] = compiler;
    return result;
}

// A dict of its own: looking for the plugin asks the driver, which takes a second on some machines.
py::dict cuda() {
    const CudaReport& report = cuda_report();
    py::list devices;
    for (const CudaDevice& device : report.devices) {
        py::dict entry;
        entry["name"] = device.name;
        entry["capability"] = py::make_tuple(device.major, device.minor);
        entry["multiprocessors"] = device.multiprocessors;
        entry["has_code"] = device.has_code;
        entry["memory_bytes"] = device.memory_bytes;
        entry["l2_bytes"] = device.l2_bytes;
        devices.append(entry);
    }
    py::dict result;
    result["available"] = report.available;
    result["reason"] = report.reason;
    result["path"] = report.path;
    result["version"] = report.version;
    result["architectures"] = report.architectures;
    result["devices"] = devices;
    return result;
}

std::string active_kernel_name(const std::string& format_text, const py::dict& keywords) {
    Format format;
    check(renamed(parse_format(format_text.c_str(), &format), "", "active_kernel: "));
    std::string name;
    std::list<Array> arrays;
    check(active_kernel(format, read_options({"active_kernel"}, keywords, &arrays), &name));
    return name;
}

void set_num_threads(int threads) {
    if (threads < 0)
        raise(PyExc_ValueError,
              "set_num_threads: threads is " + std::to_string(threads) + ", expected 0 (OpenMP's default) or more");
    set_thread_setting(threads);
}

int get_num_threads() {
    const int threads = thread_setting();
    return usable_threads(threads ? threads : default_threads());
}

}  // namespace

void register_machine(py::module_& module) {
    module.attr("__version__") = version();
    module.def("machine", &machine);
    module.def("cuda", &cuda);
    module.def("active_kernel", &active_kernel_name, py::arg("format"), py::arg("options"));
    module.def("set_num_threads", &set_num_threads, py::arg("threads"));
    module.def("get_num_threads", &get_num_threads);
    module.def("last_kernel", &last_kernel);
}

}  // namespace fastffn::python
