#include "results.hpp"

#include <pybind11/numpy.h>

#include <vector>

#include "dlpack.hpp"
#include "errors.hpp"
#include "fastffn/cuda.hpp"
#include "owned_array.hpp"

namespace fastffn::python {

namespace {

py::dtype numpy_dtype(const Call& call, DType dtype) {
    switch (dtype) {
        case DType::f32: return py::dtype::of<float>();
        case DType::f64: return py::dtype::of<double>();
        case DType::f16: return py::dtype("float16");
        case DType::u8: return py::dtype::of<std::uint8_t>();
        case DType::i8: return py::dtype::of<std::int8_t>();
        case DType::i32: return py::dtype::of<std::int32_t>();
        case DType::i64: return py::dtype::of<std::int64_t>();
        case DType::bf16: break;
    }
    try {
        return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
    } catch (py::error_already_set& cause) {
        raise_from(PyExc_RuntimeError,
                   std::string(call.operation) + ": NumPy has no bf16 of its own; install ml_dtypes, or ask for f32",
                   cause);
    }
}

}  // namespace

Result::Result(const Call& call, py::handle like, const Array& source, DType dtype, int ndim, const std::int64_t* shape)
    : call_(call) {
    view.dtype = dtype;
    view.ndim = ndim;
    std::int64_t elements = 1;
    for (int i = ndim - 1; i >= 0; --i) {
        view.shape[i] = shape[i];
        view.strides[i] = elements;
        elements *= shape[i];
    }
    const dlpack::ExchangeApi* exchange =
        source.kind == Kind::torch ? type_entry(Py_TYPE(like.ptr())).exchange : nullptr;
    if (source.kind == Kind::numpy) {
        allocate_numpy(like, source, dtype);
    } else if (exchange && exchange->allocate && exchange->import_managed) {
        allocate_torch(*exchange, source.device);
    } else if (source.kind != Kind::other) {
        allocate_torch_slow(like);
    } else if (call.on_device) {
        allocate_on_device(like);
    } else {
        allocate_owned(like);
    }
}

void Result::allocate_numpy(py::handle like, const Array& source, DType dtype) {
    const py::dtype descriptor =
        source.view.dtype == dtype ? py::reinterpret_borrow<py::array>(like).dtype() : numpy_dtype(call_, dtype);
    const std::vector<py::ssize_t> shape(view.shape, view.shape + view.ndim);
    if (dtype == DType::u8) {
        // Packed weights start on a cache line, which NumPy's allocator does not promise.
        std::shared_ptr<std::byte> memory = allocate_aligned(view.size());
        view.data = memory.get();
        const py::capsule owner(new std::shared_ptr<std::byte>(std::move(memory)),
                                [](void* p) { delete static_cast<std::shared_ptr<std::byte>*>(p); });
        object_ = py::array(descriptor, shape, std::vector<py::ssize_t>{}, view.data, owner);
        return;
    }
    py::array array(descriptor, shape);
    view.data = array.mutable_data();
    object_ = std::move(array);
}

void Result::allocate_torch(const dlpack::ExchangeApi& exchange, dlpack::Device device) {
    dlpack::DataType type{dlpack::code_float, static_cast<std::uint8_t>(8 * dtype_bytes(view.dtype)), 1};
    if (view.dtype == DType::bf16) type.code = dlpack::code_bfloat;
    if (view.dtype == DType::u8) type.code = dlpack::code_uint;
    if (view.dtype == DType::i8 || view.dtype == DType::i32 || view.dtype == DType::i64) type.code = dlpack::code_int;
    // Arrays in pinned or managed memory get plain ones.
    if (call_.on_device) device.type = dlpack::device_cuda;
    else device = {dlpack::device_cpu, 0};
    dlpack::Tensor prototype{nullptr, device, view.ndim, type, view.shape, nullptr, 0};
    dlpack::ManagedTensorVersioned* managed = nullptr;
    std::string failure = "no reason given";
    const auto set_error = [](void* context, const char*, const char* message) {
        *static_cast<std::string*>(context) = message;
    };
    if (exchange.allocate(&prototype, &managed, &failure, set_error) != 0)
        raise(PyExc_MemoryError, std::string(call_.operation) + ": the result could not be allocated: " + failure);
    view.data = static_cast<std::byte*>(managed->tensor.data) + managed->tensor.byte_offset;
    void* object = nullptr;
    if (exchange.import_managed(managed, &object) != 0) {
        if (managed->deleter) managed->deleter(managed);
        throw py::error_already_set();
    }
    object_ = py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

void Result::allocate_torch_slow(py::handle like) {
    const py::module_ torch = py::module_::import("torch");
    const char* name = view.dtype == DType::f32    ? "float32"
                       : view.dtype == DType::f16  ? "float16"
                       : view.dtype == DType::bf16 ? "bfloat16"
                       : view.dtype == DType::f64  ? "float64"
                       : view.dtype == DType::i8   ? "int8"
                       : view.dtype == DType::i32  ? "int32"
                       : view.dtype == DType::i64  ? "int64"
                                                   : "uint8";
    py::tuple shape(view.ndim);
    for (int i = 0; i < view.ndim; ++i) shape[i] = view.shape[i];
    const py::object device = call_.on_device ? py::object(like.attr("device")) : py::str("cpu");
    object_ = torch.attr("empty")(shape, py::arg("dtype") = torch.attr(name), py::arg("device") = device);
    // Writes go through the capsule, which may be dropped: the tensor itself keeps the memory.
    Array array;
    read_dlpack(call_, "the result", object_, Role::output, &array);
    view = array.view;
}

// The framework's own allocation, which follows its streams.
void Result::allocate_on_device(py::handle like) {
    py::tuple shape(view.ndim);
    for (int i = 0; i < view.ndim; ++i) shape[i] = view.shape[i];
    object_ = py::module_::import("fastffn._copies")
                  .attr("empty")(like, shape, dtype_name(view.dtype), std::string(call_.operation));
    // An immutable array is written once, before anyone reads it.
    wait_ = is_immutable(object_);
    Array array;
    read_dlpack(call_, "the result", object_, wait_ ? Role::packed : Role::output, &array);
    if (array.view.dtype != view.dtype)
        raise(PyExc_TypeError, std::string(call_.operation) + ": " + type_name(like) + " made a result of dtype " +
                                   dtype_name(array.view.dtype) + ", expected " + dtype_name(view.dtype) +
                                   "; pass out=");
    view = array.view;
}

void Result::allocate_owned(py::handle like) {
    OwnedArray array = make_owned(view.dtype, view.ndim, view.shape);
    view.data = array.view.data;
    object_ = py::cast(std::move(array));
    if (!PyObject_HasAttrString(like.ptr(), "__array_namespace__")) return;
    const py::object space = like.attr("__array_namespace__")();
    if (PyObject_HasAttrString(space.ptr(), "from_dlpack")) from_dlpack_ = space.attr("from_dlpack");
}

py::object Result::finish() {
    if (wait_ && view.size() > 0) {
        std::byte first;
        const auto stream = reinterpret_cast<void*>(static_cast<std::uintptr_t>(call_.stream));
        check(read_device_bytes({call_.device, stream}, call_.operation, view.data, 1, &first));
    }
    return from_dlpack_ ? from_dlpack_(object_) : object_;
}

}  // namespace fastffn::python
