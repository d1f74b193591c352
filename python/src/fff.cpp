// fff as a plain C function, for calls of a few microseconds; fff_route and packing through pybind11.
#include "fff.hpp"

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "contexts.hpp"
#include "device_tree.hpp"
#include "device_weight.hpp"
#include "errors.hpp"
#include "fastffn/cpu.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/fff.hpp"
#include "fff_docstring.hpp"
#include "gil.hpp"
#include "packed_argument.hpp"
#include "results.hpp"
#include "torch_docstrings.hpp"
#include "torch_entry.hpp"
#include "values.hpp"

namespace fastffn::python {

namespace {

// Below about 10 µs of work a call keeps the GIL: a token's path takes 1 to 5.
constexpr std::int64_t gil_release_tokens = 4;

std::int64_t rows_of(const TensorView& view) {
    std::int64_t rows = 1;
    for (int i = 0; i + 1 < view.ndim; ++i) rows *= view.shape[i];
    return rows;
}

Activation activation_argument(PyObject* object) {
    // Source code's strings are interned, so the same name is mostly the same object.
    static PyObject* interned[activation_count] = {};
    if (!interned[0])
        for (int i = 0; i < activation_count; ++i)
            interned[i] = PyUnicode_InternFromString(activation_name(static_cast<Activation>(i)));
    for (int i = 0; i < activation_count; ++i)
        if (object == interned[i]) return static_cast<Activation>(i);
    return name_argument(Call{"fff"}, "activation", object, Activation::gelu, parse_activation);
}

Status parse_plan(const char* name, FffPlan* plan) {
    const char* const names[] = {"auto", "per_token", "grouped"};
    for (int i = 0; i < 3; ++i)
        if (std::string(name) == names[i]) {
            *plan = static_cast<FffPlan>(i);
            return {};
        }
    return {StatusCode::invalid_argument,
            "plan '" + std::string(name) + "' is not known; expected auto, per_token or grouped"};
}

// A tree, with an error that says where packed weights were passed for one.
void read_tree(const Call& call, PyObject* object, PackedArray* tree) {
    if (const DeviceTree* on_device = device_tree(object)) {
        if (!call.on_device)
            raise(PyExc_ValueError, std::string(call.operation) + ": tree is packed for CUDA device " +
                                        std::to_string(on_device->device) +
                                        ", and this call runs on the CPU; pack it without device=");
        tree->view = on_device->view();
        return;
    }
    read_array(call, "tree", object, Role::packed, &tree->array);
    const TensorView& view = tree->array.view;
    if (view.dtype != DType::u8 || view.ndim != 1 || (view.shape[0] > 1 && view.strides[0] != 1))
        raise(PyExc_ValueError, std::string(call.operation) + ": tree is a " + describe(view) +
                                    ", expected the contiguous one-dimensional uint8 array that pack_tree makes");
    static const std::byte nothing{};
    tree->view = {view.data ? view.data : &nothing, view.shape[0]};
}

struct Fff {
    enum {
        X,
        Tree,
        WUp,
        WDown,
        BUp,
        BDown,
        ActivationName,
        Leaf,
        MasterUp,
        MasterDown,
        MasterBUp,
        MasterBDown,
        Mix,
        Plan,
        Out,
        Stream,
        Workspace,
        count
    };
    static Parameters parameters;

    Call call;
    Array x;
    PackedArray tree;
    // Rarely there: a call without them need not clear that much memory.
    struct Optional {
        Array b_up, b_down, leaf, master_b_up, master_b_down;
        PackedArray w_up, w_down, master_up, master_down;
        FfnWeights master;
        float mix = 0;
    };
    std::optional<Optional> more;
    FffWeights weights;

    explicit Fff(PyObject* const* slots, const Call& how = {"fff"}) : call(how) {
        if (!slots[ActivationName]) {
            std::string names;
            for (int i = 0; i < activation_count; ++i)
                names += std::string(i ? ", " : "") + activation_name(static_cast<Activation>(i));
            raise(PyExc_TypeError, "fff() missing required keyword argument: 'activation' (one of " + names + ")");
        }
        weights.activation = activation_argument(slots[ActivationName]);
        read_array(call, "x", slots[X], Role::input, &x);
        read_tree(call, slots[Tree], &tree);
        weights.tree = tree.view;
        weights.plan = name_argument(call, "plan", slots[Plan], FffPlan::automatic, parse_plan);
        bool optional = false;
        for (int slot = WUp; slot <= Mix; ++slot) optional = optional || (slot != ActivationName && slots[slot]);
        if (optional) read_optional(slots);
    }
    Fff(const Fff&) = delete;
    Fff& operator=(const Fff&) = delete;

    void read_optional(PyObject* const* slots) {
        Optional& o = more.emplace();
        auto packed = [&](const char* name, PyObject* object, PackedArray* array, PackedView* view) {
            if (!object) return;
            read_packed(call, name, object, array);
            *view = array->view;
        };
        auto plain = [&](const char* name, PyObject* object, Array* array) -> const TensorView* {
            if (!object) return nullptr;
            read_array(call, name, object, Role::input, array);
            return &array->view;
        };
        packed("w_up", slots[WUp], &o.w_up, &weights.w_up);
        packed("w_down", slots[WDown], &o.w_down, &weights.w_down);
        weights.b_up = plain("b_up", slots[BUp], &o.b_up);
        weights.b_down = plain("b_down", slots[BDown], &o.b_down);
        weights.leaf = plain("leaf", slots[Leaf], &o.leaf);
        if (!slots[MasterUp] != !slots[MasterDown])
            raise(PyExc_TypeError, std::string("fff: ") + (slots[MasterUp] ? "master_up" : "master_down") +
                                       " is given without " + (slots[MasterUp] ? "master_down" : "master_up"));
        if (slots[MasterUp]) {
            packed("master_up", slots[MasterUp], &o.master_up, &o.master.w_up);
            packed("master_down", slots[MasterDown], &o.master_down, &o.master.w_down);
            o.master.activation = weights.activation;
            weights.master = &o.master;
        }
        o.master.b_up = plain("master_b_up", slots[MasterBUp], &o.master_b_up);
        o.master.b_down = plain("master_b_down", slots[MasterBDown], &o.master_b_down);
        if (!weights.master && (slots[MasterBUp] || slots[MasterBDown] || slots[Mix]))
            raise(PyExc_TypeError, std::string("fff: ") +
                                       (slots[Mix]         ? "mix"
                                        : slots[MasterBUp] ? "master_b_up"
                                                           : "master_b_down") +
                                       " is given without master_up and master_down");
        if (slots[Mix]) {
            o.mix = static_cast<float>(number_argument(call, "mix", slots[Mix], 0));
            weights.mix = &o.mix;
        }
    }
    Status run(Context& context, const TensorView& y) const { return fff(context, x.view, weights, y); }
    Status run(CudaStream stream, const TensorView& y) const { return cuda_fff(stream, x.view, weights, y); }
    Status inspect_parts(TreeInfo* info, std::int64_t* d_out) const {
        const bool on_device = call.on_device;
        if (Status status = on_device ? inspect_device_tree(weights.tree, info) : inspect_tree(weights.tree, info);
            !status.ok())
            return status;
        *d_out = info->d_out;
        if (info->form != TreeForm::leaf) return {};
        if (on_device) {
            *d_out = weights.w_down.header ? weights.w_down.header->out_features : 0;
            return {};
        }
        PackedInfo down;
        const Status status = inspect(weights.w_down, &down);
        *d_out = status.ok() ? down.out_features : 0;
        return status;
    }
    // Every check but those of the result.
    Status checks() const {
        std::int64_t bytes = 0;
        if (!call.on_device) return fff_workspace(x.view, weights, 1, &bytes);
        return cuda_fff({call.device, nullptr}, x.view, weights, TensorView());
    }
};
Parameters Fff::parameters{
    "fff",
    {"x", "tree", "w_up", "w_down", "b_up", "b_down", "activation", "leaf", "master_up", "master_down", "master_b_up",
     "master_b_down", "mix", "plan", "out", "stream", "workspace", nullptr},
    2,
    6};

// The result's shape is x's with the layer's output features. Errors come from the query for workspace, which makes every
// check of the call but those of the result.
Result new_result(const Fff& f, PyObject* x) {
    const TensorView& view = f.x.view;
    TreeInfo tree;
    std::int64_t d_out = 0;
    if (!f.inspect_parts(&tree, &d_out).ok()) d_out = 0;
    if (view.ndim == 0 || d_out == 0) {
        check(f.checks());
        raise(PyExc_ValueError, "fff: x has shape (), expected (..., d_model)");
    }
    std::int64_t shape[max_dims];
    for (int i = 0; i + 1 < view.ndim; ++i) shape[i] = view.shape[i];
    shape[view.ndim - 1] = d_out;
    return {f.call, x, f.x, view.dtype, view.ndim, shape};
}

// Reads or makes the result, has it computed and returns it. `width` is what the caller expects of it, or nullptr.
template <class Compute>
PyObject* finish_call(const Fff& call, PyObject* const* slots, PyObject* width, Compute compute) {
    std::optional<Result> result;
    Array out;
    if (slots[Fff::Out]) read_array(call.call, "out", slots[Fff::Out], Role::output, &out);
    else result.emplace(new_result(call, slots[Fff::X]));
    const TensorView& y = result ? result->view : out.view;
    if (width && y.ndim) check_out_features("fff", width, y.shape[y.ndim - 1]);
    check(compute(y));
    if (result) return result->finish().release().ptr();
    Py_INCREF(slots[Fff::Out]);
    return slots[Fff::Out];
}

PyObject* run(PyObject* const* slots, PyObject* width) {
    if (const DeviceTree* tree = device_tree(slots[Fff::Tree])) {
        // The GIL is kept: a launch takes microseconds.
        CudaStream stream = call_stream("fff", slots[Fff::Stream], slots[Fff::X], tree->device);
        const Fff call(slots, {"fff", true, dlpack_stream(stream), tree->device});
        read_workspace(call.call, slots[Fff::Workspace], &stream);
        return finish_call(call, slots, width, [&](const TensorView& y) { return call.run(stream, y); });
    }
    for (int slot : {Fff::Stream, Fff::Workspace})
        if (slots[slot])
            raise(PyExc_ValueError, std::string("fff: ") + (slot == Fff::Stream ? "stream" : "workspace") +
                                        " is for trees on CUDA devices, and this one is on the CPU");
    const Fff call(slots);
    return finish_call(call, slots, width, [&](const TensorView& y) {
        const ContextLease context;
        const GilRelease release(call.more || rows_of(call.x.view) >= gil_release_tokens);
        return call.run(*context, y);
    });
}

PyObject* fff_entry(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    try {
        PyObject* slots[Fff::count];
        Fff::parameters.bind(args, count, keywords, slots);
        return run(slots, nullptr);
    } catch (...) {
        set_python_error();
        return nullptr;
    }
}

// That of fastffn.torch.
PyObject* torch_fff(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    static Parameters parameters = Fff::parameters.with("out_features");
    PyObject* slots[Fff::count + 1];
    return torch_call("fff", parameters, slots, args, count, keywords, [&] { return run(slots, slots[Fff::count]); });
}

// Arguments by the names that fff() takes, for the functions beside it.
struct Bound {
    PyObject* slots[Fff::count] = {};
    std::vector<PyObject*> values;
    py::tuple names;

    Bound(const py::args& args, const py::kwargs& keywords) : names(py::len(keywords)) {
        for (py::handle argument : args) values.push_back(argument.ptr());
        std::size_t i = 0;
        for (auto item : keywords) {
            names[i++] = item.first;
            values.push_back(item.second.ptr());
        }
        Fff::parameters.bind(values.data(), static_cast<Py_ssize_t>(args.size()), names.ptr(), slots);
    }
};

std::int64_t workspace_bytes(int threads, const py::args& args, const py::kwargs& keywords) {
    if (threads < 0)
        raise(PyExc_ValueError,
              "fff_workspace: threads is " + std::to_string(threads) + ", expected 0 (as in calls) or more");
    const Bound bound(args, keywords);
    const Fff call(bound.slots);
    std::int64_t bytes = 0;
    check(fff_workspace(call.x.view, call.weights, threads ? threads : thread_setting(), &bytes));
    return bytes;
}

// Seconds per call of the C++ function alone, on arguments that were read once.
double seconds_per_fff(int repeats, const py::args& args, const py::kwargs& keywords) {
    const Bound bound(args, keywords);
    if (!bound.slots[Fff::Out]) raise(PyExc_TypeError, "seconds_per_fff() needs out=");
    const Fff call(bound.slots);
    Array out;
    read_array(call.call, "out", bound.slots[Fff::Out], Role::output, &out);
    const ContextLease context;
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) check(call.run(*context, out.view));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / repeats;
}

py::tuple route(const py::object& x, const py::object& tree, bool wants_z, const std::string& plan_name,
                const py::object& stream_argument, const py::object& workspace) {
    Call call{"fff_route"};
    CudaStream stream;
    if (const DeviceTree* on_device = device_tree(tree.ptr())) {
        stream =
            call_stream("fff_route", stream_argument.is_none() ? nullptr : stream_argument.ptr(), x, on_device->device);
        call = {"fff_route", true, dlpack_stream(stream), on_device->device};
        read_workspace(call, workspace.is_none() ? nullptr : workspace.ptr(), &stream);
    } else if (!stream_argument.is_none() || !workspace.is_none()) {
        raise(PyExc_ValueError, std::string("fff_route: ") + (workspace.is_none() ? "stream" : "workspace") +
                                    " is for trees on CUDA devices, and this one is on the CPU");
    }
    FffPlan plan;
    check(renamed(parse_plan(plan_name.c_str(), &plan), "", "fff_route: "));
    Array source;
    read_array(call, "x", x, Role::input, &source);
    PackedArray packed;
    read_tree(call, tree.ptr(), &packed);
    TreeInfo info;
    check(call.on_device ? renamed(inspect_device_tree(packed.view, &info), "inspect_device_tree:", "fff_route:")
                         : renamed(inspect_tree(packed.view, &info), "inspect_tree:", "fff_route:"));
    const TensorView& view = source.view;
    if (view.ndim == 0 || view.ndim >= max_dims)
        raise(PyExc_ValueError, "fff_route: x has " + std::to_string(view.ndim) + " dimensions, expected 1 to " +
                                    std::to_string(max_dims - 1));
    std::int64_t shape[max_dims];
    for (int i = 0; i + 1 < view.ndim; ++i) shape[i] = view.shape[i];
    shape[view.ndim - 1] = info.trees;
    shape[view.ndim] = info.depth + (info.form == TreeForm::nodes ? 1 : 0);
    Result leaf(call, x, source, DType::i32, view.ndim, shape), margin(call, x, source, DType::f32, view.ndim, shape);
    std::optional<Result> z;
    if (wants_z) z.emplace(call, x, source, DType::f32, view.ndim + 1, shape);
    const TensorView* const z_view = z ? &z->view : nullptr;
    Status status;
    if (call.on_device) {
        status = cuda_fff_route(stream, view, packed.view, leaf.view, &margin.view, z_view, plan);
    } else {
        const ContextLease context;
        const GilRelease release;
        status = fff_route(*context, view, packed.view, leaf.view, &margin.view, z_view, plan);
    }
    check(status);
    return py::make_tuple(leaf.finish(), margin.finish(), z ? z->finish() : py::none());
}

Tie parse_tie(const std::string& name) {
    if (name == "ge") return Tie::right;
    if (name == "gt") return Tie::left;
    raise(PyExc_ValueError, "pack_tree: tie is '" + name + "', expected 'ge' or 'gt'");
}

py::object pack_parts(const py::object& w_node, const py::object& b_node, const py::object& w_out,
                      const py::object& threshold, const std::string& format, const std::string& route_format,
                      const std::string& tie) {
    const Call call{"pack_tree"};
    check(check_isa());
    Array arrays[4];
    const py::object* objects[] = {&w_node, &b_node, &threshold, &w_out};
    const char* names[] = {"w_node", "b_node", "threshold", "w_out"};
    const TensorView* views[4] = {};
    for (int i = 0; i < 4; ++i) {
        if (objects[i]->is_none()) continue;
        read_array(call, names[i], *objects[i], Role::weight, &arrays[i]);
        views[i] = &arrays[i].view;
    }
    const TreeParts parts{views[0], views[1], views[2], views[3]};
    TreeOptions options;
    check(renamed(parse_format(format.c_str(), &options.format), "", "pack_tree: "));
    check(renamed(parse_format(route_format.c_str(), &options.route_format), "", "pack_tree: route_"));
    options.tie = parse_tie(tie);
    std::int64_t bytes = 0;
    check(tree_bytes(parts, options, &bytes));
    Result result(call, w_node, arrays[0], DType::u8, 1, &bytes);
    Status status;
    {
        const GilRelease release;
        status = pack_tree(parts, options, result.view.data, bytes);
    }
    check(status);
    return result.finish();
}

py::tuple info_of(const py::object& tree) {
    const Call call{"tree_info"};
    check(check_isa());
    TreeInfo info;
    if (const DeviceTree* on_device = device_tree(tree.ptr())) {
        check(renamed(inspect_device_tree(on_device->view(), &info), "inspect_device_tree:", "tree_info:"));
    } else {
        PackedArray packed;
        read_tree(call, tree.ptr(), &packed);
        check(renamed(inspect_tree(packed.view, &info), "inspect_tree:", "tree_info:"));
    }
    return py::make_tuple(info.form == TreeForm::leaf ? "leaf" : "nodes", info.trees, info.depth, info.nodes,
                          info.d_model, info.d_out, format_name(info.format), format_name(info.route_format),
                          info.tie == Tie::right ? "ge" : "gt", info.has_bias, info.has_threshold, info.bytes);
}

void verify_parts(const py::object& tree) {
    const Call call{"verify_tree"};
    check(check_isa());
    PackedArray packed;
    read_tree(call, tree.ptr(), &packed);
    Status status;
    {
        const GilRelease release;
        status = verify_tree(packed.view);
    }
    check(status);
}

py::tuple unpack_parts(const py::object& tree) {
    const Call call{"unpack_tree"};
    check(check_isa());
    PackedArray packed;
    read_tree(call, tree.ptr(), &packed);
    TreeInfo info;
    check(renamed(inspect_tree(packed.view, &info), "inspect_tree:", "unpack_tree:"));
    const std::int64_t w_node[] = {info.trees, info.nodes, info.d_model},
                       w_out[] = {info.trees, info.nodes, info.d_out};
    Result node(call, tree, packed.array, DType::f32, 3, w_node), bias(call, tree, packed.array, DType::f32, 2, w_node);
    Result threshold(call, tree, packed.array, DType::f32, 2, w_node);
    std::optional<Result> out;
    if (info.form == TreeForm::nodes) out.emplace(call, tree, packed.array, DType::f32, 3, w_out);
    Status status;
    {
        const GilRelease release;
        status = unpack_tree(packed.view, {&node.view, &bias.view, &threshold.view, out ? &out->view : nullptr});
    }
    check(renamed(status, "verify_tree:", "unpack_tree:"));
    return py::make_tuple(node.finish(), bias.finish(), threshold.finish(), out ? out->finish() : py::none());
}

}  // namespace

void register_fff(py::module_& module) {
    static PyMethodDef methods[] = {{"fff", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&fff_entry)),
                                     METH_FASTCALL | METH_KEYWORDS, fff_docstring},
                                    {"torch_fff", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&torch_fff)),
                                     METH_FASTCALL | METH_KEYWORDS, torch_fff_docstring},
                                    {}};
    if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
    module.def("fff_route", &route, py::arg("x"), py::arg("tree"), py::arg("z"), py::arg("plan"),
               py::arg("stream") = py::none(), py::arg("workspace") = py::none());
    module.def("pack_tree", &pack_parts, py::arg("w_node"), py::arg("b_node"), py::arg("w_out"), py::arg("threshold"),
               py::arg("format"), py::arg("route_format"), py::arg("tie"));
    module.def("tree_info", &info_of, py::arg("tree"));
    module.def("verify_tree", &verify_parts, py::arg("tree"));
    module.def("unpack_tree", &unpack_parts, py::arg("tree"));
    module.def("fff_workspace", &workspace_bytes, py::arg("threads"));
    module.def("seconds_per_fff", &seconds_per_fff, py::arg("repeats"));
}

}  // namespace fastffn::python
