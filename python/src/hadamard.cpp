// hadamard and quantize, as fastffn/_hadamard.py calls them.
#include "fastffn/hadamard.hpp"

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "arrays.hpp"
#include "contexts.hpp"
#include "device_weight.hpp"
#include "errors.hpp"
#include "gil.hpp"
#include "hadamard.hpp"
#include "results.hpp"

namespace fastffn::python {

namespace {

constexpr std::int64_t gil_release_bytes = 64 << 10;

HadamardOptions options_of(const std::string& mode, std::int64_t block, bool inverse) {
    HadamardOptions options;
    check(renamed(parse_hadamard(mode.c_str(), &options.mode), "hadamard mode", "hadamard: mode"));
    options.block = block;
    options.inverse = inverse;
    return options;
}

// Where a call without weights runs: on x's CUDA device, or on the CPU, which takes neither stream nor workspace.
struct Place {
    Call call;
    CudaStream stream;

    Place(const char* operation, const py::object& x, const py::object& stream_argument, const py::object& workspace)
        : call{operation} {
        const int device = cuda_device_of(operation, "x", x);
        if (device >= 0) {
            stream = call_stream(operation, stream_argument.is_none() ? nullptr : stream_argument.ptr(), x, device);
            call = {operation, true, dlpack_stream(stream), device};
            read_workspace(call, workspace.is_none() ? nullptr : workspace.ptr(), &stream);
        } else if (!stream_argument.is_none() || !workspace.is_none()) {
            raise(PyExc_ValueError, std::string(operation) + ": " + (workspace.is_none() ? "stream" : "workspace") +
                                        " is for arrays on CUDA devices, and x is on the CPU");
        }
    }
};

py::object transform(const py::object& x, const std::string& mode, std::int64_t block, bool inverse,
                     const py::object& out, const py::object& stream, const py::object& workspace) {
    const Place place("hadamard", x, stream, workspace);
    const Call& call = place.call;
    Array source, target;
    read_array(call, "x", x, Role::input, &source);
    const HadamardOptions options = options_of(mode, block, inverse);
    std::optional<Result> result;
    if (out.is_none()) {
        std::int64_t bytes = 0;
        check(hadamard_workspace(source.view, options, 1, &bytes));  // every check of the call but those of the result
        result.emplace(call, x, source, source.view.dtype, source.view.ndim, source.view.shape);
    } else {
        read_array(call, "out", out, Role::output, &target);
    }
    const TensorView& y = result ? result->view : target.view;
    Status status;
    {
        const ContextLease context;
        const GilRelease release(source.view.size() * 4 >= gil_release_bytes);
        status = call.on_device ? cuda_hadamard(place.stream, source.view, options, y)
                                : hadamard(*context, source.view, options, y);
    }
    check(status);
    return result ? result->finish() : out;
}

ActivationCodes kind_of(const std::string& dtype) {
    ActivationCodes kind;
    check(renamed(parse_activation_codes(dtype.c_str(), &kind), "", "quantize: "));
    return kind;
}

py::tuple quantize_rows(const py::object& x, const std::string& dtype, const py::object& stream,
                        const py::object& workspace) {
    const Place place("quantize", x, stream, workspace);
    const Call& call = place.call;
    Array source;
    read_array(call, "x", x, Role::input, &source);
    const ActivationCodes kind = kind_of(dtype);
    std::int64_t bytes = 0;
    check(quantize_workspace(source.view, kind, 1, &bytes));
    const TensorView& view = source.view;
    Result codes(call, x, source, DType::i8, view.ndim, view.shape);
    Result scale(call, x, source, DType::f32, view.ndim - 1, view.shape);
    Status status;
    {
        const ContextLease context;
        const GilRelease release(view.size() * 4 >= gil_release_bytes);
        status = call.on_device ? cuda_quantize(place.stream, view, kind, codes.view, scale.view)
                                : quantize(*context, view, kind, codes.view, scale.view);
    }
    check(status);
    return py::make_tuple(codes.finish(), scale.finish());
}

}  // namespace

void register_hadamard(py::module_& module) {
    module.def("hadamard", &transform, py::arg("x"), py::arg("mode"), py::arg("block"), py::arg("inverse"),
               py::arg("out"), py::arg("stream"), py::arg("workspace"));
    module.def("quantize", &quantize_rows, py::arg("x"), py::arg("dtype"), py::arg("stream"), py::arg("workspace"));
}

}  // namespace fastffn::python
