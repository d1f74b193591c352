#include "dlpack.hpp"

#include "errors.hpp"

namespace fastffn::python {

const dlpack::ExchangeApi* exchange_api(PyTypeObject* type) {
    const auto capsule = py::reinterpret_steal<py::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
    if (!capsule || !PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        PyErr_Clear();
        return nullptr;
    }
    auto* header = static_cast<dlpack::ExchangeHeader*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (header && header->version.major != dlpack::major_version) header = header->previous;
    auto* table = reinterpret_cast<const dlpack::ExchangeApi*>(header);
    return table && table->borrow ? table : nullptr;
}

void check_device(const Call& call, const char* name, dlpack::Device device) {
    if (call.on_device) {
        const bool cuda = device.type == dlpack::device_cuda || device.type == dlpack::device_cuda_managed;
        if (cuda && (call.device == device.id || call.device < 0)) return;
        if (cuda)
            raise(PyExc_ValueError, std::string(call.operation) + ": " + name + " is on CUDA device " +
                                        std::to_string(device.id) + ", and the call is on CUDA device " +
                                        std::to_string(call.device) + "; all arrays of a call lie on one device");
        raise(PyExc_ValueError, std::string(call.operation) + ": " + name + " is on DLPack device type " +
                                    std::to_string(device.type) +
                                    (device.type == dlpack::device_cpu ? " (the CPU)" : "") +
                                    ", and the call is on a CUDA device; move it there");
    }
    const char* kind = "another";
    switch (device.type) {
        case dlpack::device_cpu:
        case dlpack::device_cuda_host:
        case dlpack::device_rocm_host:
        case dlpack::device_cuda_managed: return;
        case dlpack::device_cuda: kind = "a CUDA"; break;
        case dlpack::device_rocm: kind = "a ROCm"; break;
        default: break;
    }
    raise(PyExc_RuntimeError,
          std::string(call.operation) + ": " + name + " is on " + kind + " device (DLPack type " +
              std::to_string(device.type) + ", number " + std::to_string(device.id) +
              (device.type == dlpack::device_cuda
                   ? "), and this call runs on the CPU; move the array there, or pack the weights with device="
                   : "), and this call runs on the CPU; move the array there"));
}

namespace {

// Calls object.__dlpack__ with the newest protocol that the object understands.
py::object call_dlpack(const Call& call, py::handle object, Role role) {
    const py::object method = object.attr("__dlpack__");
    const py::tuple version = py::make_tuple(dlpack::major_version, dlpack::minor_version);
    try {
        // The producer makes that stream wait for what it still computes. Outputs too: it may still read them.
        if (call.on_device) return method(py::arg("stream") = call.stream, py::arg("max_version") = version);
        // A copy would swallow what we write.
        if (role == Role::output) return method(py::arg("max_version") = version, py::arg("copy") = false);
        return method(py::arg("max_version") = version);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
    }
    if (call.on_device) return method(py::arg("stream") = call.stream);
    return method();
}

}  // namespace

dlpack::Device dlpack_device(const char* operation, const char* name, py::handle object) {
    const std::string prefix = std::string(operation) + ": " + name + " (" + type_name(object) + ")";
    py::object pair;
    try {
        pair = object.attr("__dlpack_device__")();
    } catch (py::error_already_set& cause) {
        raise_from(PyExc_BufferError, prefix + " could not be exported", cause);
    }
    long long values[2] = {};
    bool is_pair = PyTuple_Check(pair.ptr()) && PyTuple_GET_SIZE(pair.ptr()) == 2;
    for (int i = 0; is_pair && i < 2; ++i) {
        values[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(pair.ptr(), i));
        is_pair = !PyErr_Occurred() && values[i] == static_cast<std::int32_t>(values[i]);
        PyErr_Clear();
    }
    if (!is_pair)
        raise(PyExc_BufferError, prefix + " could not be exported: __dlpack_device__ gave " +
                                     py::cast<std::string>(py::repr(pair)) +
                                     ", expected a tuple of two integers (device type, number)");
    return {static_cast<std::int32_t>(values[0]), static_cast<std::int32_t>(values[1])};
}

bool is_immutable(py::handle object) {
    const std::string name = type_name(object);
    for (const char* package : {"jax.", "jaxlib.", "tensorflow."})
        if (name.rfind(package, 0) == 0) return true;
    return false;
}

void read_dlpack(const Call& call, const char* name, py::handle object, Role role, Array* array) {
    const std::string prefix = std::string(call.operation) + ": " + name;
    if (role == Role::output && is_immutable(object))
        raise(PyExc_ValueError, prefix + " (" + type_name(object) + ") is immutable; leave it out and use the result");
    // Asking a GPU array for a capsule may synchronise its stream, so look at the device first.
    if (PyObject_HasAttrString(object.ptr(), "__dlpack_device__"))
        check_device(call, name, dlpack_device(call.operation, name, object));
    try {
        array->owner = call_dlpack(call, object, role);
    } catch (py::error_already_set& cause) {
        raise_from(PyExc_BufferError, prefix + " (" + type_name(object) + ") could not be exported", cause);
    }
    PyObject* capsule = array->owner.ptr();
    // The capsule is only borrowed: it keeps its name, and its own destructor frees the tensor when the call is over.
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        auto* managed =
            static_cast<dlpack::ManagedTensorVersioned*>(PyCapsule_GetPointer(capsule, "dltensor_versioned"));
        if (managed->version.major != dlpack::major_version)
            raise(PyExc_BufferError, prefix + " exports DLPack version " + std::to_string(managed->version.major) +
                                         "." + std::to_string(managed->version.minor) + ", expected 1.x");
        if (role == Role::output && (managed->flags & dlpack::flag_read_only))
            raise(PyExc_ValueError, prefix + " is read-only");
        if (role == Role::output && (managed->flags & dlpack::flag_is_copied))
            raise(PyExc_BufferError, prefix + " exports a copy of itself, so nothing can be written to it");
        read_dltensor(call, name, managed->tensor, array);
    } else if (PyCapsule_IsValid(capsule, "dltensor")) {
        auto* managed = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
        read_dltensor(call, name, managed->tensor, array);
    } else {
        raise(PyExc_BufferError, prefix + ": __dlpack__ of " + type_name(object) + " returned no DLPack capsule");
    }
}

}  // namespace fastffn::python
