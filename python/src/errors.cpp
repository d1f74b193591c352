#include "errors.hpp"

#include <pybind11/pybind11.h>

#include <new>

namespace py = pybind11;

namespace fastffn::python {

void check(const Status& status) {
    switch (status.code()) {
        case StatusCode::ok:
            return;
        case StatusCode::invalid_argument:
        case StatusCode::corrupt:
            raise(PyExc_ValueError, status.message());
        case StatusCode::unsupported:
            raise(PyExc_RuntimeError, status.message());
        case StatusCode::out_of_memory:
            raise(PyExc_MemoryError, status.message());
    }
    raise(PyExc_RuntimeError, status.message());
}

void raise_from_current(PyObject* type, const std::string& message) {
    if (PyErr_Occurred())
        py::raise_from(type, message.c_str());
    else
        PyErr_SetString(type, message.c_str());
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
