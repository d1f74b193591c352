#include "torch.hpp"

#include "dlpack.hpp"
#include "errors.hpp"

namespace fastffn::python {

namespace {

bool truth(PyObject* value) {
    if (!value) throw py::error_already_set();
    const bool result = value == Py_True;
    Py_DECREF(value);
    return result;
}

// Questions that every call asks of its tensors. Both are C functions behind descriptors of torch.Tensor, and calling
// these without the look-up halves their cost (measured: 65 to 35 ns for is_neg).
class Questions {
  public:
    bool requires_grad(PyObject* tensor) const {
        return truth(get_requires_grad_ ? get_requires_grad_(tensor, closure_)
                                        : PyObject_GetAttrString(tensor, "requires_grad"));
    }
    bool is_neg(PyObject* tensor) const {
        return truth(call_is_neg_ ? call_is_neg_(tensor, nullptr) : PyObject_CallMethod(tensor, "is_neg", nullptr));
    }
    bool grad_enabled() const {
        return truth(call_is_grad_enabled_ ? call_is_grad_enabled_(nullptr, nullptr)
                                           : PyObject_CallNoArgs(is_grad_enabled_.ptr()));
    }

    // Forward-mode differentiation (torch.autograd.forward_ad, torch.func.jvp) is on while torch's level is not negative; its
    // tensors carry tangents that the exchange drops.
    bool forward_mode() const {
        PyObject* level = PyDict_GetItemWithError(forward_ad_.ptr(), level_name_.ptr());
        return level && level != no_level_.ptr() && !(PyLong_Check(level) && PyLong_AsLong(level) < 0);
    }
    bool has_tangent(PyObject* tensor) const { return !unpack_dual_(py::handle(tensor)).attr("tangent").is_none(); }

    static const Questions& instance() {
        // Not a function-local static: its guard would be held while Python code runs in the constructor, and a second thread
        // would wait for it with the GIL. The GIL alone protects the pointer; who comes second discards what it made.
        static const Questions* shared = nullptr;
        if (!shared) {
            const auto* made = new Questions;
            if (shared) delete made;
            else shared = made;
        }
        return *shared;
    }

  private:
    Questions() {
        const py::module_ torch = py::module_::import("torch");
        is_grad_enabled_ = torch.attr("is_grad_enabled");
        if (PyCFunction_Check(is_grad_enabled_.ptr()) && PyCFunction_GET_FLAGS(is_grad_enabled_.ptr()) == METH_NOARGS)
            call_is_grad_enabled_ = PyCFunction_GET_FUNCTION(is_grad_enabled_.ptr());
        const py::object tensor = torch.attr("Tensor");
        requires_grad_ = tensor.attr("requires_grad");
        if (Py_IS_TYPE(requires_grad_.ptr(), &PyGetSetDescr_Type)) {
            const PyGetSetDef& definition = *reinterpret_cast<PyGetSetDescrObject*>(requires_grad_.ptr())->d_getset;
            get_requires_grad_ = definition.get;
            closure_ = definition.closure;
        }
        const py::module_ forward_ad = py::module_::import("torch.autograd.forward_ad");
        forward_ad_ = forward_ad.attr("__dict__");
        unpack_dual_ = forward_ad.attr("unpack_dual");
        level_name_ = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("_current_level"));
        no_level_ = py::int_(-1);  // the interpreter's one object of that number
        is_neg_ = tensor.attr("is_neg");
        if (Py_IS_TYPE(is_neg_.ptr(), &PyMethodDescr_Type)) {
            const PyMethodDef& definition = *reinterpret_cast<PyMethodDescrObject*>(is_neg_.ptr())->d_method;
            if (definition.ml_flags == METH_NOARGS) call_is_neg_ = definition.ml_meth;
        }
    }

    py::object is_grad_enabled_, requires_grad_, is_neg_;  // references that keep the functions
    py::object forward_ad_, unpack_dual_, level_name_, no_level_;
    getter get_requires_grad_ = nullptr;
    void* closure_ = nullptr;
    PyCFunction call_is_neg_ = nullptr, call_is_grad_enabled_ = nullptr;
};

void check_gradient(const Call& call, const char* name, py::handle object, Role role) {
    if (role == Role::packed || role == Role::weight) return;
    const Questions& questions = Questions::instance();
    if (call.forward_mode < 0) call.forward_mode = questions.forward_mode();
    if (call.forward_mode && questions.has_tangent(object.ptr()))
        raise(PyExc_RuntimeError,
              std::string(call.operation) + ": " + name +
                  " carries a tangent of forward-mode differentiation, which fastffn does not propagate; "
                  "use reverse mode, or pass its primal");
    if (call.records_gradients < 0) call.records_gradients = questions.grad_enabled();
    if (!call.records_gradients || !questions.requires_grad(object.ptr())) return;
    raise(PyExc_RuntimeError, std::string(call.operation) + ": " + name +
                                  " requires grad, and fastffn computes no gradients; call it under torch.no_grad(), "
                                  "or pass " +
                                  name + ".detach()");
}

// A lazily negated view exports the memory without the sign.
bool is_negated(py::handle object) { return Questions::instance().is_neg(object.ptr()); }

// Whether the layout is one that a lazily negated view can have: torch makes such views in one place, as the imaginary
// part of a conjugated tensor, so they step over the memory of complex numbers, by even counts of reals. Rows with
// neighbouring elements are none, which spares plain calls two questions (70 ns of 400). as_strided() can force another
// stride on such a view; nothing else does.
bool lies_in_complex_memory(const TensorView& view) {
    for (int i = 0; i < view.ndim; ++i)
        if (view.shape[i] > 1 && view.strides[i] % 2 != 0) return false;
    return true;
}

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

void read_torch(const Call& call, const char* name, py::handle object, Role role, const dlpack::ExchangeApi& exchange,
                Array* array) {
    array->kind = Kind::torch;
    dlpack::Tensor tensor;
    if (exchange.borrow(object.ptr(), &tensor) != 0) raise_unexportable(call, name, object);
    read_dltensor(call, name, tensor, array);
    if (role == Role::packed) return;
    check_gradient(call, name, object, role);
    if (!lies_in_complex_memory(array->view) || !is_negated(object)) return;
    array->owner = resolved(call, name, object, role);
    if (exchange.borrow(array->owner.ptr(), &tensor) != 0) raise_unexportable(call, name, object);
    read_dltensor(call, name, tensor, array);
}

void read_torch_slow(const Call& call, const char* name, py::handle object, Role role, Array* array) {
    check_gradient(call, name, object, role);
    py::object plain = object.attr("detach")();
    if (role != Role::packed && is_negated(plain)) plain = resolved(call, name, plain, role);
    read_dlpack(call, name, plain, role, array);  // its capsule holds the detached tensor
    array->kind = Kind::torch_slow;
}

}  // namespace fastffn::python
