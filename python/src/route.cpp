// The routers: route_topk as a plain C function, as decode loops call it once per layer; the others through pybind11.
#include "route.hpp"

#include <chrono>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "arguments.hpp"
#include "contexts.hpp"
#include "device_weight.hpp"
#include "errors.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/ffn.hpp"
#include "fastffn/route.hpp"
#include "gil.hpp"
#include "owned_array.hpp"
#include "packed_argument.hpp"
#include "results.hpp"
#include "route_docstring.hpp"
#include "torch_docstrings.hpp"
#include "torch_entry.hpp"
#include "values.hpp"

namespace fastffn::python {

namespace {

// Below about 10 µs of work a call keeps the GIL.
constexpr std::int64_t gil_release_elements = 4096;

PyObject* pointer_or_null(const py::object& object) { return object.is_none() ? nullptr : object.ptr(); }

std::int64_t rows_of(const TensorView& view) {
    std::int64_t rows = 1;
    for (int i = 0; i + 1 < view.ndim; ++i) rows *= view.shape[i];
    return rows;
}

// Where a call runs: on the device that `array` lies on, if that is one.
struct Place {
    Call call;
    CudaStream stream;

    Place(const char* operation, py::handle array, const char* name, PyObject* given, PyObject* workspace = nullptr)
        : call{operation} {
        const int device = cuda_device_of(operation, name, array);
        if (device >= 0) {
            stream = call_stream(operation, given, array, device);
            call = {operation, true, dlpack_stream(stream), device};
            read_workspace(call, workspace, &stream);
        } else if (given || workspace) {
            raise(PyExc_ValueError, std::string(operation) + ": " + (given ? "stream" : "workspace") +
                                        " is for arrays on CUDA devices, and " + name + " is on the CPU");
        }
    }
    bool on_device() const { return call.on_device; }
};

// ids and weights: the caller's `out`, or new arrays of the kind of `like`.
struct RouteArrays {
    std::optional<Result> new_ids, new_weights;
    Array ids, weights;
    PyObject* out = nullptr;  // a tuple of the caller's

    RouteArrays(const Call& call, py::handle like, const Array& source, int leading, std::int64_t k, PyObject* out_)
        : out(out_) {
        if (!out) {
            std::int64_t shape[max_dims] = {};
            for (int i = 0; i < leading; ++i) shape[i] = source.view.shape[i];
            shape[leading] = k;
            new_ids.emplace(call, like, source, DType::i32, leading + 1, shape);
            new_weights.emplace(call, like, source, DType::f32, leading + 1, shape);
            return;
        }
        if (!PyTuple_Check(out) || PyTuple_GET_SIZE(out) != 2)
            raise(PyExc_TypeError, std::string(call.operation) + ": out has type " + type_name(out) +
                                       (PyTuple_Check(out) ? " of " + std::to_string(PyTuple_GET_SIZE(out)) : "") +
                                       ", expected a tuple (ids, weights)");
        read_array(call, "ids", PyTuple_GET_ITEM(out, 0), Role::output, &ids);
        read_array(call, "weights", PyTuple_GET_ITEM(out, 1), Role::output, &weights);
    }
    const TensorView& id_view() const { return new_ids ? new_ids->view : ids.view; }
    const TensorView& weight_view() const { return new_weights ? new_weights->view : weights.view; }
    py::object finish() {
        if (out) return py::reinterpret_borrow<py::object>(out);
        return py::make_tuple(new_ids->finish(), new_weights->finish());
    }
};

// ⌈factor · slots / experts⌉.
std::int64_t capacity_of(const Call& call, double factor, std::int64_t slots, std::int64_t experts) {
    if (!(factor >= 0) || !std::isfinite(factor))
        raise(PyExc_ValueError,
              std::string(call.operation) + ": capacity_factor is " + std::to_string(factor) + ", expected 0 or more");
    const double capacity = std::ceil(factor * static_cast<double>(slots) / static_cast<double>(experts));
    return static_cast<std::int64_t>(std::fmin(capacity, 9e18));
}

struct Topk {
    enum {
        Logits,
        K,
        Score,
        Renormalize,
        Scale,
        Bias,
        CorrectionBias,
        Groups,
        TopkGroups,
        GroupScoreName,
        TopP,
        Gamma,
        NormEps,
        CapacityFactor,
        Out,
        Stream,
        Workspace,
        count
    };
    static Parameters parameters;

    Call call;
    Array logits, bias, correction, gamma;
    TopkOptions options;

    explicit Topk(PyObject* const* slots, const Call& how = {"route_topk"}) : call(how) {
        read_array(call, "logits", slots[Logits], Role::input, &logits);
        if (logits.view.ndim == 0) raise(PyExc_ValueError, "route_topk: logits has shape (), expected (..., experts)");
        const std::int64_t experts = logits.view.shape[logits.view.ndim - 1];
        options.k = integer_argument(call, "k", slots[K] == Py_None ? nullptr : slots[K], experts);
        options.score = name_argument(call, "score", slots[Score], RouterScore::softmax, parse_router_score);
        options.renormalize = flag_argument(call, "renormalize", slots[Renormalize], false);
        options.scale = static_cast<float>(number_argument(call, "scale", slots[Scale], 1));
        options.bias = table("bias", slots[Bias], &bias);
        options.correction_bias = table("correction_bias", slots[CorrectionBias], &correction);
        options.groups = integer_argument(call, "groups", slots[Groups], 1);
        options.topk_groups = integer_argument(call, "topk_groups", slots[TopkGroups], 0);
        options.group_score =
            name_argument(call, "group_score", slots[GroupScoreName], GroupScore::max, parse_group_score);
        options.top_p = number_argument(call, "top_p", slots[TopP], 1);
        options.gamma = table("gamma", slots[Gamma], &gamma);
        options.norm_eps = static_cast<float>(number_argument(call, "norm_eps", slots[NormEps], 1e-6));
    }
    const TensorView* table(const char* name, PyObject* object, Array* array) {
        if (!object) return nullptr;
        read_array(call, name, object, Role::input, array);
        return &array->view;
    }
};
Parameters Topk::parameters{
    "route_topk",
    {"logits", "k", "score", "renormalize", "scale", "bias", "correction_bias", "groups", "topk_groups", "group_score",
     "top_p", "gamma", "norm_eps", "capacity_factor", "out", "stream", "workspace", nullptr},
    2,
    2};

PyObject* run(PyObject* const* slots) {
    const Place place("route_topk", slots[Topk::Logits], "logits", slots[Topk::Stream], slots[Topk::Workspace]);
    const Topk topk(slots, place.call);
    const TensorView& logits = topk.logits.view;
    const std::int64_t experts = logits.shape[logits.ndim - 1], rows = rows_of(logits);
    // Before an array of k columns is made: options that do not fit are the more likely mistake.
    std::int64_t bytes = 0;
    if (!slots[Topk::Out]) check(route_topk_workspace(logits, topk.options, 1, &bytes));
    RouteArrays route(topk.call, slots[Topk::Logits], topk.logits, logits.ndim - 1, topk.options.k, slots[Topk::Out]);
    std::int64_t capacity = -1;
    if (slots[Topk::CapacityFactor])
        capacity = capacity_of(topk.call, number_argument(topk.call, "capacity_factor", slots[Topk::CapacityFactor], 1),
                               rows * topk.options.k, experts > 0 ? experts : 1);
    Status status;
    if (place.on_device()) {
        // The GIL is kept: launches take microseconds.
        status = cuda_route_topk(place.stream, logits, topk.options, route.id_view(), route.weight_view());
        if (status.ok() && capacity >= 0)
            status = cuda_limit_capacity(place.stream, route.id_view(), route.weight_view(), experts, capacity);
    } else {
        const ContextLease context;
        const GilRelease release(rows * experts >= gil_release_elements);
        status = route_topk(*context, logits, topk.options, route.id_view(), route.weight_view());
        if (status.ok() && capacity >= 0)
            status = limit_capacity(*context, route.id_view(), route.weight_view(), experts, capacity);
    }
    check(status);
    return route.finish().release().ptr();
}

PyObject* route_topk_entry(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    try {
        PyObject* slots[Topk::count];
        Topk::parameters.bind(args, count, keywords, slots);
        return run(slots);
    } catch (...) {
        set_python_error();
        return nullptr;
    }
}

// That of fastffn.torch.
PyObject* torch_route_topk(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) noexcept {
    static Parameters parameters = Topk::parameters;
    PyObject* slots[Topk::count];
    return torch_call("route_topk", parameters, slots, args, count, keywords, [&] { return run(slots); });
}

// Seconds per call of the C++ function alone, on arguments that were read once.
double seconds_per_route(py::args args, py::kwargs keywords, int repeats) {
    PyObject* slots[Topk::count] = {};
    std::vector<PyObject*> values;
    for (py::handle argument : args) values.push_back(argument.ptr());
    const py::tuple names(py::len(keywords));
    std::size_t i = 0;
    for (auto item : keywords) {
        names[i++] = item.first;
        values.push_back(item.second.ptr());
    }
    Topk::parameters.bind(values.data(), static_cast<Py_ssize_t>(args.size()), names.ptr(), slots);
    if (!slots[Topk::Out]) raise(PyExc_TypeError, "seconds_per_route() needs out=");
    const Topk topk(slots);
    RouteArrays route(topk.call, slots[Topk::Logits], topk.logits, topk.logits.view.ndim - 1, topk.options.k,
                      slots[Topk::Out]);
    const ContextLease context;
    const auto begin = std::chrono::steady_clock::now();
    for (int call = 0; call < repeats; ++call)
        check(route_topk(*context, topk.logits.view, topk.options, route.id_view(), route.weight_view()));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / repeats;
}

py::object expert_choice(const py::object& logits, const py::object& k, const py::object& capacity,
                         const py::object& capacity_factor, const std::string& score, const py::object& out,
                         const py::object& stream) {
    const Place place("route_expert_choice", logits, "logits", pointer_or_null(stream));
    const Call& call = place.call;
    Array source;
    read_array(call, "logits", logits, Role::input, &source);
    const TensorView& view = source.view;
    if (view.ndim == 0) raise(PyExc_ValueError, "route_expert_choice: logits has shape (), expected (..., experts)");
    const std::int64_t experts = view.shape[view.ndim - 1];
    if (capacity.is_none() == capacity_factor.is_none())
        raise(PyExc_TypeError, "route_expert_choice: give one of capacity and capacity_factor");
    ExpertChoiceOptions options;
    options.k = integer_argument(call, "k", pointer_or_null(k), experts);
    options.capacity = integer_argument(call, "capacity", pointer_or_null(capacity), 0);
    if (!capacity_factor.is_none())
        options.capacity = capacity_of(call, number_argument(call, "capacity_factor", capacity_factor.ptr(), 1),
                                       rows_of(view), experts > 0 ? experts : 1);
    check(renamed(parse_router_score(score.c_str(), &options.score), "", "route_expert_choice: "));
    std::int64_t bytes = 0;
    check(route_expert_choice_workspace(view, options, 1, &bytes));
    RouteArrays route(call, logits, source, view.ndim - 1, options.k, pointer_or_null(out));
    Status status;
    if (place.on_device()) {
        status = cuda_route_expert_choice(place.stream, view, options, route.id_view(), route.weight_view());
    } else {
        const ContextLease context;
        const GilRelease release;
        status = route_expert_choice(*context, view, options, route.id_view(), route.weight_view());
    }
    check(status);
    return route.finish();
}

py::object hash(const py::object& tokens, const py::object& table, const py::object& out, const py::object& stream) {
    const Place place("route_hash", tokens, "tokens", pointer_or_null(stream));
    const Call& call = place.call;
    Array token_array, table_array;
    read_array(call, "tokens", tokens, Role::input, &token_array);
    read_array(call, "table", table, Role::input, &table_array);
    const TensorView& table_view = table_array.view;
    if (table_view.ndim != 2)
        raise(PyExc_ValueError,
              "route_hash: table has shape " + table_view.shape_string() + ", expected (vocabulary, k)");
    if (token_array.view.ndim >= max_dims)
        raise(PyExc_ValueError, "route_hash: tokens has 8 dimensions, expected at most 7");
    RouteArrays route(call, tokens, token_array, token_array.view.ndim, table_view.shape[1], pointer_or_null(out));
    check(place.on_device()
              ? cuda_route_hash(place.stream, token_array.view, table_view, route.id_view(), route.weight_view())
              : route_hash(token_array.view, table_view, route.id_view(), route.weight_view()));
    return route.finish();
}

py::tuple capacity(const py::object& ids, const py::object& weights, std::int64_t experts, const py::object& limit,
                   const py::object& factor, const py::object& stream) {
    const Place place("limit_capacity", ids, "ids", pointer_or_null(stream));
    const Call& call = place.call;
    Array id_array, weight_array;
    read_array(call, "ids", ids, Role::output, &id_array);
    read_array(call, "weights", weights, Role::output, &weight_array);
    if (limit.is_none() == factor.is_none())
        raise(PyExc_TypeError, "limit_capacity: give one of capacity and capacity_factor");
    std::int64_t most = integer_argument(call, "capacity", pointer_or_null(limit), 0);
    if (!factor.is_none())
        most = capacity_of(call, number_argument(call, "capacity_factor", factor.ptr(), 1), id_array.view.size(),
                           experts > 0 ? experts : 1);
    if (place.on_device()) {
        check(cuda_limit_capacity(place.stream, id_array.view, weight_array.view, experts, most));
    } else {
        const ContextLease context;
        check(limit_capacity(*context, id_array.view, weight_array.view, experts, most));
    }
    return py::make_tuple(ids, weights);
}

py::object load(const py::object& ids, std::int64_t experts, const py::object& stream) {
    const Place place("expert_load", ids, "ids", pointer_or_null(stream));
    const Call& call = place.call;
    Array source;
    read_array(call, "ids", ids, Role::input, &source);
    if (experts < 1)
        raise(PyExc_ValueError, "expert_load: num_experts is " + std::to_string(experts) + ", expected 1 or more");
    Result counts(call, ids, source, DType::i64, 1, &experts);
    check(place.on_device() ? cuda_expert_load(place.stream, source.view, counts.view)
                            : expert_load(source.view, counts.view));
    return counts.finish();
}

py::object device_router_logits(const DeviceWeight& weight, const py::object& x, const py::object& w,
                                const py::object& bias, const py::object& out, PyObject* given) {
    const CudaStream stream = call_stream("router_logits", given, x, weight.device);
    const Call call{"router_logits", true, dlpack_stream(stream), weight.device};
    Array x_array, bias_array, out_array;
    PackedArray w_packed;
    read_array(call, "x", x, Role::input, &x_array);
    read_packed(call, "w", w, &w_packed);
    if (!bias.is_none()) read_array(call, "bias", bias, Role::input, &bias_array);
    if (x_array.view.ndim == 0) raise(PyExc_ValueError, "router_logits: x has shape (), expected (..., in_features)");
    std::int64_t shape[max_dims];
    const int last = x_array.view.ndim - 1;
    for (int i = 0; i < last; ++i) shape[i] = x_array.view.shape[i];
    shape[last] = weight.header.out_features;
    std::optional<Result> result;
    if (out.is_none()) result.emplace(call, x, x_array, DType::f32, last + 1, shape);
    else read_array(call, "out", out, Role::output, &out_array);
    const Status status = cuda_linear(stream, x_array.view, w_packed.view, bias.is_none() ? nullptr : &bias_array.view,
                                      result ? result->view : out_array.view);
    check(renamed(status, "linear:", "router_logits:"));
    return result ? result->finish() : out;
}

// W x + b as f32 of x's kind, and MoE++'s residual: + M · the logits of the layer before.
py::object router_logits(const py::object& x, const py::object& w, const py::object& bias, const py::object& previous,
                         const py::object& mix, const py::object& out, const py::object& stream) {
    if (const DeviceWeight* weight = device_weight(w.ptr())) {
        if (!previous.is_none() || !mix.is_none())
            raise(PyExc_RuntimeError, "router_logits: previous and mix have no CUDA kernels");
        return device_router_logits(*weight, x, w, bias, out, pointer_or_null(stream));
    }
    if (!stream.is_none())
        raise(PyExc_ValueError, "router_logits: stream is for weights on CUDA devices, and these are on the CPU");
    const Call call{"router_logits"};
    if (previous.is_none() != mix.is_none())
        raise(PyExc_TypeError, "router_logits: previous and mix go together; give both or none");
    Array x_array, bias_array, previous_array, out_array;
    PackedArray w_packed, mix_packed;
    read_array(call, "x", x, Role::input, &x_array);
    read_packed(call, "w", w, &w_packed);
    if (!bias.is_none()) read_array(call, "bias", bias, Role::input, &bias_array);
    std::int64_t bytes = 0;
    check(renamed(linear_workspace(x_array.view, w_packed.view, 1, &bytes), "linear:", "router_logits:"));
    PackedInfo info;
    check(inspect(w_packed.view, &info));
    std::int64_t shape[max_dims];
    const int last = x_array.view.ndim - 1;
    for (int i = 0; i < last; ++i) shape[i] = x_array.view.shape[i];
    shape[last] = info.out_features;
    std::optional<Result> result;
    if (out.is_none()) result.emplace(call, x, x_array, DType::f32, last + 1, shape);
    else read_array(call, "out", out, Role::output, &out_array);
    const TensorView& y = result ? result->view : out_array.view;
    OwnedArray residual;
    if (!previous.is_none()) {
        read_array(call, "previous", previous, Role::input, &previous_array);
        read_packed(call, "mix", mix, &mix_packed);
        residual = make_owned(DType::f32, last + 1, shape);
        bool rows_match = previous_array.view.ndim == last + 1;
        for (int i = 0; rows_match && i < last; ++i) rows_match = previous_array.view.shape[i] == shape[i];
        if (!rows_match)
            raise(PyExc_ValueError, "router_logits: previous has shape " + previous_array.view.shape_string() +
                                        ", expected " + residual.view.shape_string() + " from x and w");
        bool plain = y.dtype == DType::f32 && y.ndim == last + 1;
        std::int64_t elements = 1;
        for (int i = last; plain && i >= 0; --i) {
            plain = y.shape[i] == shape[i] && (shape[i] == 1 || y.strides[i] == elements);
            elements *= shape[i];
        }
        if (!plain)
            raise(PyExc_ValueError, "router_logits: out is a " + describe(y) +
                                        ", expected a contiguous f32 array of shape " + residual.view.shape_string());
    }
    Status status;
    {
        const ContextLease context;
        const GilRelease release(rows_of(x_array.view) * w_packed.view.bytes >= 64 << 10);
        // First what could be refused: y is written last.
        if (!previous.is_none())
            status = renamed(linear(*context, previous_array.view, mix_packed.view, nullptr, residual.view),
                             "linear: w ", "router_logits: mix ");
        if (status.ok())
            status = linear(*context, x_array.view, w_packed.view, bias.is_none() ? nullptr : &bias_array.view, y);
        if (status.ok() && !previous.is_none()) {
            auto* logits = static_cast<float*>(y.data);
            const auto* added = static_cast<const float*>(residual.view.data);
            for (std::int64_t i = 0; i < residual.view.size(); ++i) logits[i] += added[i];
        }
    }
    check(renamed(renamed(status, "linear: x ", previous.is_none() ? "linear: x " : "linear: previous "),
                  "linear:", "router_logits:"));
    if (result) return result->finish();
    return out;
}

py::tuple score_names() {
    py::tuple names(router_score_count);
    for (int i = 0; i < router_score_count; ++i) names[i] = router_score_name(static_cast<RouterScore>(i));
    return names;
}

}  // namespace

void register_routes(py::module_& module) {
    static PyMethodDef methods[] = {
        {"route_topk", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&route_topk_entry)),
         METH_FASTCALL | METH_KEYWORDS, route_topk_docstring},
        {"torch_route_topk", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&torch_route_topk)),
         METH_FASTCALL | METH_KEYWORDS, torch_route_topk_docstring},
        {}};
    if (PyModule_AddFunctions(module.ptr(), methods) != 0) throw py::error_already_set();
    module.def("route_expert_choice", &expert_choice, py::arg("logits"), py::arg("k"), py::arg("capacity"),
               py::arg("capacity_factor"), py::arg("score"), py::arg("out"), py::arg("stream") = py::none());
    module.def("route_hash", &hash, py::arg("tokens"), py::arg("table"), py::arg("out"),
               py::arg("stream") = py::none());
    module.def("limit_capacity", &capacity, py::arg("ids"), py::arg("weights"), py::arg("num_experts"),
               py::arg("capacity"), py::arg("capacity_factor"), py::arg("stream") = py::none());
    module.def("router_logits", &router_logits, py::arg("x"), py::arg("w"), py::arg("bias"), py::arg("previous"),
               py::arg("mix"), py::arg("out"), py::arg("stream") = py::none());
    module.def("expert_load", &load, py::arg("ids"), py::arg("num_experts"), py::arg("stream") = py::none());
    module.def("router_scores", &score_names);
    module.def("seconds_per_route", [](int repeats, const py::args& args, const py::kwargs& keywords) {
        return seconds_per_route(args, keywords, repeats);
    });
}

}  // namespace fastffn::python
