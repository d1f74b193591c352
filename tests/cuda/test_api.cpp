// The public C++ API on a device: the emulated plugin, loaded as a user's program loads the real one.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../cpp/check.hpp"
#include "fastffn/cuda.hpp"
#include "fastffn/fastffn.hpp"

using namespace fastffn;

TEST(linear_and_ffn_where_the_weights_are) {
    const CudaReport& report = cuda_report();
    CHECK(report.available && report.devices.size() == 1) << report.reason;
    constexpr std::int64_t tokens = 3, d_model = 130, d_ff = 24;
    std::vector<float> w(d_ff * d_model), x(tokens * d_model);
    for (std::size_t i = 0; i < w.size(); i++) w[i] = std::sin(0.37f * static_cast<float>(i));
    for (std::size_t i = 0; i < x.size(); i++) x[i] = std::cos(0.11f * static_cast<float>(i));
    const TensorView x_view(x.data(), DType::f32, {tokens, d_model});
    // The emulated device's memory is the host's.
    const auto device_pack = [](const TensorView& view, Format format, PackedHeader* header) {
        std::int64_t bytes = 0;
        device_packed_bytes(view, format, {}, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack_for_device(view, format, {}, packed.data(), bytes).value();
        read_device_header({0, nullptr}, packed.data(), bytes, header).value();
        return packed;
    };
    const auto host_pack = [](const TensorView& view, Format format) {
        std::int64_t bytes = 0;
        packed_bytes(view, format, &bytes).value();
        std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
        pack(view, format, packed.data(), bytes).value();
        return packed;
    };
    const auto size = [](const std::vector<std::byte>& packed) { return static_cast<std::int64_t>(packed.size()); };
    for (Format format : {Format::f32, Format::f16, Format::bf16, Format::int8, Format::ternary, Format::int4}) {
        const TensorView up_view(w.data(), DType::f32, {d_ff, d_model}),
            down_view(w.data(), DType::f32, {d_model, d_ff});
        PackedHeader up_header, down_header;
        const auto up = device_pack(up_view, format, &up_header), down = device_pack(down_view, format, &down_header);
        const auto host_up = host_pack(up_view, format), host_down = host_pack(down_view, format);
        const PackedView up_packed{up.data(), size(up), &up_header}, down_packed{down.data(), size(down), &down_header};
        std::vector<float> y(tokens * d_model), wanted(tokens * d_model);
        const auto differs = [&](std::size_t count) {
            double largest = 0, apart = 0;
            for (std::size_t i = 0; i < count; i++) {
                largest = std::fmax(largest, std::fabs(static_cast<double>(wanted[i])));
                apart = std::fmax(apart, std::fabs(static_cast<double>(y[i]) - static_cast<double>(wanted[i])));
            }
            return apart / largest;
        };
        Context context;
        const TensorView hidden(y.data(), DType::f32, {tokens, d_ff}),
            hidden_wanted(wanted.data(), DType::f32, {tokens, d_ff});
        const PackedView misplaced{up.data() + 4, size(up), &up_header};
        const Status refused = cuda_linear({0, nullptr}, x_view, misplaced, nullptr, hidden);
        CHECK(refused.message().find("linear: w is not 16-byte aligned") == 0) << refused.message();
        cuda_linear({0, nullptr}, x_view, up_packed, nullptr, hidden).value();
        linear(context, x_view, {host_up.data(), size(host_up)}, nullptr, hidden_wanted).value();
        CHECK(differs(tokens * d_ff) < 3e-6) << format_name(format) << " linear: " << differs(tokens * d_ff);

        FfnWeights weights, host_weights;
        weights.w_up = weights.w_gate = up_packed;
        weights.w_down = down_packed;
        host_weights.w_up = host_weights.w_gate = {host_up.data(), size(host_up)};
        host_weights.w_down = {host_down.data(), size(host_down)};
        cuda_ffn({0, nullptr}, x_view, weights, TensorView(y.data(), DType::f32, {tokens, d_model})).value();
        ffn(context, x_view, host_weights, TensorView(wanted.data(), DType::f32, {tokens, d_model})).value();
        CHECK(differs(y.size()) < 0.01) << format_name(format) << " ffn: " << differs(y.size());
    }
}

TEST(trees_where_their_bytes_are) {
    CHECK(cuda_report().available) << cuda_report().reason;
    constexpr std::int64_t tokens = 5, d_model = 24, d_out = 10, depth = 4, nodes = 31;
    std::vector<float> w(nodes * d_model), out(nodes * d_out), x(tokens * d_model);
    for (std::size_t i = 0; i < w.size(); i++) w[i] = std::sin(0.37f * static_cast<float>(i));
    for (std::size_t i = 0; i < out.size(); i++) out[i] = std::sin(0.53f * static_cast<float>(i));
    for (std::size_t i = 0; i < x.size(); i++) x[i] = std::cos(0.11f * static_cast<float>(i));
    const TensorView x_view(x.data(), DType::f32, {tokens, d_model}), w_view(w.data(), DType::f32, {nodes, d_model}),
        out_view(out.data(), DType::f32, {nodes, d_out});
    std::int64_t bytes = 0, device_bytes = 0, workspace_bytes = 0;
    const TreeParts parts{&w_view, nullptr, nullptr, &out_view};
    tree_bytes(parts, {}, &bytes).value();
    std::vector<std::byte> host(static_cast<std::size_t>(bytes));
    pack_tree(parts, {}, host.data(), bytes).value();
    const PackedView host_view{host.data(), bytes};
    device_tree_bytes(host_view, &device_bytes).value();
    // The emulated device's memory is the host's; a device's is aligned.
    void* device = nullptr;
    CHECK(posix_memalign(&device, 256, static_cast<std::size_t>(device_bytes)) == 0);
    tree_for_device(host_view, device, device_bytes).value();
    DeviceTreeHeader header;
    read_device_tree({0, nullptr}, device, device_bytes, &header).value();
    const PackedView tree{device, device_bytes, header.as_header()};
    TreeInfo info;
    inspect_device_tree(tree, &info).value();
    CHECK(info.form == TreeForm::nodes && info.depth == depth && info.d_out == d_out && info.bytes == device_bytes);

    std::vector<std::int32_t> leaf(tokens), host_leaf(tokens);
    std::vector<float> margin(tokens), z(tokens * (depth + 1)), y(tokens * d_out), wanted(tokens * d_out);
    const TensorView leaf_view(leaf.data(), DType::i32, {tokens, 1}),
        margin_view(margin.data(), DType::f32, {tokens, 1}), z_view(z.data(), DType::f32, {tokens, 1, depth + 1}),
        host_leaf_view(host_leaf.data(), DType::i32, {tokens, 1});
    cuda_fff_route({0, nullptr}, x_view, tree, leaf_view, &margin_view, &z_view).value();
    Context context;
    fff_route(context, x_view, host_view, host_leaf_view, nullptr, nullptr).value();
    CHECK(leaf == host_leaf);
    FffWeights weights, host_weights;
    weights.tree = tree;
    host_weights.tree = host_view;
    const TensorView y_view(y.data(), DType::f32, {tokens, d_out}),
        wanted_view(wanted.data(), DType::f32, {tokens, d_out});
    cuda_fff({0, nullptr}, x_view, weights, y_view).value();
    fff(context, x_view, host_weights, wanted_view).value();
    double apart = 0;
    for (std::size_t i = 0; i < y.size(); i++)
        apart = std::fmax(apart, std::fabs(static_cast<double>(y[i]) - static_cast<double>(wanted[i])));
    CHECK(apart < 1e-5) << apart;
    // With a master that has what only C++ gives it: a norm between its layers.
    constexpr std::int64_t d_ff = 16;
    const TensorView up_view(w.data(), DType::f32, {d_ff, d_model}), down_view(w.data(), DType::f32, {d_out, d_ff}),
        gamma(x.data(), DType::f32, {d_ff});
    std::vector<std::vector<std::byte>> packed[2];  // of the host, of the device
    PackedHeader headers[2];
    FfnWeights master, host_master;
    for (const TensorView& view : {up_view, down_view}) {
        std::int64_t sizes[2] = {};
        packed_bytes(view, Format::f32, &sizes[0]).value();
        device_packed_bytes(view, Format::f32, {}, &sizes[1]).value();
        for (int i = 0; i < 2; i++) packed[i].emplace_back(static_cast<std::size_t>(sizes[i]));
        pack(view, Format::f32, packed[0].back().data(), sizes[0]).value();
        pack_for_device(view, Format::f32, {}, packed[1].back().data(), sizes[1]).value();
        const bool is_up = packed[0].size() == 1;
        PackedHeader* const own = &headers[is_up ? 0 : 1];
        read_device_header({0, nullptr}, packed[1].back().data(), sizes[1], own).value();
        (is_up ? host_master.w_up : host_master.w_down) = {packed[0].back().data(), sizes[0]};
        (is_up ? master.w_up : master.w_down) = {packed[1].back().data(), sizes[1], own};
    }
    master.sub_norm = host_master.sub_norm = &gamma;
    master.activation = host_master.activation = Activation::relu2;
    const float mix = -0.4f;
    weights.master = &master;
    host_weights.master = &host_master;
    weights.mix = host_weights.mix = &mix;
    cuda_fff({0, nullptr}, x_view, weights, y_view).value();
    fff(context, x_view, host_weights, wanted_view).value();
    apart = 0;
    for (std::size_t i = 0; i < y.size(); i++)
        apart = std::fmax(apart, std::fabs(static_cast<double>(y[i]) - static_cast<double>(wanted[i])));
    CHECK(apart < 1e-4) << apart;
    weights.master = host_weights.master = nullptr;
    weights.mix = host_weights.mix = nullptr;

    // Exactly the workspace that the query says; a byte less is refused.
    cuda_fff_workspace({0, nullptr}, x_view, weights, y_view, &workspace_bytes).value();
    std::vector<std::byte> workspace(static_cast<std::size_t>(workspace_bytes));
    cuda_fff({0, nullptr, workspace.data(), workspace_bytes}, x_view, weights, y_view).value();
    const auto refused = [&](const Status& status, const char* part) {
        CHECK(!status.ok() && status.message().find(part) != std::string::npos) << status.message();
    };
    refused(cuda_fff({0, nullptr, workspace.data(), workspace_bytes - 1}, x_view, weights, y_view), "workspace has");
    std::vector<std::byte> longer(static_cast<std::size_t>(workspace_bytes) + 4);
    refused(cuda_fff({0, nullptr, longer.data() + 4, workspace_bytes}, x_view, weights, y_view),
            "workspace is not 16-byte aligned");
    refused(cuda_fff({0, nullptr}, x_view, host_weights, y_view), "fff: tree has no header on the host");
    refused(fff(context, x_view, weights, y_view), "fff: tree is packed for CUDA devices");
    FffWeights misplaced = weights;
    misplaced.tree.data = static_cast<std::byte*>(device) + 4;
    refused(cuda_fff({0, nullptr}, x_view, misplaced, y_view), "fff: tree is not 16-byte aligned");
    refused(cuda_fff({0, nullptr}, w_view, weights, y_view), "fff: out has shape");
    refused(cuda_fff_route({0, nullptr}, x_view, tree, margin_view, nullptr, nullptr), "fff_route: leaf is f32");
    refused(read_device_tree({0, nullptr}, host.data(), bytes, &header), "device_tree: tree is packed for the CPU");
    refused(read_device_tree({0, nullptr}, device, device_bytes - 16, &header), "it was truncated");
    DeviceTreeHeader forged = header;
    forged.bytes[16] = std::byte{9};
    refused(inspect_device_tree({device, device_bytes, forged.as_header()}, &info), "damaged header");
    static_cast<std::byte*>(device)[400] ^= std::byte{1};
    std::int64_t back_bytes = 0;
    cpu_tree_bytes({device, device_bytes}, &back_bytes).value();
    std::vector<std::byte> back(static_cast<std::size_t>(back_bytes));
    refused(tree_for_cpu({device, device_bytes}, back.data(), back_bytes), "tree_for_cpu: tree has damaged weights");
    std::free(device);
}

int main(int argc, char** argv) { return check::run_all(argc, argv); }
