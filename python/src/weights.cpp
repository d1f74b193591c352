// pack, unpack, inspect and verify, as fastffn/_weights.py calls them.
#include <pybind11/pybind11.h>

#include <optional>

#include "device_weight.hpp"
#include "errors.hpp"
#include "fastffn/codes.hpp"
#include "fastffn/cpu.hpp"
#include "fastffn/lowrank.hpp"
#include "gil.hpp"
#include "pack_options.hpp"
#include "packed_argument.hpp"
#include "results.hpp"

namespace fastffn::python {

void read_packed(const Call& call, const char* name, py::handle object, PackedArray* packed) {
    if (const DeviceWeight* weight = device_weight(object.ptr())) {
        if (!call.on_device)
            raise(PyExc_ValueError, std::string(call.operation) + ": " + name + " is packed for CUDA device " +
                                        std::to_string(weight->device) +
                                        ", and this call runs on the CPU; pack it without device=");
        if (weight->device != call.device)
            raise(PyExc_ValueError, std::string(call.operation) + ": " + name + " is on CUDA device " +
                                        std::to_string(weight->device) + ", and the call is on CUDA device " +
                                        std::to_string(call.device) + "; all arrays of a call lie on one device");
        packed->view = {weight->view.data, weight->view.bytes, &weight->header};
        return;
    }
    if (call.on_device)
        raise(PyExc_TypeError, std::string(call.operation) + ": " + name + " has type " + type_name(object) +
                                   ", expected a DeviceWeight as the first weight is; pack it with device=, or see "
                                   "fastffn.device_weight");
    read_array(call, name, object, Role::packed, &packed->array);
    const TensorView& view = packed->array.view;
    if (view.dtype != DType::u8)
        raise(PyExc_ValueError, std::string(call.operation) + ": " + name + " is a plain " + describe(view) +
                                    ", expected packed weights; make them with fastffn.pack(" + name + ", format)");
    if (view.ndim != 1 || (view.shape[0] > 1 && view.strides[0] != 1))
        raise(PyExc_ValueError, std::string(call.operation) + ": " + name + " is a " + describe(view) +
                                    (view.ndim == 1 ? " that is not contiguous" : "") +
                                    ", expected packed weights: a contiguous one-dimensional uint8 array");
    // A null pointer of an empty array must reach the library as "too short", not as "no weight given".
    static const std::byte nothing{};
    packed->view = {view.data ? view.data : &nothing, view.shape[0]};
}

namespace {

py::object pack_weights(py::object w, const std::string& format_text, const py::dict& keywords) {
    Call call{"pack"};
    check(check_isa());
    Format format;
    check(renamed(parse_format(format_text.c_str(), &format), "", "pack: "));
    Array source;
    read_array(call, "w", w, Role::weight, &source);
    std::list<Array> arrays;
    const PackOptions options = read_options(call, keywords, &arrays);
    std::int64_t bytes = 0;
    check(packed_bytes(source.view, format, options, &bytes));
    Result result(call, w, source, DType::u8, 1, &bytes);
    Status status;
    {
        const GilRelease release;
        status = pack(source.view, format, options, result.view.data, bytes);
    }
    check(status);
    return result.finish();
}

py::object pack_factor_pair(py::object u, py::object v, const std::string& factors_text) {
    Call call{"pack"};
    check(check_isa());
    Format factors;
    check(renamed(parse_format(factors_text.c_str(), &factors), "format '", "pack: factors is '"));
    Array inner, outer;
    read_array(call, "u", u, Role::weight, &inner);
    read_array(call, "v", v, Role::weight, &outer);
    std::int64_t bytes = 0;
    check(packed_factors_bytes(inner.view, outer.view, factors, &bytes));
    Result result(call, u, inner, DType::u8, 1, &bytes);
    Status status;
    {
        const GilRelease release;
        status = pack_factors(inner.view, outer.view, factors, result.view.data, bytes);
    }
    check(status);
    return result.finish();
}

DType unpack_dtype(const std::string& name) {
    for (DType dtype : {DType::f32, DType::f16, DType::bf16})
        if (name == dtype_name(dtype)) return dtype;
    raise(PyExc_ValueError, "unpack: dtype is '" + name + "', expected f32, f16 or bf16");
}

py::object unpack_weights(py::object packed, const std::string& dtype_text) {
    Call call{"unpack"};
    check(check_isa());
    const DType dtype = unpack_dtype(dtype_text);
    PackedArray source;
    read_packed(call, "packed", packed, &source);
    PackedInfo info;
    check(renamed(inspect(source.view, &info, "packed"), "inspect:", "unpack:"));
    const std::int64_t shape[3] = {info.count, info.out_features, info.in_features};
    const int skip = info.count == 1 ? 1 : 0;
    Result result(call, packed, source.array, dtype, 3 - skip, shape + skip);
    Status status;
    {
        const GilRelease release;
        status = unpack(source.view, result.view);
    }
    check(renamed(status, "verify:", "unpack:"));
    return result.finish();
}

py::tuple unpack_weight_codes(py::object packed) {
    Call call{"unpack_codes"};
    check(check_isa());
    PackedArray source;
    read_packed(call, "packed", packed, &source);
    PackedInfo info;
    check(renamed(inspect(source.view, &info, "packed"), "inspect:", "unpack_codes:"));
    CodesInfo layout;
    check(renamed(inspect_codes(source.view, &layout, "packed"), "inspect_codes:", "unpack_codes:"));
    std::int64_t shape[3] = {info.count, info.out_features, info.in_features};
    const int skip = info.count == 1 ? 1 : 0;
    Result codes(call, packed, source.array, layout.dtype, 3 - skip, shape + skip);
    shape[2] = layout.groups;
    Result scales(call, packed, source.array, DType::f32, 3 - skip, shape + skip);
    std::optional<Result> zeros;
    if (layout.zeros != CodeZeros::none) zeros.emplace(call, packed, source.array, DType::f32, 3 - skip, shape + skip);
    Status status;
    {
        const GilRelease release;
        status = unpack_codes(source.view, codes.view, scales.view, zeros ? zeros->view : TensorView());
    }
    check(status);
    const py::object offsets = zeros ? zeros->finish() : py::none();
    const bool minima = layout.zeros == CodeZeros::minima;
    return py::make_tuple(codes.finish(), scales.finish(), minima ? py::none() : offsets, minima ? offsets : py::none(),
                          layout.group);
}

py::tuple inspect_weights(py::object packed) {
    Call call{"info"};
    check(check_isa());
    PackedInfo info;
    if (const DeviceWeight* weight = device_weight(packed.ptr())) {
        check(check_device_weight({weight->view.data, weight->view.bytes, &weight->header}, "info", "packed", &info));
    } else {
        PackedArray source;
        read_packed(call, "packed", packed, &source);
        check(renamed(inspect(source.view, &info, "packed"), "inspect:", "info:"));
    }
    return py::make_tuple(format_name(info.format), info.out_features, info.in_features, info.count, info.bytes,
                          to_dict(info.options));
}

void verify_weights(py::object packed) {
    Call call{"verify"};
    check(check_isa());
    PackedArray source;
    read_packed(call, "packed", packed, &source);
    Status status;
    {
        const GilRelease release;
        status = verify_packed(source.view, "packed");
    }
    check(status);
}

py::tuple format_names() {
    Format formats[format_limit];
    const int count = list_formats(formats, format_limit);
    py::tuple names(count);
    for (int i = 0; i < count; ++i) names[i] = format_name(formats[i]);
    return names;
}

}  // namespace

void register_weights(py::module_& module) {
    module.def("pack", &pack_weights, py::arg("w"), py::arg("format"), py::arg("options"));
    module.def("pack_factors", &pack_factor_pair, py::arg("u"), py::arg("v"), py::arg("factors"));
    module.def("unpack", &unpack_weights, py::arg("packed"), py::arg("dtype"));
    module.def("unpack_codes", &unpack_weight_codes, py::arg("packed"),
               "(codes, scales, zeros or None, minima or None, group) of ternary, int4 and int8 weights.");
    module.def("inspect", &inspect_weights, py::arg("packed"),
               "(format, out_features, in_features, count, nbytes, options) of packed weights, in constant time.");
    module.def("verify", &verify_weights, py::arg("packed"));
    module.def("formats", &format_names);
}

}  // namespace fastffn::python
