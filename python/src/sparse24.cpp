#include "sparse24.hpp"

#include "errors.hpp"
#include "fastffn/sparse24.hpp"
#include "gil.hpp"
#include "results.hpp"

namespace fastffn::python {

namespace {

py::object mask24_of(py::object scores, bool transposable) {
    Call call{"mask24"};
    Array source;
    read_array(call, "scores", scores, Role::weight, &source);
    Result result(call, scores, source, DType::u8, source.view.ndim, source.view.shape);
    Status status;
    {
        const GilRelease release;
        status = mask24(source.view, transposable, result.view);
    }
    check(status);
    return result.finish();
}

py::tuple patterns24() {
    py::tuple codes(transposable_pattern_count);
    for (int i = 0; i < transposable_pattern_count; ++i) codes[i] = transposable_patterns()[i];
    return codes;
}

}  // namespace

void register_sparse24(py::module_& module) {
    module.def("mask24", &mask24_of, py::arg("scores"), py::arg("transposable"));
    module.def("patterns24", &patterns24, "The 90 transposable patterns, bit 4 * row + column.");
}

}  // namespace fastffn::python
