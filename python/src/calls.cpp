// linear and ffn: arguments to views, a result of the same kind, the call without the GIL. Small layers take a few
// microseconds in all, so both functions are plain C ones, bound without pybind11.
#include "calls.hpp"

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "contexts.hpp"
#include "device_weight.hpp"
#include "docstrings.hpp"
#include "errors.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/ffn.hpp"
#include "gil.hpp"
#include "packed_argument.hpp"
#include "results.hpp"
#include "torch_docstrings.hpp"
#include "torch_entry.hpp"
#include "values.hpp"

namespace fastffn::python {

namespace {

// A call that reads less than this (about 3 µs of work) keeps the GIL: giving it up and taking it back costs 0.1 µs
// alone, and up to a switch interval (5 ms) where other threads want it.
constexpr std::int64_t gil_release_bytes = 64 << 10;

bool worth_releasing_gil(const TensorView& x, std::int64_t weight_bytes) {
    std::int64_t rows = 1;
    for (int i = 0; i + 1 < x.ndim; ++i) rows *= x.shape[i];
    return rows * weight_bytes >= gil_release_bytes;
}

struct Linear {
    static constexpr const char* operation = "linear";
    enum { X, W, Bias, Out, Stream, Workspace, count };
    static constexpr int first_weight = W;
    static Parameters parameters;

    Call call;
    Array x, bias;
    PackedArray w;
    const TensorView* bias_view = nullptr;

    explicit Linear(PyObject* const* slots, const Call& how = {operation}) : call(how) {
        read_array(call, "x", slots[X], Role::input, &x);
        read_packed(call, "w", slots[W], &w);
        if (slots[Bias]) {
            read_array(call, "bias", slots[Bias], Role::input, &bias);
            bias_view = &bias.view;
        }
    }
    const PackedView& last() const { return w.view; }
    std::int64_t weight_bytes() const { return w.view.bytes; }
    Status workspace(int threads, std::int64_t* bytes) const {
        return linear_workspace(x.view, w.view, threads, bytes);
    }
    Status run(Context& context, const TensorView& y) const { return linear(context, x.view, w.view, bias_view, y); }
    Status run(CudaStream stream, const TensorView& y) const {
        return cuda_linear(stream, x.view, w.view, bias_view, y);
    }
};
Parameters Linear::parameters{"linear", {"x", "w", "bias", "out", "stream", "workspace", nullptr}, 2, 3};

Activation activation_argument(PyObject* object) {
    // Source code's strings are interned, so the same name is mostly the same object.
    static PyObject* interned[activation_count] = {};
    if (!interned[0])
        for (int i = 0; i < activation_count; ++i)
            interned[i] = PyUnicode_InternFromString(activation_name(static_cast<Activation>(i)));
    for (int i = 0; i < activation_count; ++i)
        if (object == interned[i]) return static_cast<Activation>(i);
    if (!PyUnicode_Check(object))
        raise(PyExc_TypeError, "ffn: activation has type " + type_name(object) + ", expected a name such as 'silu'");
    Activation activation;
    const Status status = parse_activation(py::cast<std::string>(py::handle(object)).c_str(), &activation);
    if (!status.ok()) raise(PyExc_ValueError, "ffn: " + status.message());
    return activation;
}

GateFirst gate_first_argument(PyObject* object) {
    if (object == Py_True) return GateFirst::always;
    if (object == Py_False) return GateFirst::never;
    if (!PyUnicode_Check(object) || PyUnicode_CompareWithASCIIString(object, "auto") != 0)
        raise(PyUnicode_Check(object) ? PyExc_ValueError : PyExc_TypeError,
              "ffn: gate_first is " + py::cast<std::string>(py::repr(object)) + ", expected 'auto', True or False");
    return GateFirst::automatic;
}

struct Ffn {
    static constexpr const char* operation = "ffn";
    enum {
        X,
        WUp,
        WDown,
        WGate,
        BUp,
        BDown,
        BGate,
        ActivationName,
        SegmentList,
        SubNorm,
        SubNormEps,
        GateFirstChoice,
        Out,
        Stream,
        Workspace,
        count
    };
    static constexpr int first_weight = WUp;
    static Parameters parameters;

    Call call;
    std::vector<Segment> segments;
    Array x, b_up, b_down, b_gate, sub_norm;
    PackedArray w_up, w_down, w_gate;
    FfnWeights weights;

    explicit Ffn(PyObject* const* slots, const Call& how = {operation}) : call(how) {
        if (!slots[ActivationName]) {
            std::string names;
            for (int i = 0; i < activation_count; ++i)
                names += std::string(i ? ", " : "") + activation_name(static_cast<Activation>(i));
            raise(PyExc_TypeError, "ffn() missing required keyword argument: 'activation' (one of " + names + ")");
        }
        weights.activation = activation_argument(slots[ActivationName]);
        read_array(call, "x", slots[X], Role::input, &x);
        read_packed(call, "w_up", slots[WUp], &w_up);
        read_packed(call, "w_down", slots[WDown], &w_down);
        weights.w_up = w_up.view;
        weights.w_down = w_down.view;
        if (slots[WGate]) {
            read_packed(call, "w_gate", slots[WGate], &w_gate);
            weights.w_gate = w_gate.view;
        }
        weights.b_up = read_bias("b_up", slots[BUp], &b_up);
        weights.b_down = read_bias("b_down", slots[BDown], &b_down);
        weights.b_gate = read_bias("b_gate", slots[BGate], &b_gate);
        weights.sub_norm = read_bias("sub_norm", slots[SubNorm], &sub_norm);
        weights.sub_norm_eps =
            static_cast<float>(number_argument(call, "sub_norm_eps", slots[SubNormEps], weights.sub_norm_eps));
        if (slots[SegmentList]) read_segments(slots[SegmentList]);
        if (slots[GateFirstChoice]) weights.gate_first = gate_first_argument(slots[GateFirstChoice]);
    }
    void read_segments(PyObject* object) {
        const auto wrong = [&] {
            raise(PyExc_TypeError, "ffn: segments has type " + type_name(object) +
                                       ", expected a sequence of pairs of integers (start, length)");
        };
        const py::object items = py::reinterpret_steal<py::object>(PySequence_Fast(object, ""));
        if (!items) {
            PyErr_Clear();
            wrong();
        }
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
            const py::object pair =
                py::reinterpret_steal<py::object>(PySequence_Fast(PySequence_Fast_GET_ITEM(items.ptr(), i), ""));
            if (!pair || PySequence_Fast_GET_SIZE(pair.ptr()) != 2) {
                PyErr_Clear();
                wrong();
            }
            long long values[2];
            for (int k = 0; k < 2; ++k) {
                const py::object index =
                    py::reinterpret_steal<py::object>(PyNumber_Index(PySequence_Fast_GET_ITEM(pair.ptr(), k)));
                values[k] = index ? PyLong_AsLongLong(index.ptr()) : -1;
                if (PyErr_Occurred()) {
                    PyErr_Clear();
                    wrong();
                }
            }
            segments.push_back({values[0], values[1]});
        }
        static const Segment none{};  // an empty list must reach the library as such, not as "no list"
        weights.segments = segments.empty() ? &none : segments.data();
        weights.segment_count = static_cast<std::int64_t>(segments.size());
    }
    const TensorView* read_bias(const char* name, PyObject* object, Array* bias) {
        if (!object) return nullptr;
        read_array(call, name, object, Role::input, bias);
        return &bias->view;
    }
    const PackedView& last() const { return weights.w_down; }
    std::int64_t weight_bytes() const { return weights.w_up.bytes + weights.w_down.bytes + weights.w_gate.bytes; }
    Status workspace(int threads, std::int64_t* bytes) const { return ffn_workspace(x.view, weights, threads, bytes); }
    Status run(Context& context, const TensorView& y) const { return ffn(context, x.view, weights, y); }
    Status run(CudaStream stream, const TensorView& y) const { return cuda_ffn(stream, x.view, weights, y); }
};
Parameters Ffn::parameters{"ffn",
                           {"x", "w_up", "w_down", "w_gate", "b_up", "b_down", "b_gate", "activation", "segments",
                            "sub_norm", "sub_norm_eps", "gate_first", "out", "stream", "workspace", nullptr},
                           3,
                           7};

// The result's shape is x's with the last weight's rows. Errors of x and the weights come from the query for workspace,
// which makes every check of the call but those of the result.
template <class Operation>
Result new_result(const Operation& operation, PyObject* x) {
    const TensorView& view = operation.x.view;
    PackedInfo info;
    if (const PackedHeader* header = operation.last().header; header && view.ndim > 0) {
        info.out_features = header->out_features;
    } else if (view.ndim == 0 || !inspect(operation.last(), &info).ok()) {
        std::int64_t bytes = 0;
        if (!operation.last().header) check(operation.workspace(1, &bytes));
        raise(PyExc_ValueError, std::string(Operation::operation) + ": x has shape (), expected (..., in_features)");
    }
    std::int64_t shape[max_dims];
    for (int i = 0; i + 1 < view.ndim; ++i) shape[i] = view.shape[i];
    shape[view.ndim - 1] = info.out_features;
    return {operation.call, x, operation.x, view.dtype, view.ndim, shape};
}

// Reads or makes the result, has it computed and returns it. `width` is what the caller expects of it, or nullptr.
template <class Operation, class Compute>
PyObject* finish_call(const Operation& operation, PyObject* const* slots, PyObject* width, Compute compute) {
    std::optional<Result> result;
    Array out;
    if (slots[Operation::Out]) read_array(operation.call, "out", slots[Operation::Out], Role::output, &out);
    else result.emplace(new_result(operation, slots[Operation::X]));
    const TensorView& y = result ? result->view : out.view;
    if (width && y.ndim) check_out_features(Operation::operation, width, y.shape[y.ndim - 1]);
    check(compute(y));
    if (result) return result->finish().release().ptr();
    Py_INCREF(slots[Operation::Out]);
    return slots[Operation::Out];
}

// A call whose weights are on a CUDA device. The GIL is kept: a launch takes microseconds.
template <class Operation>
PyObject* run_on_device(const DeviceWeight& first, PyObject* const* slots, PyObject* width) {
    CudaStream stream = call_stream(Operation::operation, slots[Operation::Stream], slots[Operation::X], first.device);
    const Operation operation(slots, {Operation::operation, true, dlpack_stream(stream), first.device});
    read_workspace(operation.call, slots[Operation::Workspace], &stream);
    return finish_call(operation, slots, width, [&](const TensorView& y) { return operation.run(stream, y); });
}

template <class Operation>
PyObject* run(PyObject* const* slots, PyObject* width) {
    if (const DeviceWeight* weight = device_weight(slots[Operation::first_weight]))
        return run_on_device<Operation>(*weight, slots, width);
    for (int slot : {Operation::Stream, Operation::Workspace})
        if (slots[slot])
            raise(PyExc_ValueError, std::string(Operation::operation) + ": " +
                                        (slot == Operation::Stream ? "stream" : "workspace") +
                                        " is for weights on CUDA devices, and these are on the CPU");
    const Operation operation(slots);
    return finish_call(operation, slots, width, [&](const TensorView& y) {
        const ContextLease context;
        const GilRelease release(worth_releasing_gil(operation.x.view, operation.weight_bytes()));
        return operation.run(*context, y);
    });
}

template <class Operation>
PyObject* entry(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    try {
        PyObject* slots[Operation::count];
        Operation::parameters.bind(args, count, keywords, slots);
        return run<Operation>(slots, nullptr);
    } catch (...) {
        set_python_error();
        return nullptr;
    }
}

// That of fastffn.torch.
template <class Operation>
PyObject* torch_function(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    static Parameters parameters = Operation::parameters.with("out_features");
    PyObject* slots[Operation::count + 1];
    return torch_call(Operation::operation, parameters, slots, args, count, keywords,
                      [&] { return run<Operation>(slots, slots[Operation::count]); });
}

template <class Operation>
std::int64_t workspace_bytes(const Operation& operation, int threads) {
    if (threads < 0)
        raise(PyExc_ValueError, std::string(Operation::operation) + "_workspace: threads is " +
                                    std::to_string(threads) + ", expected 0 (as in calls) or more");
    std::int64_t bytes = 0;
    check(operation.workspace(threads ? threads : thread_setting(), &bytes));
    return bytes;
}

PyObject* pointer_or_null(const py::object& object) { return object.is_none() ? nullptr : object.ptr(); }

std::int64_t linear_workspace_bytes(const py::object& x, const py::object& w, int threads) {
    PyObject* slots[Linear::count] = {x.ptr(), w.ptr()};
    return workspace_bytes(Linear(slots), threads);
}

std::int64_t ffn_workspace_bytes(const py::object& x, const py::object& w_up, const py::object& w_down,
                                 const py::object& w_gate, const py::object& sub_norm, const py::object& activation,
                                 const py::object& gate_first, int threads) {
    PyObject* slots[Ffn::count] = {x.ptr(), w_up.ptr(), w_down.ptr(), pointer_or_null(w_gate)};
    slots[Ffn::GateFirstChoice] = gate_first.ptr();
    slots[Ffn::ActivationName] = activation.ptr();
    slots[Ffn::SubNorm] = pointer_or_null(sub_norm);
    return workspace_bytes(Ffn(slots), threads);
}

// Seconds per call of the C++ function alone, on arguments that were read once: what a call from Python is measured
// against (python/examples/call_overhead.py).
template <class Operation>
double seconds_per_call(const py::args& args, const py::kwargs& keywords, int repeats) {
    PyObject* slots[Operation::count] = {};
    const py::tuple names = py::tuple(py::len(keywords));
    std::vector<PyObject*> values;
    for (py::handle argument : args) values.push_back(argument.ptr());
    std::size_t i = 0;
    for (auto item : keywords) {
        names[i++] = item.first;
        values.push_back(item.second.ptr());
    }
    Operation::parameters.bind(values.data(), static_cast<Py_ssize_t>(args.size()), names.ptr(), slots);
    if (!slots[Operation::Out]) raise(PyExc_TypeError, "seconds_per_call() needs out=");
    Operation operation(slots);
    Array out;
    read_array(operation.call, "out", slots[Operation::Out], Role::output, &out);
    const ContextLease context;
    const auto begin = std::chrono::steady_clock::now();
    for (int call = 0; call < repeats; ++call) check(operation.run(*context, out.view));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / repeats;
}

py::tuple activation_names() {
    py::tuple names(activation_count);
    for (int i = 0; i < activation_count; ++i) names[i] = activation_name(static_cast<Activation>(i));
    return names;
}

using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*) noexcept;

PyMethodDef method(const char* name, FastFunction function, const char* docstring) {
    return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function)), METH_FASTCALL | METH_KEYWORDS,
            docstring};
}

}  // namespace

void register_calls(py::module_& module) {
    static PyMethodDef methods[] = {method("linear", &entry<Linear>, linear_docstring),
                                    method("ffn", &entry<Ffn>, ffn_docstring),
                                    method("torch_linear", &torch_function<Linear>, torch_linear_docstring),
                                    method("torch_ffn", &torch_function<Ffn>, torch_ffn_docstring),
                                    {}};
    if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
    module.def("linear_workspace", &linear_workspace_bytes, py::arg("x"), py::arg("w"), py::arg("threads"));
    module.def("ffn_workspace", &ffn_workspace_bytes, py::arg("x"), py::arg("w_up"), py::arg("w_down"),
               py::arg("w_gate"), py::arg("sub_norm"), py::arg("activation"), py::arg("gate_first"),
               py::arg("threads"));
    module.def("activations", &activation_names);
    module.def("seconds_per_call",
               [](const std::string& operation, int repeats, const py::args& args, const py::kwargs& keywords) {
                   return operation == "linear" ? seconds_per_call<Linear>(args, keywords, repeats)
                                                : seconds_per_call<Ffn>(args, keywords, repeats);
               });
}

}  // namespace fastffn::python
