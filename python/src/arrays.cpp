#include "arrays.hpp"

#include <pybind11/numpy.h>

#include <cstring>
#include <vector>

#include "dlpack.hpp"
#include "errors.hpp"
#include "torch.hpp"

namespace fastffn::python {

namespace {

std::string where(const Call& call, const char* name) { return std::string(call.operation) + ": " + name; }

// An attribute of a module that the process has already imported; never imports anything.
py::object loaded_attribute(const char* module, const char* attribute) {
    PyObject* modules = PyImport_GetModuleDict();
    PyObject* found = PyDict_GetItemString(modules, module);
    if (!found) return {};
    PyObject* value = PyObject_GetAttrString(found, attribute);
    if (!value) PyErr_Clear();
    return py::reinterpret_steal<py::object>(value);
}

bool is_subtype(PyTypeObject* type, const py::object& base) {
    return base && PyType_Check(base.ptr()) && PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(base.ptr()));
}

TypeEntry classify(PyTypeObject* type) {
    if (is_subtype(type, loaded_attribute("numpy", "ndarray")))
        return {type, Kind::numpy, PyObject_HasAttrString(reinterpret_cast<PyObject*>(type), "harden_mask") == 1,
                nullptr};
    const py::object tensor = loaded_attribute("torch", "Tensor");
    if (!is_subtype(type, tensor)) return {type, Kind::other, false, nullptr};
    const py::object parameter = loaded_attribute("torch.nn.parameter", "Parameter");
    const bool plain = type == reinterpret_cast<PyTypeObject*>(tensor.ptr()) ||
                       type == reinterpret_cast<PyTypeObject*>(parameter.ptr());
    const dlpack::ExchangeApi* exchange = plain ? exchange_api(type) : nullptr;
    return {type, exchange ? Kind::torch : Kind::torch_slow, false, exchange};
}

// NumPy dtypes are compared by type number; types of other packages (ml_dtypes) have numbers given at run time and are
// known by name.
bool numpy_dtype(const py::dtype& dtype, DType* result) {
    static PyObject* bf16 = nullptr;  // the dtype object itself: a reference is kept
    if (dtype.ptr() == bf16) {
        *result = DType::bf16;
        return true;
    }
    const char order = dtype.byteorder();
    if (order != '=' && order != '|') return false;
    switch (dtype.num()) {
        case 1: *result = DType::i8; return true;
        case 2: *result = DType::u8; return true;
        case 5: *result = DType::i32; return true;
        case 7:  // long
        case 9:  // long long
            if (dtype.itemsize() != 4 && dtype.itemsize() != 8) return false;
            *result = dtype.itemsize() == 4 ? DType::i32 : DType::i64;
            return true;
        case 11: *result = DType::f32; return true;
        case 12: *result = DType::f64; return true;
        case 23: *result = DType::f16; return true;
        default: break;
    }
    if (dtype.itemsize() != 2 || py::cast<std::string>(dtype.attr("name")) != "bfloat16") return false;
    if (!bf16) bf16 = dtype.inc_ref().ptr();
    *result = DType::bf16;
    return true;
}

[[noreturn]] void raise_dtype(const Call& call, const char* name, const std::string& dtype) {
    raise(PyExc_ValueError, where(call, name) + " has dtype " + dtype +
                                ", which fastffn does not read (f32, f16, bf16, f64, or uint8 where packed)");
}

void fill_strides(const Call& call, const char* name, TensorView* view, const Py_ssize_t* strides, Py_ssize_t item) {
    for (int i = 0; i < view->ndim; ++i) {
        if (strides[i] % item != 0)
            raise(PyExc_ValueError, where(call, name) + " has a stride of " + std::to_string(strides[i]) +
                                        " bytes, not a whole number of elements (" + std::to_string(item) +
                                        " bytes); copy it first");
        view->strides[i] = strides[i] / item;
    }
}

void check_dims(const Call& call, const char* name, long long ndim) {
    if (ndim > max_dims)
        raise(PyExc_ValueError, where(call, name) + " has " + std::to_string(ndim) + " dimensions, expected at most " +
                                    std::to_string(max_dims));
}

void read_numpy(const Call& call, const char* name, py::handle object, Role role, Array* array) {
    const auto numpy = py::reinterpret_borrow<py::array>(object);
    array->kind = Kind::numpy;
    TensorView& view = array->view;
    const py::dtype dtype = numpy.dtype();
    if (!numpy_dtype(dtype, &view.dtype)) raise_dtype(call, name, py::cast<std::string>(py::str(dtype)));
    check_dims(call, name, numpy.ndim());
    if (role == Role::output && !numpy.writeable()) raise(PyExc_ValueError, where(call, name) + " is read-only");
    view.data = const_cast<void*>(numpy.data());
    view.ndim = static_cast<int>(numpy.ndim());
    for (int i = 0; i < view.ndim; ++i) view.shape[i] = numpy.shape(i);
    fill_strides(call, name, &view, numpy.strides(), dtype_bytes(view.dtype));
}

bool buffer_dtype(const Py_buffer& buffer, DType* dtype) {
    const char* format = buffer.format ? buffer.format : "B";
    if (*format == '@' || *format == '=' || *format == '<') ++format;
    if (std::strlen(format) != 1) return false;
    switch (*format) {
        case 'f': *dtype = DType::f32; break;
        case 'd': *dtype = DType::f64; break;
        case 'e': *dtype = DType::f16; break;
        case 'B':
        case 'c': *dtype = DType::u8; break;
        case 'b': *dtype = DType::i8; break;
        case 'i':
        case 'l':
        case 'q': *dtype = buffer.itemsize == 4 ? DType::i32 : DType::i64; break;
        default: return false;
    }
    return buffer.itemsize == dtype_bytes(*dtype);
}

void read_buffer(const Call& call, const char* name, py::handle object, Role role, Array* array) {
    PyObject* memory = PyMemoryView_FromObject(object.ptr());
    if (!memory) {
        py::error_already_set cause;
        raise_from(PyExc_BufferError, where(call, name) + " (" + type_name(object) + ") could not be exported", cause);
    }
    array->owner = py::reinterpret_steal<py::object>(memory);
    const Py_buffer& buffer = *PyMemoryView_GET_BUFFER(memory);
    TensorView& view = array->view;
    if (!buffer_dtype(buffer, &view.dtype))
        raise_dtype(call, name, std::string("'") + (buffer.format ? buffer.format : "B") + "' (a buffer format)");
    check_dims(call, name, buffer.ndim);
    if (role == Role::output && buffer.readonly) raise(PyExc_ValueError, where(call, name) + " is read-only");
    if (buffer.suboffsets)
        raise(PyExc_BufferError, where(call, name) + " is a buffer of pointers (suboffsets); copy it first");
    view.data = buffer.buf;
    view.ndim = buffer.ndim;
    for (int i = 0; i < view.ndim; ++i) view.shape[i] = buffer.shape[i];
    fill_strides(call, name, &view, buffer.strides, buffer.itemsize);
}

}  // namespace

const TypeEntry& type_entry(PyTypeObject* type) {
    // A process meets a handful of array types. Entries hold a reference to their type, so that an address cannot be
    // given to another one.
    static std::vector<TypeEntry>& entries = *new std::vector<TypeEntry>;
    static TypeEntry uncached{};
    for (const TypeEntry& entry : entries)
        if (entry.type == type) return entry;
    const TypeEntry entry = classify(type);
    if (entries.size() >= 64) return uncached = entry;
    Py_INCREF(reinterpret_cast<PyObject*>(type));
    entries.reserve(64);  // references to entries stay valid
    entries.push_back(entry);
    return entries.back();
}

void read_array(const Call& call, const char* name, py::handle object, Role role, Array* array) {
    const TypeEntry& entry = type_entry(Py_TYPE(object.ptr()));
    if (call.on_device && (entry.kind == Kind::numpy || !PyObject_HasAttrString(object.ptr(), "__dlpack__")))
        raise(PyExc_ValueError, where(call, name) + " (" + type_name(object) +
                                    ") is in the CPU's memory, and the call is on a CUDA device; move it there");
    if (entry.kind == Kind::torch) return read_torch(call, name, object, role, *entry.exchange, array);
    if (entry.kind == Kind::torch_slow) return read_torch_slow(call, name, object, role, array);
    if (entry.masked)
        raise(PyExc_TypeError,
              where(call, name) + " is a masked array, whose mask fastffn cannot honour; fill it first");
    if (entry.kind == Kind::numpy) return read_numpy(call, name, object, role, array);
    if (PyObject_HasAttrString(object.ptr(), "__dlpack__")) return read_dlpack(call, name, object, role, array);
    if (PyObject_CheckBuffer(object.ptr())) return read_buffer(call, name, object, role, array);
    raise(PyExc_TypeError, where(call, name) + " has type " + type_name(object) +
                               ", expected an array: NumPy, torch, or anything with __dlpack__ or the buffer protocol");
}

namespace {

std::string dlpack_dtype_name(dlpack::DataType type) {
    static constexpr const char* kinds[] = {"int",    "uint",    "float", "an opaque handle of ",
                                            "bfloat", "complex", "bool"};
    const std::string lanes = type.lanes == 1 ? "" : "x" + std::to_string(type.lanes);
    if (type.code < 7) return kinds[type.code] + std::to_string(type.bits) + lanes;
    return "float" + std::to_string(type.bits) + lanes + " (DLPack type code " + std::to_string(type.code) + ")";
}

}  // namespace

void read_dltensor(const Call& call, const char* name, const dlpack::Tensor& tensor, Array* array) {
    TensorView* view = &array->view;
    if (call.on_device || tensor.device.type != dlpack::device_cpu) check_device(call, name, tensor.device);
    array->device = tensor.device;
    check_dims(call, name, tensor.ndim);
    const dlpack::DataType type = tensor.dtype;
    switch (type.lanes == 1 ? type.code * 256 + type.bits : -1) {
        case dlpack::code_float * 256 + 32: view->dtype = DType::f32; break;
        case dlpack::code_float * 256 + 16: view->dtype = DType::f16; break;
        case dlpack::code_float * 256 + 64: view->dtype = DType::f64; break;
        case dlpack::code_bfloat * 256 + 16: view->dtype = DType::bf16; break;
        case dlpack::code_uint * 256 + 8: view->dtype = DType::u8; break;
        case dlpack::code_int * 256 + 8: view->dtype = DType::i8; break;
        case dlpack::code_int * 256 + 32: view->dtype = DType::i32; break;
        case dlpack::code_int * 256 + 64: view->dtype = DType::i64; break;
        default: raise_dtype(call, name, dlpack_dtype_name(type));
    }
    view->ndim = tensor.ndim;
    std::int64_t elements = 1;
    for (int i = view->ndim - 1; i >= 0; --i) {
        view->shape[i] = tensor.shape[i];
        view->strides[i] = tensor.strides ? tensor.strides[i] : elements;
        elements *= tensor.shape[i];
    }
    if (!tensor.data && elements != 0)
        raise(PyExc_BufferError, where(call, name) + " has no memory behind it (a fake or meta array?)");
    view->data = tensor.data ? static_cast<std::byte*>(tensor.data) + tensor.byte_offset : nullptr;
}

std::string describe(const TensorView& view) {
    return std::string(dtype_name(view.dtype)) + " array of shape " + view.shape_string();
}

std::string type_name(py::handle object) {
    const PyTypeObject* type = Py_TYPE(object.ptr());
    const py::object module = py::getattr(py::type::of(object), "__module__", py::none());
    const std::string prefix = py::isinstance<py::str>(module) ? py::cast<std::string>(module) : "builtins";
    const char* dot = std::strrchr(type->tp_name, '.');
    const std::string plain = dot ? dot + 1 : type->tp_name;
    return prefix == "builtins" ? plain : prefix + "." + plain;
}

}  // namespace fastffn::python
