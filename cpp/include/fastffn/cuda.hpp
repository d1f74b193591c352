// Whether CUDA can be used here, and why not. The kernels are in a plugin, libfastffn_cuda.so, which is looked for once:
//   FASTFFN_CUDA_PLUGIN, a path to it, or "off";  else the folder of this library or program, the one above, and "lib" in
//   both;  else the system's search path for libraries.
// A process without the plugin, without a driver or without a device works as one on a CPU.
//
// Weights are packed on the CPU and copied to the device as they are; arrays, weights and results of a call lie on one device:
//
//   pack_for_device(w, Format::bf16, {}, host, bytes);  …copy `host` to `device_memory`…
//   DeviceWeight up{device_memory, bytes, header};                 // the first 64 bytes of `host`
//   cuda_ffn({0, stream}, x, weights, y);                          // x, y: views of device memory
//
// Calls launch on the stream that they are given, wait for nothing and can be captured in a graph. Rounding is that of the
// CPU's calls; sums run in another order. Never run on a GPU by this project so far: the kernels' logic is tested on the CPU.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fastffn/fff.hpp"
#include "fastffn/ffn.hpp"
#include "fastffn/hadamard.hpp"
#include "fastffn/moe.hpp"
#include "fastffn/route.hpp"

namespace fastffn {

struct CudaDevice {
    std::string name;
    int major = 0, minor = 0;  // compute capability
    int multiprocessors = 0;
    bool has_code = false;  // the plugin holds code for it
    std::int64_t memory_bytes = 0, l2_bytes = 0;
};

struct CudaReport {
    bool available = false;     // a plugin of this version, a driver and at least one device that it has code for
    std::string reason;         // why not; empty where available
    std::string path, version;  // of the plugin; empty where none was loaded
    std::string architectures;  // that it holds code for
    std::vector<CudaDevice> devices;
};

// Looks once; later calls return the same report.
const CudaReport& cuda_report();

// Bytes of weights packed for devices: a header of layout 2, and the rows. All formats that pack() takes; pairs of factors (lowrank)
// are packed for the CPU first, see below.
Status device_packed_bytes(const TensorView& w, Format format, const PackOptions& options, std::int64_t* bytes);
// Like pack(), into host memory that holds exactly device_packed_bytes().
Status pack_for_device(const TensorView& w, Format format, const PackOptions& options, void* out,
                       std::int64_t out_bytes);

// The same of weights that are packed for the CPU already, in any format: bit for bit, after comparing their checksum.
Status device_packed_bytes(const PackedView& packed, std::int64_t* bytes);
Status pack_for_device(const PackedView& packed, void* out, std::int64_t out_bytes);
// And back: the CPU's bytes of weights packed for devices, which are in the host's memory.
Status cpu_packed_bytes(const PackedView& packed, std::int64_t* bytes);
Status pack_for_cpu(const PackedView& packed, void* out, std::int64_t out_bytes);

// Checks the header of weights packed for devices in constant time and fills info (nullptr: none); packed.header is read where it
// is set, and else the first 64 bytes, which are then in the host's memory. Errors name the operation and the argument.
Status check_device_weight(const PackedView& packed, const char* operation, const char* name, PackedInfo* info);
// The same, and compares the checksum of all bytes, in the host's memory.
Status verify_device_bytes(const PackedView& packed, const char* operation, const char* name);

// The same of trees: from the bytes of pack_tree(), and back, the very same bytes. All trees have a layout for devices. `tree` lies in
// host memory in both directions.
Status device_tree_bytes(const PackedView& tree, std::int64_t* bytes);
Status tree_for_device(const PackedView& tree, void* out, std::int64_t out_bytes);
Status cpu_tree_bytes(const PackedView& tree, std::int64_t* bytes);
Status tree_for_cpu(const PackedView& tree, void* out, std::int64_t out_bytes);

struct CudaStream {
    int device = 0;
    void* stream = nullptr;  // cudaStream_t
    // Device memory for the call alone until it is done, 256-byte aligned, apart from all that it reads and writes; nullptr: calls
    // take what they need from the device's stream-ordered pool.
    void* workspace = nullptr;
    std::int64_t workspace_bytes = 0;
    // Not null: a call makes its checks, runs nothing, and raises this to the bytes of workspace that it would use.
    std::int64_t* query = nullptr;
};

// Reads the header of weights that lie on a device; waits for the stream. Once, at load.
Status read_device_header(CudaStream stream, const void* data, std::int64_t bytes, PackedHeader* header);

// Bytes of a device's memory into the host's; waits for the stream.
Status read_device_bytes(CudaStream stream, const char* operation, const void* data, std::int64_t bytes, void* host);

// linear() and ffn() on a device: x, y, biases and sub_norm are views of its memory, weights are PackedViews with a header. Rows of
// x and of y must have one stride; biases are contiguous.
// Segments: rows of w_up and w_gate outside them are not read where the format is f32, f16, bf16, int8, or ternary without groups, one product a segment;
// of w_down, f32, f16, bf16 or int8, the columns before the first and behind the last are not read.
// With f16 weights and f16 x, hidden activations, and p of low-rank pairs, are f16 here where the CPU keeps f32: one beyond 65504 makes its
// token infinite or NaN. f32 or bf16 x, or sub_norm in front of w_down, keep them in f32. moe and fff do the same.
// sub_norm in front of a low-rank w_down: h is normed before it is rounded for u; the CPU divides by the rms behind u. Both round once.
// gate_first: for up to 8 tokens; automatic takes it where w_up is large enough that reading a part of it saves more than its launch
// costs (an estimate so far). More tokens run in the dense order. w_down is read whole.
Status cuda_linear(CudaStream stream, const TensorView& x, const PackedView& w, const TensorView* bias,
                   const TensorView& y);
Status cuda_ffn(CudaStream stream, const TensorView& x, const FfnWeights& weights, const TensorView& y);

// moe() on a device: ids, weights, biases, load and what shared and special experts have are device memory too; the descriptions
// themselves (MoeWeights, kinds) are the host's. Nobody reads ids before the call: those that name no expert are empty slots
// instead of an error. Rows of x, y, ids and weights must have one stride each, biases no gaps. With bf16 y and more than 16
// tokens the experts' outputs are rounded to bf16 before weights add them up in f32.
// On devices: up to 4096 ids per token, 128 special experts.
Status cuda_moe(CudaStream stream, const TensorView& x, const TensorView& ids, const TensorView* weights,
                const MoeWeights& layer, const TensorView& y, std::int64_t* load = nullptr);

// Bytes of workspace of any call below or above: cuda_workspace(stream, [&](CudaStream s) { return cuda_hadamard(s, x, {}, y); }, &bytes).
template <class Call>
Status cuda_workspace(CudaStream stream, const Call& call, std::int64_t* bytes) {
    *bytes = 0;
    stream.query = bytes;
    return call(stream);
}
// The same of the layers; x and y as they will be, as their alignment counts.
inline Status cuda_linear_workspace(CudaStream stream, const TensorView& x, const PackedView& w, const TensorView* bias,
                                    const TensorView& y, std::int64_t* bytes) {
    *bytes = 0;
    stream.query = bytes;
    return cuda_linear(stream, x, w, bias, y);
}
inline Status cuda_ffn_workspace(CudaStream stream, const TensorView& x, const FfnWeights& weights, const TensorView& y,
                                 std::int64_t* bytes) {
    *bytes = 0;
    stream.query = bytes;
    return cuda_ffn(stream, x, weights, y);
}

inline Status cuda_moe_workspace(CudaStream stream, const TensorView& x, const TensorView& ids,
                                 const TensorView* weights, const MoeWeights& layer, const TensorView& y,
                                 std::int64_t* bytes, std::int64_t* load = nullptr) {
    *bytes = 0;
    stream.query = bytes;
    return cuda_moe(stream, x, ids, weights, layer, y, load);
}

// The routers of route.hpp on a device: every array lies there, rows of logits have one stride. Values of tokens, tables and ids are
// not read before the call: a token outside of the table gets empty slots, and ids outside of the experts are dropped by
// cuda_limit_capacity and not counted by cuda_expert_load.
Status cuda_route_topk(CudaStream stream, const TensorView& logits, const TopkOptions& options, const TensorView& ids,
                       const TensorView& weights);
Status cuda_route_expert_choice(CudaStream stream, const TensorView& logits, const ExpertChoiceOptions& options,
                                const TensorView& ids, const TensorView& weights);
Status cuda_route_hash(CudaStream stream, const TensorView& tokens, const TensorView& table, const TensorView& ids,
                       const TensorView& weights);
Status cuda_limit_capacity(CudaStream stream, const TensorView& ids, const TensorView& weights, std::int64_t experts,
                           std::int64_t capacity);
Status cuda_expert_load(CudaStream stream, const TensorView& ids, const TensorView& counts);

// A copy of the first 128 bytes of a tree that lies on a device. as_header() of it is the `header` of such a tree's PackedView.
struct DeviceTreeHeader {
    alignas(8) std::byte bytes[128];
    const PackedHeader* as_header() const { return reinterpret_cast<const PackedHeader*>(bytes); }
};
// Reads it; waits for the stream. Once, at load.
Status read_device_tree(CudaStream stream, const void* data, std::int64_t bytes, DeviceTreeHeader* header);
// What such a tree holds, from its header.
Status inspect_device_tree(const PackedView& tree, TreeInfo* info);

// fff() and fff_route() on a device: as cuda_linear(), and trees as above, 16-byte aligned. Leaves' biases and forced leaves are
// contiguous. Forced leaves are not read by the host: a token that is sent to one outside of 0 to 2^depth - 1 has a row of NaN.
// Decisions use x and sums in f32. FffPlan::grouped sorts tokens by subtree, and where x and w_node are both bf16 or both f16 takes
// z from tensor cores: their sums differ from a walk's by at most (d_model + 8) · 2^-23 · Σ |x · w|, and a z that is nearer to its
// threshold may go the other way. All other plans give the same bits for a token, whatever tokens are beside it in the call.
Status cuda_fff(CudaStream stream, const TensorView& x, const FffWeights& weights, const TensorView& y);
Status cuda_fff_route(CudaStream stream, const TensorView& x, const PackedView& tree, const TensorView& leaf,
                      const TensorView* margin, const TensorView* z, FffPlan plan = FffPlan::automatic);
// As the queries above.
inline Status cuda_fff_workspace(CudaStream stream, const TensorView& x, const FffWeights& weights, const TensorView& y,
                                 std::int64_t* bytes) {
    *bytes = 0;
    stream.query = bytes;
    return cuda_fff(stream, x, weights, y);
}

// hadamard() and quantize() on a device. Without H_K (mode kron beyond powers of two) the very bits of the CPU's, and so are codes of
// kind int8. H_K runs on integer tensor cores: what it adds is rounded to 22 bits of the largest of its column (the K values that meet),
// then added exactly. The mean that kind int4 takes is summed in another order. Any length that the CPU takes.
Status cuda_hadamard(CudaStream stream, const TensorView& x, const HadamardOptions& options, const TensorView& y);
Status cuda_quantize(CudaStream stream, const TensorView& x, ActivationCodes kind, const TensorView& codes,
                     const TensorView& scale);

}  // namespace fastffn
