#include "device_tree.hpp"

#include <pybind11/numpy.h>

#include <cstring>
#include <memory>
#include <vector>

#include "device_weight.hpp"
#include "errors.hpp"
#include "gil.hpp"
#include "owned_array.hpp"
#include "results.hpp"

namespace fastffn::python {

namespace {

PyTypeObject* tree_type = nullptr;

TreeInfo info_of(const DeviceTree& tree) {
    TreeInfo info;
    check(inspect_device_tree(tree.view(), &info));
    return info;
}

// A tree that lies on a device already: its header is read once, which waits for the stream.
DeviceTree open_device_tree(py::object packed, const py::object& stream, const py::object& header) {
    constexpr const char* operation = "device_tree";
    Call call{operation, true};
    call.device = -1;  // any
    Array array;
    read_array(call, "tree", packed, Role::packed, &array);
    // int8: what buffers of cuda.core say of their bytes.
    if ((array.view.dtype != DType::u8 && array.view.dtype != DType::i8) || array.view.ndim != 1 ||
        (array.view.shape[0] > 1 && array.view.strides[0] != 1))
        raise(PyExc_ValueError, std::string(operation) + ": tree is a " + describe(array.view) +
                                    ", expected a contiguous one-dimensional uint8 array");
    DeviceTree tree;
    tree.device = array.device.id;
    tree.data = array.view.data;
    tree.bytes = array.view.shape[0];
    if (header.is_none()) {
        const CudaStream queue = call_stream(operation, stream.is_none() ? nullptr : stream.ptr(), packed, tree.device);
        Status status;
        {
            const GilRelease release;
            status = read_device_tree(queue, tree.data, tree.bytes, &tree.header);
        }
        check(status);
    } else {
        const auto bytes = py::cast<std::string>(header);
        if (bytes.size() != sizeof tree.header.bytes)
            raise(PyExc_ValueError,
                  std::string(operation) + ": header has " + std::to_string(bytes.size()) + " bytes, expected 128");
        std::memcpy(tree.header.bytes, bytes.data(), sizeof tree.header.bytes);
        TreeInfo info;
        check(renamed(inspect_device_tree(tree.view(), &info), "inspect_device_tree:", "device_tree:"));
    }
    tree.array = std::move(packed);
    return tree;
}

py::bytes header_bytes(const DeviceTree& tree) {
    return py::bytes(reinterpret_cast<const char*>(tree.header.bytes), sizeof tree.header.bytes);
}

// All bytes in the host's memory; waits for the stream.
py::object copy_to_host(const DeviceTree& tree, const py::object& stream) {
    constexpr const char* operation = "copy_to_host";
    const CudaStream queue = call_stream(operation, stream.is_none() ? nullptr : stream.ptr(), tree.array, tree.device);
    const std::shared_ptr<std::byte> memory = allocate_aligned(tree.bytes);
    Status status;
    {
        const GilRelease release;
        status = read_device_bytes(queue, operation, tree.data, tree.bytes, memory.get());
    }
    check(status);
    if (std::memcmp(memory.get(), tree.header.bytes, sizeof tree.header.bytes) != 0)
        raise(PyExc_ValueError, std::string(operation) +
                                    ": the bytes on the device begin with another header than when this tree was made; "
                                    "make it again with fastffn.device_tree");
    const py::capsule owner(new std::shared_ptr<std::byte>(memory),
                            [](void* p) { delete static_cast<std::shared_ptr<std::byte>*>(p); });
    return py::array(py::dtype::of<std::uint8_t>(), std::vector<py::ssize_t>{tree.bytes}, std::vector<py::ssize_t>{},
                     memory.get(), owner);
}

// From one layout to the other, in the memory of the host.
template <class Query, class Convert>
py::object convert_layout(const char* operation, py::object packed, Query query, Convert convert) {
    const Call call{operation};
    Array array;
    read_array(call, "tree", packed, Role::packed, &array);
    if (array.view.dtype != DType::u8 || array.view.ndim != 1 ||
        (array.view.shape[0] > 1 && array.view.strides[0] != 1))
        raise(PyExc_ValueError, std::string(operation) + ": tree is a " + describe(array.view) +
                                    ", expected a contiguous one-dimensional uint8 array");
    const PackedView view{array.view.data, array.view.shape[0]};
    std::int64_t bytes = 0;
    check(query(view, &bytes));
    Result result(call, packed, array, DType::u8, 1, &bytes);
    Status status;
    {
        const GilRelease release;
        status = convert(view, result.view.data, bytes);
    }
    check(status);
    return result.finish();
}

}  // namespace

const DeviceTree* device_tree(PyObject* object) {
    if (!object || !Py_IS_TYPE(object, tree_type)) return nullptr;
    return py::cast<const DeviceTree*>(py::handle(object));
}

void register_device_trees(py::module_& module) {
    py::class_<DeviceTree> tree(
        module, "DeviceTree",
        "A packed tree in the memory of a CUDA device; see fastffn.pack_tree and "
        "fastffn.device_tree.\n\n"
        "``array`` is the uint8 array on the device, which state_dict or safetensors may carry; "
        "``device`` its number. fastffn.tree_info says what it holds.");
    tree.def_readonly("array", &DeviceTree::array)
        .def_readonly("device", &DeviceTree::device)
        .def_readonly("nbytes", &DeviceTree::bytes)
        .def_property_readonly("header", &header_bytes)
        .def("copy_to_host", &copy_to_host, py::arg("stream") = py::none(),
             "The bytes as they lie on the device, as a NumPy array; waits for the stream.")
        // Copies and pickles are those of the array, with the header that was read once.
        .def("__reduce__",
             [](const py::object& self) {
                 const auto& t = py::cast<const DeviceTree&>(self);
                 return py::make_tuple(py::module_::import("fastffn._core").attr("device_tree"),
                                       py::make_tuple(t.array, py::none(), header_bytes(t)));
             })
        .def("__repr__", [](const DeviceTree& t) {
            const TreeInfo info = info_of(t);
            return "<fastffn.DeviceTree " + std::to_string(info.trees) + "x" + std::to_string(info.depth) +
                   (info.form == TreeForm::leaf ? " leaf" : " nodes") + " on cuda:" + std::to_string(t.device) + ">";
        });
    tree_type = reinterpret_cast<PyTypeObject*>(tree.ptr());
    Py_INCREF(tree_type);  // outlives the module's attribute
    module.def("device_tree", &open_device_tree, py::arg("tree"), py::arg("stream") = py::none(),
               py::arg("header") = py::none());
    module.def(
        "tree_to_device_layout",
        [](py::object packed) {
            return convert_layout("tree_for_device", std::move(packed), &device_tree_bytes, &tree_for_device);
        },
        py::arg("tree"));
    module.def(
        "tree_to_cpu_layout",
        [](py::object packed) {
            return convert_layout("tree_for_cpu", std::move(packed), &cpu_tree_bytes, &tree_for_cpu);
        },
        py::arg("tree"));
}

}  // namespace fastffn::python
