#include "torch.hpp"

#include "dlpack.hpp"
#include "errors.hpp"

namespace fastffn::python {

namespace {

// Interned once; attribute look-ups by C string would build the name on every call.
struct Names {
    PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
    PyObject* is_neg = PyUnicode_InternFromString("is_neg");
    PyObject* is_grad_enabled = nullptr;  // the function itself
};

Names& names() {
    static Names instance;
    return instance;
}

bool truth(PyObject* value) {
    if (!value) throw py::error_already_set();
    const bool result = value == Py_True;
    Py_DECREF(value);
    return result;
}

bool grad_enabled(Call& call) {
    if (call.grad_enabled < 0) {
        PyObject*& function = names().is_grad_enabled;
        if (!function) function = py::object(py::module_::import("torch").attr("is_grad_enabled")).release().ptr();
        call.grad_enabled = truth(PyObject_CallNoArgs(function));
    }
    return call.grad_enabled == 1;
}

void check_gradient(Call& call, const char* name, py::handle object, Role role) {
    if (role == Role::packed || role == Role::weight || !grad_enabled(call)) return;
    if (!truth(PyObject_GetAttr(object.ptr(), names().requires_grad))) return;
    raise(PyExc_RuntimeError,
          std::string(call.operation) + ": " + name +
              " requires grad, and fastffn computes no gradients; call it under torch.no_grad(), or "
              "pass " +
              name + ".detach()");
}

// A lazily negated view exports the memory without the sign.
bool is_negated(py::handle object) { return truth(PyObject_CallMethodNoArgs(object.ptr(), names().is_neg)); }

py::object resolved(const Call& call, const char* name, py::handle object, Role role) {
    if (role == Role::output)
        raise(PyExc_ValueError,
              std::string(call.operation) + ": " + name + " is a lazily negated view; pass a plain tensor");
    return object.attr("resolve_neg")();
}

[[noreturn]] void raise_unexportable(const Call& call, const char* name, py::handle object) {
    py::error_already_set cause;
    raise_from(PyExc_BufferError,
               std::string(call.operation) + ": " + name + " (" + type_name(object) + ") could not be exported", cause);
}

}  // namespace

void read_torch(Call& call, const char* name, py::handle object, Role role, const dlpack::ExchangeApi& exchange,
                Array* array) {
    array->kind = Kind::torch;
    dlpack::Tensor tensor;
    if (exchange.borrow(object.ptr(), &tensor) != 0) raise_unexportable(call, name, object);
    read_dltensor(call, name, tensor, &array->view);
    if (role == Role::packed) return;
    check_gradient(call, name, object, role);
    if (!is_negated(object)) return;
    array->owner = resolved(call, name, object, role);
    if (exchange.borrow(array->owner.ptr(), &tensor) != 0) raise_unexportable(call, name, object);
    read_dltensor(call, name, tensor, &array->view);
}

void read_torch_slow(Call& call, const char* name, py::handle object, Role role, Array* array) {
    check_gradient(call, name, object, role);
    py::object plain = object.attr("detach")();
    if (role != Role::packed && is_negated(plain)) plain = resolved(call, name, plain, role);
    read_dlpack(call, name, plain, role, array);  // its capsule holds the detached tensor
    array->kind = Kind::torch_slow;
}

}  // namespace fastffn::python
