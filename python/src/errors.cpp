#include "errors.hpp"

#include <new>

namespace py = pybind11;

namespace fastffn::python {

void check(const Status& status) {
    switch (status.code()) {
        case StatusCode::ok: return;
        case StatusCode::invalid_argument:
        case StatusCode::corrupt: raise(PyExc_ValueError, status.message());
        case StatusCode::unsupported: raise(PyExc_RuntimeError, status.message());
        case StatusCode::out_of_memory: raise(PyExc_MemoryError, status.message());
    }
    raise(PyExc_RuntimeError, status.message());
}

Status renamed(const Status& status, const std::string& from, const std::string& to) {
    const std::string& message = status.message();
    if (status.ok() || message.compare(0, from.size(), from) != 0) return status;
    return {status.code(), to + message.substr(from.size())};
}

void raise_from(PyObject* type, std::string message, py::error_already_set& cause) {
    // KeyboardInterrupt and its like are no reasons, and go on as they are.
    if (!cause.matches(PyExc_Exception)) throw cause;
    // torch appends a stack trace to its reasons.
    const std::string reason = py::cast<std::string>(py::str(cause.value()));
    message += ": " + reason.substr(0, reason.find('\n'));
    py::raise_from(cause, type, message.c_str());
    throw py::error_already_set();
}

void set_python_error() noexcept {
    try {
        throw;
    } catch (const PythonError& error) {
        PyErr_SetString(error.type, error.message.c_str());
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    } catch (...) {
        PyErr_SetString(PyExc_RuntimeError, "fastffn: unknown C++ exception");
    }
}

}  // namespace fastffn::python
