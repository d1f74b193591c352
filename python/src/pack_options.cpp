#include "pack_options.hpp"

#include "errors.hpp"

namespace fastffn::python {

namespace {

std::string read_text(py::handle text) {
    Py_ssize_t size = 0;
    const char* utf8 = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (!utf8) throw py::error_already_set();  // lone surrogates
    return {utf8, static_cast<std::size_t>(size)};
}

OptionValue read_value(const Call& call, const std::string& name, py::handle value, std::list<Array>* arrays) {
    if (PyUnicode_Check(value.ptr())) return read_text(value);
    if (PyBool_Check(value.ptr())) return value.is(py::handle(Py_True));
    if (PyFloat_Check(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
    // NumPy's integers too; not its arrays of one integer, which also have __index__.
    if (PyLong_Check(value.ptr()) || (PyIndex_Check(value.ptr()) && !py::hasattr(value, "__len__"))) {
        const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
        if (!index) throw py::error_already_set();
        int overflow = 0;
        const long long number = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
        if (overflow)
            raise(PyExc_ValueError, std::string(call.operation) + ": option '" + name + "' is " +
                                        py::cast<std::string>(py::str(index)) + ", beyond 64 bits");
        return std::int64_t{number};
    }
    arrays->emplace_back();
    read_array(call, name.c_str(), value, Role::weight, &arrays->back());
    return arrays->back().view;
}

py::object to_object(const OptionValue& value) {
    switch (value.kind()) {
        case OptionValue::Kind::text: return py::str(value.text());
        case OptionValue::Kind::integer: return py::int_(value.integer());
        case OptionValue::Kind::real: return py::float_(value.real());
        case OptionValue::Kind::boolean: return py::bool_(value.boolean());
        default: return py::none();
    }
}

}  // namespace

PackOptions read_options(const Call& call, const py::dict& options, std::list<Array>* arrays) {
    PackOptions result;
    for (const auto& [key, value] : options) {
        if (value.is_none()) continue;
        std::string name = read_text(key);
        OptionValue read = read_value(call, name, value, arrays);
        result.push_back({std::move(name), std::move(read)});
    }
    return result;
}

py::dict to_dict(const PackOptions& options) {
    py::dict result;
    for (const PackOption& option : options) result[py::str(option.name)] = to_object(option.value);
    return result;
}

}  // namespace fastffn::python
