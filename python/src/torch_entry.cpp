#include "torch_entry.hpp"

#include <string>

namespace py = pybind11;

namespace fastffn::python {

namespace {

// A function of torch without arguments, called without the look-up of its method (which halves the cost).
class Question {
  public:
    Question() = default;
    Question(const py::module_& module, const char* name) {
        function_ = py::getattr(module, name, py::none());
        if (!PyCFunction_Check(function_.ptr()) || PyCFunction_GET_FLAGS(function_.ptr()) != METH_NOARGS) return;
        direct_ = PyCFunction_GET_FUNCTION(function_.ptr());
        self_ = PyCFunction_GET_SELF(function_.ptr());
    }
    long ask() const {
        if (function_.is_none()) return 0;  // a torch that does not know it
        PyObject* answer = direct_ ? direct_(self_, nullptr) : PyObject_CallNoArgs(function_.ptr());
        if (!answer) throw py::error_already_set();
        const long number = PyLong_AsLong(answer);  // of a bool too
        Py_DECREF(answer);
        if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
        return number;
    }
    bool known() const { return !function_.is_none(); }

  private:
    py::object function_ = py::none();
    PyCFunction direct_ = nullptr;
    PyObject* self_ = nullptr;
};

class Watchers {
  public:
    explicit Watchers(const py::module_& torch)
        : enter_autocast_(torch, "autocast_increment_nesting"), leave_autocast_(torch, "autocast_decrement_nesting") {
        const py::module_ modes = py::module_::import("torch.utils._python_dispatch");
        mode_name_ = py::reinterpret_steal<py::object>(PyUnicode_InternFromString("_is_in_torch_dispatch_mode"));
        modes_ = modes.attr("__dict__");
        is_in_mode_ = Question(torch, "_len_torch_dispatch_stack");
    }
    // torch's variable says whether a mode is on anywhere in the process: 5 ns, where asking for the stack takes 25.
    bool mode() const {
        PyObject* flag = PyDict_GetItemWithError(modes_.ptr(), mode_name_.ptr());
        return flag ? flag == Py_True : is_in_mode_.ask() != 0;
    }
    // How deep this thread is inside torch.autocast: one step in and out again says it in 15 ns, where torch's own question
    // takes 100 (it asks every kind of device).
    bool autocast() const {
        if (!enter_autocast_.known() || !leave_autocast_.known()) return false;
        const long depth = enter_autocast_.ask();
        leave_autocast_.ask();
        return depth > 1;
    }

  private:
    Question enter_autocast_, leave_autocast_, is_in_mode_;
    py::object mode_name_, modes_;
};

// Python functions by operation; never destroyed, as the interpreter may be gone by then.
py::dict& handlers() {
    static py::dict& instance = *new py::dict;
    return instance;
}

const Watchers* watchers = nullptr;

void register_handler(const std::string& operation, const py::object& function) {
    if (!watchers) watchers = new Watchers(py::module_::import("torch._C"));
    handlers()[operation.c_str()] = function;
}

}  // namespace

bool torch_watches() { return watchers && (watchers->mode() || watchers->autocast()); }

PyObject* hand_over(const char* operation, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    PyObject *type = nullptr, *value = nullptr, *traceback = nullptr;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject* handler = PyDict_GetItemString(handlers().ptr(), operation);
    if (!handler || (type && !PyErr_GivenExceptionMatches(type, PyExc_Exception))) {
        if (!type) PyErr_SetString(PyExc_RuntimeError, "fastffn.torch is not imported");
        else PyErr_Restore(type, value, traceback);
        return nullptr;
    }
    if (type) PyErr_NormalizeException(&type, &value, &traceback);
    try {
        const auto error = value ? py::reinterpret_steal<py::object>(value) : py::none();
        Py_XDECREF(type);
        Py_XDECREF(traceback);
        py::tuple positional(count);
        for (Py_ssize_t i = 0; i < count; ++i) positional[i] = py::handle(args[i]);
        py::dict named;
        const Py_ssize_t names = keywords ? PyTuple_GET_SIZE(keywords) : 0;
        for (Py_ssize_t k = 0; k < names; ++k)
            named[py::handle(PyTuple_GET_ITEM(keywords, k))] = py::handle(args[count + k]);
        return py::handle(handler)(error, positional, named).release().ptr();
    } catch (...) {
        set_python_error();
        return nullptr;
    }
}

void check_out_features(const char* operation, PyObject* expected, std::int64_t width) {
    if (!expected || expected == Py_None) return;
    const long long value = PyLong_AsLongLong(expected);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (value != width)
        raise(PyExc_ValueError, std::string(operation) + ": out_features is " + std::to_string(value) +
                                    ", and the packed weights have " + std::to_string(width));
}

void register_torch_entry(py::module_& module) {
    module.def("set_torch_handler", &register_handler, py::arg("operation"), py::arg("function"));
}

}  // namespace fastffn::python
