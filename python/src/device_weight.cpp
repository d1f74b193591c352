#include "device_weight.hpp"

#include <pybind11/numpy.h>

#include <cstring>
#include <list>
#include <memory>
#include <vector>

#include "dlpack.hpp"
#include "errors.hpp"
#include "gil.hpp"
#include "owned_array.hpp"
#include "pack_options.hpp"
#include "packed_argument.hpp"
#include "results.hpp"

namespace fastffn::python {

namespace {

PyTypeObject* weight_type = nullptr;

long long stream_number(const char* operation, PyObject* stream) {
    const py::handle object(stream);
    if (PyObject_HasAttrString(stream, "__cuda_stream__")) {
        // A method since version 0 of the protocol; some early producers had an attribute.
        py::object pair = object.attr("__cuda_stream__");
        if (PyCallable_Check(pair.ptr()) && !PyType_Check(stream)) pair = pair();
        long long values[2] = {-1, -1};
        if (PyTuple_Check(pair.ptr()) && PyTuple_GET_SIZE(pair.ptr()) == 2)
            for (int i = 0; i < 2; ++i) {
                values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(pair.ptr(), i));
                PyErr_Clear();  // it gave -1
            }
        if (values[0] != 0 || values[1] < 0)
            raise(PyExc_ValueError, std::string(operation) + ": __cuda_stream__ of stream (" + type_name(object) +
                                        ") gave " + py::cast<std::string>(py::repr(pair)) + ", expected (0, handle)");
        return values[1];
    }
    const py::object number = py::reinterpret_steal<py::object>(PyNumber_Index(stream));
    if (!number) {
        PyErr_Clear();
        raise(PyExc_TypeError, std::string(operation) + ": stream has type " + type_name(object) +
                                   ", expected an int or an object with __cuda_stream__");
    }
    const long long value = PyLong_AsLongLong(number.ptr());
    if (value < 0 || PyErr_Occurred()) {
        PyErr_Clear();
        raise(PyExc_ValueError, std::string(operation) + ": stream is " + py::cast<std::string>(py::str(object)) +
                                    ", expected 0 or 1 (the legacy default stream), 2 (per thread), or a handle");
    }
    return value;
}

void* handle_of(long long number) { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(number)); }

// Weights that lie on a device already: their header is read once, which waits for the stream.
DeviceWeight open_device_weight(py::object packed, const py::object& stream, py::object header) {
    constexpr const char* operation = "device_weight";
    Call call{operation, true};
    call.device = -1;  // any
    Array array;
    read_array(call, "packed", packed, Role::packed, &array);
    // int8: what buffers of cuda.core say of their bytes.
    if ((array.view.dtype != DType::u8 && array.view.dtype != DType::i8) || array.view.ndim != 1 ||
        (array.view.shape[0] > 1 && array.view.strides[0] != 1))
        raise(PyExc_ValueError, std::string(operation) + ": packed is a " + describe(array.view) +
                                    ", expected a contiguous one-dimensional uint8 array");
    DeviceWeight weight;
    weight.device = array.device.id;
    weight.view = {array.view.data, array.view.shape[0], nullptr};
    if (header.is_none()) {
        const CudaStream queue =
            call_stream(operation, stream.is_none() ? nullptr : stream.ptr(), packed, weight.device);
        Status status;
        {
            const GilRelease release;
            status = read_device_header(queue, weight.view.data, weight.view.bytes, &weight.header);
        }
        check(status);
    } else {
        const auto bytes = py::cast<std::string>(header);
        if (bytes.size() != sizeof weight.header)
            raise(PyExc_ValueError,
                  std::string(operation) + ": header has " + std::to_string(bytes.size()) + " bytes, expected 64");
        std::memcpy(&weight.header, bytes.data(), sizeof weight.header);
        check(check_device_weight({weight.view.data, weight.view.bytes, &weight.header}, operation, "packed", nullptr));
    }
    weight.array = std::move(packed);
    weight.owner = std::move(array.owner);
    return weight;
}

// Bytes for a device, in the memory of the host: to be copied there as they are.
py::object pack_for_devices(py::object w, const std::string& format_text, const py::dict& keywords) {
    Call call{"pack"};
    Format format;
    check(renamed(parse_format(format_text.c_str(), &format), "", "pack: "));
    Array source;
    read_array(call, "w", w, Role::weight, &source);
    std::list<Array> arrays;
    const PackOptions options = read_options(call, keywords, &arrays);
    std::int64_t bytes = 0;
    check(device_packed_bytes(source.view, format, options, &bytes));
    Result result(call, w, source, DType::u8, 1, &bytes);
    Status status;
    {
        const GilRelease release;
        status = pack_for_device(source.view, format, options, result.view.data, bytes);
    }
    check(status);
    return result.finish();
}

// All bytes of a weight in the host's memory; waits for the stream.
py::object copy_to_host(const DeviceWeight& weight, const py::object& stream) {
    constexpr const char* operation = "copy_to_host";
    const CudaStream queue =
        call_stream(operation, stream.is_none() ? nullptr : stream.ptr(), weight.array, weight.device);
    const std::shared_ptr<std::byte> memory = allocate_aligned(weight.view.bytes);
    Status status;
    {
        const GilRelease release;
        status = read_device_bytes(queue, operation, weight.view.data, weight.view.bytes, memory.get());
    }
    check(status);
    if (std::memcmp(memory.get(), &weight.header, sizeof weight.header) != 0)
        raise(PyExc_ValueError, std::string(operation) +
                                    ": the bytes on the device begin with another header than when this weight was "
                                    "made; make it again with fastffn.device_weight");
    const py::capsule owner(new std::shared_ptr<std::byte>(memory),
                            [](void* p) { delete static_cast<std::shared_ptr<std::byte>*>(p); });
    return py::array(py::dtype::of<std::uint8_t>(), std::vector<py::ssize_t>{weight.view.bytes},
                     std::vector<py::ssize_t>{}, memory.get(), owner);
}

// From one layout to the other, in the memory of the host.
template <class Query, class Convert>
py::object convert_layout(const char* operation, py::object packed, Query query, Convert convert) {
    Call call{operation};
    PackedArray source;
    read_packed(call, "packed", packed, &source);
    std::int64_t bytes = 0;
    check(query(source.view, &bytes));
    Result result(call, packed, source.array, DType::u8, 1, &bytes);
    Status status;
    {
        const GilRelease release;
        status = convert(source.view, result.view.data, bytes);
    }
    check(status);
    return result.finish();
}

py::bytes header_bytes(const DeviceWeight& weight) {
    return py::bytes(reinterpret_cast<const char*>(&weight.header), sizeof weight.header);
}

}  // namespace

const DeviceWeight* device_weight(PyObject* object) {
    if (!object || !Py_IS_TYPE(object, weight_type)) return nullptr;
    return py::cast<const DeviceWeight*>(py::handle(object));
}

int cuda_device_of(const char* operation, const char* name, py::handle array) {
    const TypeEntry& entry = type_entry(Py_TYPE(array.ptr()));
    if (entry.kind == Kind::numpy) return -1;
    if (entry.kind != Kind::other) {
        if (!py::cast<bool>(array.attr("is_cuda"))) return -1;
        return py::cast<int>(array.attr("device").attr("index"));
    }
    if (!PyObject_HasAttrString(array.ptr(), "__dlpack_device__")) return -1;
    const dlpack::Device device = dlpack_device(operation, name, array);
    // Managed memory is the device's wherever there is one: what it holds may still be on its way there.
    const bool is_managed = device.type == dlpack::device_cuda_managed && cuda_report().available;
    return device.type == dlpack::device_cuda || is_managed ? device.id : -1;
}

namespace {

// Where a query of this thread wants the bytes of workspace of the call that it makes, and whether one ran on a device.
struct WorkspaceQuery {
    std::int64_t bytes = 0;
    bool answered = false;
};
thread_local WorkspaceQuery* workspace_query = nullptr;

CudaStream find_stream(const char* operation, PyObject* stream, py::handle x, int device) {
    if (stream) return {device, handle_of(stream_number(operation, stream))};
    const TypeEntry& entry = type_entry(Py_TYPE(x.ptr()));
    if (entry.exchange && entry.exchange->current_work_stream) {
        void* current = nullptr;
        if (entry.exchange->current_work_stream(dlpack::device_cuda, device, &current) != 0)
            throw py::error_already_set();
        return {device, current};
    }
    if (entry.kind == Kind::torch_slow) {
        const py::object current = py::module_::import("torch").attr("cuda").attr("current_stream")(device);
        return {device, handle_of(py::cast<long long>(current.attr("cuda_stream")))};
    }
    // The one of other packages that has a stream of its own per thread; looked up by name, as it may not be there.
    if (entry.kind == Kind::other && type_name(x).rfind("cupy.", 0) == 0) {
        const py::object current = py::module_::import("cupy").attr("cuda").attr("get_current_stream")();
        return {device, handle_of(py::cast<long long>(current.attr("ptr")))};
    }
    return {device, handle_of(1)};
}

// The workspace of a call with these very arguments: all its checks run, and nothing else does.
std::int64_t device_workspace(const py::object& operation, const py::args& args, const py::kwargs& keywords) {
    struct Scope {
        WorkspaceQuery query;
        WorkspaceQuery* const before = workspace_query;
        Scope() { workspace_query = &query; }
        ~Scope() { workspace_query = before; }
    } scope;
    operation(*args, **keywords);
    if (!scope.query.answered)
        raise(PyExc_ValueError, "device_workspace: the call ran on the CPU, as no weight of it is on a CUDA device");
    return scope.query.bytes;
}

}  // namespace

CudaStream call_stream(const char* operation, PyObject* stream, py::handle x, int device) {
    CudaStream found = find_stream(operation, stream, x, device);
    if (workspace_query) {
        workspace_query->answered = true;
        found.query = &workspace_query->bytes;
    }
    return found;
}

void read_workspace(const Call& call, PyObject* workspace, CudaStream* stream) {
    if (!workspace) return;
    Array array;
    read_array(call, "workspace", workspace, Role::output, &array);
    const std::string which = std::string(call.operation) + ": workspace is a " + describe(array.view);
    const bool bytes = array.view.dtype == DType::u8 || array.view.dtype == DType::i8;
    if (!bytes || array.view.ndim != 1 || (array.view.shape[0] > 1 && array.view.strides[0] != 1))
        raise(PyExc_ValueError, which + ", expected a contiguous one-dimensional uint8 array");
    if (reinterpret_cast<std::uintptr_t>(array.view.data) % 256 != 0)
        raise(PyExc_ValueError, which + " whose memory does not begin at a multiple of 256 bytes");
    static std::byte none;  // an empty one must not reach the plugin as "take what you need"
    stream->workspace = array.view.shape[0] ? array.view.data : &none;
    stream->workspace_bytes = array.view.shape[0];
}

long long dlpack_stream(CudaStream stream) {
    const auto number = static_cast<long long>(reinterpret_cast<std::uintptr_t>(stream.stream));
    return number == 0 ? 1 : number;  // __dlpack__ has no 0: it would not say which default stream
}

void register_device_weights(py::module_& module) {
    py::class_<DeviceWeight> weight(module, "DeviceWeight",
                                    "Packed weights in the memory of a CUDA device; see fastffn.pack and "
                                    "fastffn.device_weight.\n\n"
                                    "``array`` is the uint8 array on the device, which state_dict or safetensors may "
                                    "carry; ``device`` its number.");
    weight.def_readonly("array", &DeviceWeight::array)
        .def_readonly("device", &DeviceWeight::device)
        .def_property_readonly("format",
                               [](const DeviceWeight& w) { return format_name(static_cast<Format>(w.header.format)); })
        .def_property_readonly("out_features", [](const DeviceWeight& w) { return w.header.out_features; })
        .def_property_readonly("in_features", [](const DeviceWeight& w) { return w.header.in_features; })
        .def_property_readonly("count", [](const DeviceWeight& w) { return w.header.count; })
        .def_property_readonly("nbytes", [](const DeviceWeight& w) { return w.view.bytes; })
        .def_property_readonly("header", &header_bytes)
        .def("copy_to_host", &copy_to_host, py::arg("stream") = py::none(),
             "The bytes as they lie on the device, as a NumPy array; waits for the stream.")
        // Copies and pickles are those of the array, with the header that was read once.
        .def("__reduce__",
             [](const py::object& self) {
                 const auto& w = py::cast<const DeviceWeight&>(self);
                 return py::make_tuple(py::module_::import("fastffn._core").attr("device_weight"),
                                       py::make_tuple(w.array, py::none(), header_bytes(w)));
             })
        .def("__repr__", [](const DeviceWeight& w) {
            return std::string("<fastffn.DeviceWeight ") + format_name(static_cast<Format>(w.header.format)) + " (" +
                   std::to_string(w.header.out_features) + ", " + std::to_string(w.header.in_features) +
                   ") on cuda:" + std::to_string(w.device) + ">";
        });
    weight_type = reinterpret_cast<PyTypeObject*>(weight.ptr());
    Py_INCREF(weight_type);  // outlives the module's attribute
    module.def("device_weight", &open_device_weight, py::arg("packed"), py::arg("stream") = py::none(),
               py::arg("header") = py::none());
    module.def("device_workspace", &device_workspace, py::arg("operation"));
    module.def("pack_for_device", &pack_for_devices, py::arg("w"), py::arg("format"), py::arg("options"));
    module.def(
        "to_device_layout",
        [](py::object packed) {
            const auto query = [](const PackedView& view, std::int64_t* bytes) {
                return device_packed_bytes(view, bytes);
            };
            const auto convert = [](const PackedView& view, void* out, std::int64_t bytes) {
                return pack_for_device(view, out, bytes);
            };
            return convert_layout("to_device", std::move(packed), query, convert);
        },
        py::arg("packed"));
    module.def(
        "to_cpu_layout",
        [](py::object packed) { return convert_layout("to_cpu", std::move(packed), &cpu_packed_bytes, &pack_for_cpu); },
        py::arg("packed"));
    module.def(
        "verify_device_bytes",
        [](py::object packed) {
            PackedArray source;
            read_packed({"verify"}, "packed", packed, &source);
            check(verify_device_bytes(source.view, "verify", "packed"));
        },
        py::arg("packed"));
}

}  // namespace fastffn::python
