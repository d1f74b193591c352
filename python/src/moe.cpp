// moe: stacks, shared and special experts to views, a result of x's kind, the call without the GIL.
#include "moe.hpp"

#include <chrono>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "contexts.hpp"
#include "device_weight.hpp"
#include "errors.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/ffn.hpp"
#include "fastffn/moe.hpp"
#include "gil.hpp"
#include "moe_docstring.hpp"
#include "packed_argument.hpp"
#include "results.hpp"
#include "torch_docstrings.hpp"
#include "torch_entry.hpp"
#include "values.hpp"

namespace fastffn::python {

namespace {

constexpr const char* operation = "moe";
constexpr const char* special_names[] = {"zero", "copy", "constant"};

bool is_list(PyObject* object) { return PyList_Check(object) || PyTuple_Check(object); }

// What one or several stacks of experts are made of, in the order of MoeExperts' arguments.
enum Part { WUp, WDown, WGate, BUp, BDown, BGate, Gamma, parts };
constexpr const char* part_names[parts] = {"w_up", "w_down", "w_gate", "b_up", "b_down", "b_gate", "sub_norm"};

struct Moe {
    enum {
        X,
        Ids,
        Weights,
        FirstPart,
        SubNormEps = FirstPart + parts,
        Activation,
        Shared,
        Special,
        WeightsOnInput,
        Load,
        Out,
        Stream,
        Workspace,
        count
    };
    static Parameters parameters;

    Call call;
    Array x, ids, weights, load;
    MoeWeights layer;
    std::int64_t weight_bytes = 0;

    explicit Moe(PyObject* const* slots, const Call& how = {operation}) : call(how) {
        if (!slots[Activation])
            raise(PyExc_TypeError, "moe() missing required keyword argument: 'activation' (a name such as 'silu')");
        layer.activation =
            name_argument(call, "activation", slots[Activation], fastffn::Activation::silu, parse_activation);
        layer.weights_on_input = flag_argument(call, "weights_on_input", slots[WeightsOnInput], false);
        read_array(call, "x", slots[X], Role::input, &x);
        read_array(call, "ids", slots[Ids], Role::input, &ids);
        if (slots[Weights] != Py_None) {  // required, so that bind() left None as it is
            read_array(call, "weights", slots[Weights], Role::input, &weights);
            if (weights.view.ndim == 0) raise(PyExc_ValueError, "moe: weights has 0 dimensions, expected 1 to 8");
        }
        sub_norm_eps_ = static_cast<float>(number_argument(call, "sub_norm_eps", slots[SubNormEps], sub_norm_eps_));
        read_stacks(slots + FirstPart);
        if (slots[Shared]) read_shared(slots[Shared]);
        if (slots[Special]) read_special(slots[Special]);
        layer.experts = stacks_.data();
        layer.stacks = static_cast<std::int64_t>(stacks_.size());
        layer.shared = shared_.data();
        layer.shared_stacks = static_cast<std::int64_t>(shared_.size());
        if (slots[Load]) read_load(slots[Load]);
    }
    Moe(const Moe&) = delete;
    Moe& operator=(const Moe&) = delete;

    const PackedView& last() const { return stacks_[0].w_down; }
    const TensorView* weight_view() const { return weights.view.ndim ? &weights.view : nullptr; }
    std::int64_t* load_data() const { return static_cast<std::int64_t*>(load.view.data); }
    Status run(Context& context, const TensorView& y) const {
        return moe(context, x.view, ids.view, weight_view(), layer, y, load_data());
    }
    Status run(CudaStream stream, const TensorView& y) const {
        return cuda_moe(stream, x.view, ids.view, weight_view(), layer, y, load_data());
    }

  private:
    // Views stay where they are once made: MoeExperts points to them.
    std::deque<Array> arrays_;
    std::deque<PackedArray> packed_;
    std::vector<MoeExperts> stacks_;
    std::vector<MoeShared> shared_;
    std::vector<SpecialExpert> kinds_;
    float sub_norm_eps_ = 1e-5f;

    // A list as a tuple that the call owns: reading its arrays runs their __dlpack__, and later calls run without the GIL;
    // both may change the list or drop what is in it.
    PyObject* frozen(PyObject* object) {
        if (!object || !PyList_Check(object)) return object;
        PyObject* tuple = PyList_AsTuple(object);
        if (!tuple) throw py::error_already_set();
        owners_.push_back(py::reinterpret_steal<py::object>(tuple));
        return tuple;
    }
    PackedView packed(const std::string& name, PyObject* object) {
        packed_.emplace_back();
        read_packed(call, name.c_str(), object, &packed_.back());
        weight_bytes += packed_.back().view.bytes;
        return packed_.back().view;
    }
    // A table with a row per expert; a single expert's may be that row alone.
    const TensorView* table(const std::string& name, PyObject* object) {
        if (!object || object == Py_None) return nullptr;
        arrays_.emplace_back();
        read_array(call, name.c_str(), object, Role::input, &arrays_.back());
        TensorView& view = arrays_.back().view;
        if (view.ndim == 1) {
            view.ndim = 2;
            view.shape[1] = view.shape[0];
            view.strides[1] = view.strides[0];
            view.shape[0] = 1;
            view.strides[0] = view.shape[1];
        }
        return &view;
    }
    MoeExperts experts(PyObject* const* part, const std::string& where, const std::string& which) {
        auto name = [&](Part p) { return where + part_names[p] + which; };
        MoeExperts made;
        made.w_up = packed(name(WUp), part[WUp]);
        made.w_down = packed(name(WDown), part[WDown]);
        if (part[WGate] && part[WGate] != Py_None) made.w_gate = packed(name(WGate), part[WGate]);
        made.b_up = table(name(BUp), part[BUp]);
        made.b_down = table(name(BDown), part[BDown]);
        made.b_gate = table(name(BGate), part[BGate]);
        made.sub_norm = table(name(Gamma), part[Gamma]);
        made.sub_norm_eps = sub_norm_eps_;
        return made;
    }
    void read_stacks(PyObject* const* given) {
        PyObject* part[parts];
        for (int p = 0; p < parts; ++p) part[p] = frozen(given[p]);
        const bool several = is_list(part[WUp]);
        const Py_ssize_t count = several ? PySequence_Fast_GET_SIZE(part[WUp]) : 1;
        if (count == 0) raise(PyExc_ValueError, "moe: w_up is an empty list, expected at least one packed stack");
        for (int p = 0; p < parts; ++p) {
            if (!part[p]) continue;
            const Py_ssize_t found = is_list(part[p]) ? PySequence_Fast_GET_SIZE(part[p]) : -1;
            if (found == (several ? count : -1)) continue;
            raise(PyExc_ValueError,
                  std::string("moe: ") + part_names[p] + " is " +
                      (found < 0 ? "a single one" : "a list of " + std::to_string(found)) + ", expected " +
                      (several ? "a list of " + std::to_string(count) + " as w_up" : "a single one as w_up"));
        }
        stacks_.reserve(static_cast<std::size_t>(count));
        for (Py_ssize_t i = 0; i < count; ++i) {
            PyObject* mine[parts];
            for (int p = 0; p < parts; ++p)
                mine[p] = part[p] && several ? PySequence_Fast_GET_ITEM(part[p], i) : part[p];
            stacks_.push_back(experts(mine, "", count > 1 ? "[" + std::to_string(i) + "]" : ""));
        }
    }
    static py::object attribute(PyObject* object, const char* name, const char* expected) {
        PyObject* value = PyObject_GetAttrString(object, name);
        if (value) return py::reinterpret_steal<py::object>(value);
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
        PyErr_Clear();
        raise(PyExc_TypeError, std::string("moe: ") + expected + " has type " + type_name(object));
    }
    void read_shared(PyObject* object) {
        object = frozen(object);
        const bool several = is_list(object);
        const Py_ssize_t count = several ? PySequence_Fast_GET_SIZE(object) : 1;
        shared_.reserve(static_cast<std::size_t>(count));
        for (Py_ssize_t i = 0; i < count; ++i) {
            PyObject* one = several ? PySequence_Fast_GET_ITEM(object, i) : object;
            const std::string which = count > 1 ? "[" + std::to_string(i) + "]" : "";
            py::object values[parts];
            PyObject* part[parts];
            for (int p = 0; p < parts; ++p) {
                values[p] = attribute(one, part_names[p], "shared, expected fastffn.SharedExperts or a list of them,");
                part[p] = values[p].ptr();
                owners_.push_back(values[p]);
            }
            MoeShared made;
            made.experts = experts(part, "shared ", which);
            owners_.push_back(attribute(one, "gate", "shared, expected fastffn.SharedExperts or a list of them,"));
            made.gate = table("shared gate" + which, owners_.back().ptr());
            shared_.push_back(made);
        }
    }
    void read_special(PyObject* object) {
        py::object kinds = py::reinterpret_borrow<py::object>(object);
        if (!is_list(object) && !PyUnicode_Check(object)) {
            const char* expected = "special, expected names of kinds or fastffn.SpecialExperts,";
            kinds = attribute(object, "kinds", expected);
            owners_.push_back(attribute(object, "vectors", expected));
            layer.special.vectors = constants("vectors", owners_.back());
            owners_.push_back(attribute(object, "mix", expected));
            layer.special.mix = constants("mix", owners_.back());
        }
        if (!is_list(kinds.ptr()))
            raise(PyExc_TypeError,
                  "moe: special has kinds of type " + type_name(kinds) + ", expected a tuple of names");
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(kinds.ptr()); ++i) {
            PyObject* kind = PySequence_Fast_GET_ITEM(kinds.ptr(), i);
            int found = -1;
            for (int k = 0; k < 3 && PyUnicode_Check(kind); ++k)
                if (PyUnicode_CompareWithASCIIString(kind, special_names[k]) == 0) found = k;
            if (found < 0)
                raise(PyExc_ValueError, "moe: special expert " + std::to_string(i) + " is " +
                                            py::cast<std::string>(py::repr(kind)) +
                                            ", expected 'zero', 'copy' or 'constant'");
            kinds_.push_back(static_cast<SpecialExpert>(found));
        }
        layer.special.kinds = kinds_.data();
        layer.special.count = static_cast<std::int64_t>(kinds_.size());
    }
    const TensorView* constants(const char* name, const py::object& object) {
        if (object.is_none()) return nullptr;
        arrays_.emplace_back();
        read_array(call, name, object, Role::input, &arrays_.back());
        return &arrays_.back().view;
    }
    void read_load(PyObject* object) {
        read_array(call, "load", object, Role::output, &load);
        std::int64_t experts = 0;
        check(moe_experts(layer, &experts));
        const TensorView& view = load.view;
        if (view.dtype != DType::i64 || view.ndim != 1 || view.shape[0] != experts ||
            (view.shape[0] > 1 && view.strides[0] != 1))
            raise(PyExc_ValueError, "moe: load is a " + describe(view) +
                                        ", expected a contiguous i64 array of shape (" + std::to_string(experts) +
                                        ",), one number per expert");
    }

    std::vector<py::object> owners_;  // of what attributes gave
};
Parameters Moe::parameters{
    "moe",
    {"x",         "ids",          "weights",    "w_up",   "w_down",  "w_gate",           "b_up", "b_down", "b_gate",
     "sub_norm",  "sub_norm_eps", "activation", "shared", "special", "weights_on_input", "load", "out",    "stream",
     "workspace", nullptr},
    5,
    9};

Result new_result(const Moe& call, PyObject* x) {
    const TensorView& view = call.x.view;
    std::int64_t out_features = 0;
    if (const PackedHeader* header = call.last().header) {
        if (view.ndim == 0) raise(PyExc_ValueError, "moe: x has shape (), expected (..., d_model)");
        out_features = header->out_features;
    } else {
        PackedInfo info;
        std::int64_t bytes = 0;
        const std::int64_t picks = call.ids.view.ndim ? call.ids.view.shape[call.ids.view.ndim - 1] : 1;
        check(moe_workspace(view, picks, call.layer, 1, &bytes));
        check(inspect(call.last(), &info));
        out_features = info.out_features;
    }
    std::int64_t shape[max_dims];
    for (int i = 0; i + 1 < view.ndim; ++i) shape[i] = view.shape[i];
    shape[view.ndim - 1] = out_features;
    return {call.call, x, call.x, view.dtype, view.ndim, shape};
}

// Reads or makes the result, has it computed and returns it. `width` is what the caller expects of it, or nullptr.
template <class Compute>
PyObject* finish(const Moe& call, PyObject* const* slots, PyObject* width, Compute compute) {
    std::optional<Result> result;
    Array out;
    if (slots[Moe::Out]) read_array(call.call, "out", slots[Moe::Out], Role::output, &out);
    else result.emplace(new_result(call, slots[Moe::X]));
    const TensorView& y = result ? result->view : out.view;
    if (width && y.ndim) check_out_features(operation, width, y.shape[y.ndim - 1]);
    check(compute(y));
    if (result) return result->finish().release().ptr();
    Py_INCREF(slots[Moe::Out]);
    return slots[Moe::Out];
}

// The first stack's w_up, if it is on a device.
const DeviceWeight* first_weight(PyObject* w_up) {
    if (w_up && is_list(w_up)) w_up = PySequence_Fast_GET_SIZE(w_up) ? PySequence_Fast_GET_ITEM(w_up, 0) : nullptr;
    return device_weight(w_up);
}

PyObject* run(PyObject* const* slots, PyObject* width) {
    if (const DeviceWeight* weight = first_weight(slots[Moe::FirstPart + WUp])) {
        // The GIL is kept: launches take microseconds.
        CudaStream stream = call_stream(operation, slots[Moe::Stream], slots[Moe::X], weight->device);
        const Moe call(slots, {operation, true, dlpack_stream(stream), weight->device});
        read_workspace(call.call, slots[Moe::Workspace], &stream);
        return finish(call, slots, width, [&](const TensorView& y) { return call.run(stream, y); });
    }
    for (int slot : {Moe::Stream, Moe::Workspace})
        if (slots[slot])
            raise(PyExc_ValueError, std::string("moe: ") + (slot == Moe::Stream ? "stream" : "workspace") +
                                        " is for weights on CUDA devices, and these are on the CPU");
    const Moe call(slots);
    return finish(call, slots, width, [&](const TensorView& y) {
        const ContextLease context;
        const GilRelease release;
        return call.run(*context, y);
    });
}

PyObject* moe_entry(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    try {
        PyObject* slots[Moe::count];
        Moe::parameters.bind(args, count, keywords, slots);
        return run(slots, nullptr);
    } catch (...) {
        set_python_error();
        return nullptr;
    }
}

// That of fastffn.torch.
PyObject* torch_moe(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    static Parameters parameters = Moe::parameters.with("out_features");
    PyObject* slots[Moe::count + 1];
    return torch_call(operation, parameters, slots, args, count, keywords,
                      [&] { return run(slots, slots[Moe::count]); });
}

void bind(const py::args& args, const py::kwargs& keywords, PyObject** slots) {
    std::vector<PyObject*> values;
    for (py::handle argument : args) values.push_back(argument.ptr());
    const py::tuple names(py::len(keywords));
    std::size_t i = 0;
    for (auto item : keywords) {
        names[i++] = item.first;
        values.push_back(item.second.ptr());
    }
    Moe::parameters.bind(values.data(), static_cast<Py_ssize_t>(args.size()), names.ptr(), slots);
}

std::int64_t workspace_bytes(int threads, const py::args& args, const py::kwargs& keywords) {
    PyObject* slots[Moe::count];
    bind(args, keywords, slots);
    const Moe call(slots);
    if (threads < 0)
        raise(PyExc_ValueError,
              "moe_workspace: threads is " + std::to_string(threads) + ", expected 0 (as in calls) or more");
    std::int64_t bytes = 0;
    const TensorView& ids = call.ids.view;
    if (ids.ndim == 0) raise(PyExc_ValueError, "moe: ids has 0 dimensions, expected 1 to 8");
    check(
        moe_workspace(call.x.view, ids.shape[ids.ndim - 1], call.layer, threads ? threads : thread_setting(), &bytes));
    return bytes;
}

double seconds_per_moe(int repeats, const py::args& args, const py::kwargs& keywords) {
    PyObject* slots[Moe::count];
    bind(args, keywords, slots);
    if (!slots[Moe::Out]) raise(PyExc_TypeError, "seconds_per_moe() needs out=");
    const Moe call(slots);
    Array out;
    read_array(call.call, "out", slots[Moe::Out], Role::output, &out);
    const ContextLease context;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) check(call.run(*context, out.view));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / repeats;
}

}  // namespace

void register_moe(py::module_& module) {
    static PyMethodDef methods[] = {{"moe", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&moe_entry)),
                                     METH_FASTCALL | METH_KEYWORDS, moe_docstring},
                                    {"torch_moe", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&torch_moe)),
                                     METH_FASTCALL | METH_KEYWORDS, torch_moe_docstring},
                                    {}};
    if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
    module.def("moe_workspace", &workspace_bytes);
    module.def("seconds_per_moe", &seconds_per_moe);
}

}  // namespace fastffn::python
