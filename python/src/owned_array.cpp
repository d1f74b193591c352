#include "owned_array.hpp"

#include <cstdlib>
#include <new>

#include "errors.hpp"

namespace fastffn::python {

std::shared_ptr<std::byte> allocate_aligned(std::int64_t bytes) {
    const std::size_t rounded = (static_cast<std::size_t>(bytes) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, rounded ? rounded : 64);
    if (!memory) throw std::bad_alloc();
    return {static_cast<std::byte*>(memory), [](std::byte* p) { std::free(p); }};
}

OwnedArray make_owned(DType dtype, int ndim, const std::int64_t* shape) {
    OwnedArray array;
    array.view.dtype = dtype;
    array.view.ndim = ndim;
    std::int64_t elements = 1;
    for (int i = ndim - 1; i >= 0; --i) {
        array.view.shape[i] = shape[i];
        array.view.strides[i] = elements;
        elements *= shape[i];
    }
    array.memory = allocate_aligned(elements * dtype_bytes(dtype));
    array.view.data = array.memory.get();
    return array;
}

namespace {

dlpack::DataType dlpack_dtype(DType dtype) {
    const auto bits = static_cast<std::uint8_t>(8 * dtype_bytes(dtype));
    switch (dtype) {
        case DType::f32:
        case DType::f16:
        case DType::f64: return {dlpack::code_float, bits, 1};
        case DType::bf16: return {dlpack::code_bfloat, bits, 1};
        case DType::u8: return {dlpack::code_uint, bits, 1};
        default: return {dlpack::code_int, bits, 1};
    }
}

// What a capsule's tensor points to; it holds no Python object, so its deleter may run on any thread, without the GIL.
template <class Managed>
struct Export {
    Managed managed{};
    OwnedArray array;
};

template <class Managed>
Managed* export_tensor(const OwnedArray& array) {
    auto* exported = new Export<Managed>;
    exported->array = array;
    exported->managed.context = exported;
    exported->managed.deleter = [](Managed* self) { delete static_cast<Export<Managed>*>(self->context); };
    TensorView& view = exported->array.view;
    exported->managed.tensor = {
        view.data, {dlpack::device_cpu, 0}, view.ndim, dlpack_dtype(view.dtype), view.shape, view.strides, 0};
    return &exported->managed;
}

// A consumer renames the capsule and takes over the tensor; otherwise it is freed with the capsule.
template <class Managed>
void free_unconsumed(PyObject* capsule, const char* name) {
    if (!PyCapsule_IsValid(capsule, name)) return;
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, name));
    managed->deleter(managed);
}

py::object to_dlpack(const OwnedArray& array, const py::object& stream, const py::object& max_version,
                     const py::object& dl_device, const py::object& copy) {
    if (!stream.is_none()) raise(PyExc_ValueError, "__dlpack__: stream must be None for an array on the CPU");
    if (!dl_device.is_none()) {
        const auto device = py::cast<py::tuple>(dl_device);
        if (py::cast<int>(device[0]) != dlpack::device_cpu || py::cast<int>(device[1]) != 0)
            raise(PyExc_BufferError, "__dlpack__: this array is on the CPU and can only be exported there");
    }
    const bool copied = !copy.is_none() && py::cast<bool>(copy);
    OwnedArray exported = array;
    if (copied) {
        const std::int64_t bytes = array.view.size() * dtype_bytes(array.view.dtype);
        exported.memory = allocate_aligned(bytes);
        std::copy_n(array.memory.get(), bytes, exported.memory.get());
        exported.view.data = exported.memory.get();
    }
    const bool versioned = !max_version.is_none() && py::cast<std::uint32_t>(py::cast<py::tuple>(max_version)[0]) >= 1;
    PyObject* capsule = nullptr;
    if (versioned) {
        auto* managed = export_tensor<dlpack::ManagedTensorVersioned>(exported);
        managed->version = {dlpack::major_version, dlpack::minor_version};
        managed->flags = copied ? dlpack::flag_is_copied : 0;
        capsule = PyCapsule_New(managed, "dltensor_versioned", [](PyObject* self) {
            free_unconsumed<dlpack::ManagedTensorVersioned>(self, "dltensor_versioned");
        });
    } else {
        capsule = PyCapsule_New(export_tensor<dlpack::ManagedTensor>(exported), "dltensor",
                                [](PyObject* self) { free_unconsumed<dlpack::ManagedTensor>(self, "dltensor"); });
    }
    if (!capsule) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(capsule);
}

py::buffer_info to_buffer(OwnedArray& array) {
    const TensorView& view = array.view;
    const char* format = nullptr;
    switch (view.dtype) {
        case DType::f32: format = "f"; break;
        case DType::f64: format = "d"; break;
        case DType::f16: format = "e"; break;
        case DType::u8: format = "B"; break;
        case DType::i8: format = "b"; break;
        case DType::i32: format = "i"; break;
        case DType::i64: format = "q"; break;
        case DType::bf16: throw py::buffer_error("the buffer protocol has no format for bf16; use __dlpack__");
    }
    const py::ssize_t item = dtype_bytes(view.dtype);
    std::vector<py::ssize_t> shape(view.shape, view.shape + view.ndim), strides(view.strides, view.strides + view.ndim);
    for (py::ssize_t& stride : strides) stride *= item;
    return {view.data, item, format, view.ndim, shape, strides};
}

}  // namespace

void register_owned_array(py::module_& module) {
    py::class_<OwnedArray>(module, "Array", py::buffer_protocol(),
                           "A result on the CPU, for inputs whose own framework makes no arrays.\n\n"
                           "Read it through ``__dlpack__`` or, except for bf16, the buffer protocol, without a copy:\n"
                           "``numpy.asarray(y)``, ``torch.from_dlpack(y)``.")
        .def_buffer(&to_buffer)
        .def("__dlpack__", &to_dlpack, py::kw_only(), py::arg("stream") = py::none(),
             py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(), py::arg("copy") = py::none())
        .def("__dlpack_device__", [](const OwnedArray&) { return py::make_tuple(int{dlpack::device_cpu}, 0); })
        .def_property_readonly("shape",
                               [](const OwnedArray& array) {
                                   py::tuple shape(array.view.ndim);
                                   for (int i = 0; i < array.view.ndim; ++i) shape[i] = array.view.shape[i];
                                   return shape;
                               })
        .def_property_readonly("dtype", [](const OwnedArray& array) { return dtype_name(array.view.dtype); })
        .def("__repr__", [](const OwnedArray& array) { return "<fastffn " + describe(array.view) + ">"; });
}

}  // namespace fastffn::python
