// mask24, check24 and patterns24, as fastffn/sparse24 calls them.
#include "fastffn/sparse24.hpp"

#include <pybind11/pybind11.h>

#include "arrays.hpp"
#include "errors.hpp"
#include "gil.hpp"
#include "results.hpp"
#include "sparse24.hpp"

namespace fastffn::python {

namespace {

py::object mask(py::object scores, bool transposable) {
    Call call{"mask24"};
    Array source;
    read_array(call, "scores", scores, Role::weight, &source);
    const TensorView& view = source.view;
    if (view.ndim != 2 && view.ndim != 3)
        raise(PyExc_ValueError,
              "mask24: scores has shape " + view.shape_string() + ", expected [rows, cols] or [count, rows, cols]");
    Result result(call, scores, source, DType::u8, view.ndim, view.shape);
    Status status;
    {
        const GilRelease release;
        status = mask24(view, transposable ? Mask24::transposable : Mask24::largest, result.view);
    }
    check(status);
    return result.finish();
}

py::tuple check_weights(py::object w) {
    Call call{"check24"};
    Array source;
    read_array(call, "w", w, Role::weight, &source);
    Check24 found;
    Status status;
    {
        const GilRelease release;
        status = check24(source.view, &found);
    }
    check(status);
    py::tuple counts(5);
    for (int i = 0; i < 5; ++i) counts[i] = found.groups_with[i];
    py::object first = py::none();
    if (!found.ok()) first = py::make_tuple(found.matrix, found.row, found.group);
    return py::make_tuple(counts, first);
}

py::tuple pattern_bits() {
    py::tuple bits(pattern24_count);
    for (int i = 0; i < pattern24_count; ++i) bits[i] = patterns24()[i];
    return bits;
}

}  // namespace

void register_sparse24(py::module_& module) {
    module.def("mask24", &mask, py::arg("scores"), py::arg("transposable"),
               "1 where a 2:4 mask keeps a weight, else 0: a uint8 array of scores' kind and shape. By |scores|; "
               "transposable: the best of the 90 patterns of every 4 x 4 block.");
    module.def("check24", &check_weights, py::arg("w"),
               "(groups of four with 0, 1, 2, 3, 4 nonzero weights), and (matrix, row, group) of the first with more "
               "than two, or None.");
    module.def("patterns24", &pattern_bits,
               "The 90 transposable patterns in the order of ties; bit 4 * row + column: kept.");
}

}  // namespace fastffn::python
