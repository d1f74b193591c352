// The border between fastffn-bench and its device part, libfastffn_cuda_bench.so: one exported function that returns one table.
//
// fastffn-bench itself needs no CUDA. The device part is built with the plugin and lies beside it: device memory, a stream, time on
// the device, and the libraries that rows are held against, which it opens when they are installed. Plain structs only; a change
// here raises module_abi.
#pragma once

#include <cstdint>

namespace bench::cuda {

constexpr std::uint32_t module_abi = 1;
constexpr const char* module_symbol = "fastffn_cuda_bench";
constexpr const char* module_file = "libfastffn_cuda_bench.so";

struct ModuleError {
    char message[1024] = {};
};

struct DeviceFacts {
    char name[128];
    std::int32_t major, minor;  // compute capability
    std::int32_t multiprocessors;
    std::int32_t driver, runtime;  // 13000 for 13.0
    std::int32_t emulated;         // a CPU in place of a GPU: times mean nothing
    std::int64_t memory_bytes, free_bytes, l2_bytes;
};

enum class Element : std::int32_t { f32, f16, bf16, i8, i32 };
enum class Library : std::int32_t { cublaslt, cusparselt };

// y = x · wᵀ, all rows contiguous: w [out_features, in_features], x [tokens, in_features], y [tokens, out_features]. Numbers of
// `element`; sums are f32 and y has that type too, or i32 of i8.
struct ProductShape {
    Element element;
    std::int64_t tokens, out_features, in_features;
};

// Launches on `stream`; not 0: a call failed, and its caller knows why.
using Calls = std::int32_t (*)(void* context, void* stream);

// Functions return 0, or 1 with a message. One device and one stream per process.
struct Module {
    std::uint32_t abi;    // module_abi; nothing behind it may be read when it differs
    std::uint32_t bytes;  // sizeof(Module)
    const char* version;  // FASTFFN_VERSION it was built from
    std::int32_t (*open)(std::int32_t device, DeviceFacts* facts, void** stream, ModuleError* error);
    std::int32_t (*allocate)(std::int64_t bytes, void** data, ModuleError* error);
    void (*release)(void* data);
    // Between host and device memory in either direction; waits.
    std::int32_t (*copy)(void* to, const void* from, std::int64_t bytes, ModuleError* error);
    // Random numbers, uniform in [-1, 1], or codes from -127 to 127.
    std::int32_t (*fill)(void* to, Element element, std::int64_t count, std::uint64_t seed, ModuleError* error);
    // A copy within device memory, launched on the stream.
    std::int32_t (*copy_on_stream)(void* to, const void* from, std::int64_t bytes, void* stream, ModuleError* error);

    // Keeps what `calls` launches, as a graph where the device can capture it (is_graph), else by calling it again each time.
    std::int32_t (*record)(Calls calls, void* context, void** recording, std::int32_t* is_graph, ModuleError* error);
    // Runs it that many times, one after another; seconds that the device took for all of them.
    std::int32_t (*time)(void* recording, std::int32_t times, double* seconds, ModuleError* error);
    void (*forget)(void* recording);

    // Opens a library: from `places`, files or folders separated by colons, then where the system finds it. `text`: path and
    // version, 512 bytes.
    std::int32_t (*load)(Library library, const char* places, char* text, ModuleError* error);
    // Chooses the fastest algorithm for these arrays by trying them. weight_bytes: of w as the library stores it; memory_bytes: what
    // a call needs beside its arguments.
    std::int32_t (*plan)(Library library, const ProductShape* shape, const void* w, const void* x, void* y,
                         void** product, std::int64_t* weight_bytes, std::int64_t* memory_bytes, ModuleError* error);
    // w as the library stores it: cuBLASLt as it is, cuSPARSELt pruned to 2:4 and compressed.
    std::int32_t (*encode)(void* product, const void* w, void* to, ModuleError* error);
    std::int32_t (*multiply)(void* product, const void* encoded, const void* x, void* y, void* stream,
                             ModuleError* error);
    void (*drop)(void* product);
};

// The type of the exported function.
using ModuleFunction = const Module* (*)();

}  // namespace bench::cuda
