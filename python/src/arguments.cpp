#include "arguments.hpp"

#include <pybind11/pybind11.h>

#include <string>

#include "errors.hpp"

namespace py = pybind11;

namespace fastffn::python {

Parameters Parameters::with(const char* name) const {
    Parameters more = *this;
    std::size_t total = 0;
    while (more.names[total]) ++total;
    more.names[total] = name;
    more.names[total + 1] = nullptr;
    return more;
}

void Parameters::bind(PyObject* const* args, Py_ssize_t count, PyObject* keywords, PyObject** slots) {
    if (count > positional)
        raise(PyExc_TypeError, std::string(function) + "() takes at most " + std::to_string(positional) +
                                   " positional arguments, got " + std::to_string(count));
    int total = 0;
    while (names[total]) {
        slots[total] = total < count ? args[total] : nullptr;
        ++total;
    }
    const Py_ssize_t keyword_count = keywords ? PyTuple_GET_SIZE(keywords) : 0;
    if (keyword_count && !interned[0])
        for (int i = 0; i < total; ++i) {
            interned[i] = PyUnicode_InternFromString(names[i]);
            if (!interned[i]) throw py::error_already_set();
        }
    for (Py_ssize_t k = 0; k < keyword_count; ++k) {
        PyObject* key = PyTuple_GET_ITEM(keywords, k);
        int found = -1;
        for (int i = 0; i < total && found < 0; ++i)
            if (key == interned[i]) found = i;
        // Names built at run time, as in f(**options), need not be interned.
        for (int i = 0; i < total && found < 0; ++i)
            if (PyUnicode_CompareWithASCIIString(key, names[i]) == 0) found = i;
        if (found < 0)
            raise(PyExc_TypeError, std::string(function) + "() got an unexpected keyword argument '" +
                                       py::cast<std::string>(py::handle(key)) + "'");
        if (slots[found])
            raise(PyExc_TypeError,
                  std::string(function) + "() got multiple values for argument '" + names[found] + "'");
        slots[found] = args[count + k];
    }
    for (int i = 0; i < required; ++i)
        if (!slots[i])
            raise(PyExc_TypeError, std::string(function) + "() missing required argument: '" + names[i] + "'");
    for (int i = required; i < total; ++i)
        if (slots[i] == Py_None) slots[i] = nullptr;
}

}  // namespace fastffn::python
