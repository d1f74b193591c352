// Plain values among the arguments of a call: numbers, flags and names. `name` is what errors call the argument; a null
// object stands for one that was not passed.
#pragma once

#include <cstdint>
#include <string>

#include "arrays.hpp"
#include "errors.hpp"
#include "fastffn/status.hpp"

namespace fastffn::python {

inline std::int64_t integer_argument(const Call& call, const char* name, PyObject* object, std::int64_t otherwise) {
    if (!object) return otherwise;
    if (!PyIndex_Check(object) || PyBool_Check(object))
        raise(PyExc_TypeError,
              std::string(call.operation) + ": " + name + " has type " + type_name(object) + ", expected an integer");
    const long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

inline double number_argument(const Call& call, const char* name, PyObject* object, double otherwise) {
    if (!object) return otherwise;
    const double value = PyFloat_AsDouble(object);
    if (value == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        raise(PyExc_TypeError,
              std::string(call.operation) + ": " + name + " has type " + type_name(object) + ", expected a number");
    }
    return value;
}

inline bool flag_argument(const Call& call, const char* name, PyObject* object, bool otherwise) {
    if (!object) return otherwise;
    if (PyBool_Check(object)) return object == Py_True;
    raise(PyExc_TypeError,
          std::string(call.operation) + ": " + name + " has type " + type_name(object) + ", expected True or False");
}

// Names of an enum: `parse` is the library's function for them, `otherwise` what None means.
template <class Enum>
Enum name_argument(const Call& call, const char* name, PyObject* object, Enum otherwise,
                   Status (*parse)(const char*, Enum*)) {
    if (!object) return otherwise;
    if (!PyUnicode_Check(object))
        raise(PyExc_TypeError,
              std::string(call.operation) + ": " + name + " has type " + type_name(object) + ", expected a name");
    Enum value;
    const Status status = parse(py::cast<std::string>(py::handle(object)).c_str(), &value);
    if (!status.ok()) raise(PyExc_ValueError, std::string(call.operation) + ": " + status.message());
    return value;
}

}  // namespace fastffn::python
