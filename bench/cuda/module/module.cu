// The device part of fastffn-bench: memory, random numbers, recordings and their time on the device.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/device.hpp"
#include "fastffn/version.hpp"
#include "launch/launch.hpp"
#include "library.hpp"
#include "product.hpp"

extern "C" const bench::cuda::Module* fastffn_cuda_bench();

namespace bench::cuda {

namespace {

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
                             ")");
}

// No exception crosses the border.
template <class Body>
std::int32_t guarded(ModuleError* error, const Body& body) {
    try {
        body();
        return 0;
    } catch (const std::exception& problem) {
        std::snprintf(error->message, sizeof error->message, "%s", problem.what());
        return 1;
    }
}

struct Event {
    Event() { check(cudaEventCreate(&event), "cudaEventCreate"); }
    ~Event() { cudaEventDestroy(event); }
    Event(const Event&) = delete;
    cudaEvent_t event = nullptr;
};

cudaStream_t the_stream = nullptr;
std::int64_t l2_bytes = 0;

// One number per thread and step; the same for any grid. Splitmix64 of its index.
template <class T>
__global__ void fill_kernel(T* to, std::int64_t count, unsigned long long seed) {
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        unsigned long long z = seed + 0x9E3779B97F4A7C15ull * static_cast<unsigned long long>(i + 1);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        const auto bits = static_cast<unsigned>((z ^ (z >> 31)) >> 40);  // 24 of them
        const float value = static_cast<float>(bits) * (2.0f / 16777215.0f) - 1.0f;
        if constexpr (sizeof(T) == 1) to[i] = static_cast<T>(static_cast<int>(bits % 255) - 127);
        else if constexpr (std::is_same_v<T, __half>) to[i] = __float2half(value);
        else if constexpr (std::is_same_v<T, __nv_bfloat16>) to[i] = __float2bfloat16(value);
        else to[i] = static_cast<T>(value);
    }
}

template <class T>
void fill_with(void* to, std::int64_t count, std::uint64_t seed) {
    fastffn::cuda::Grid grid;
    grid.blocks = dim3(static_cast<unsigned>(std::min<std::int64_t>((count + 255) / 256, 4096)));
    grid.threads = dim3(256);
    grid.stream = the_stream;
    grid.kernel = "fill";
    check(
        fastffn::cuda::launch(fill_kernel<T>, grid, static_cast<T*>(to), count, static_cast<unsigned long long>(seed)),
        "fill");
}

struct Recording {
    ~Recording() {
        if (executable) cudaGraphExecDestroy(executable);
        if (graph) cudaGraphDestroy(graph);
    }
    Calls calls = nullptr;
    void* context = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    Event begin, end;
};

std::int32_t open(std::int32_t device, DeviceFacts* facts, void** stream, ModuleError* error) {
    return guarded(error, [&] {
        check(cudaSetDevice(device), "cudaSetDevice");
        cudaDeviceProp properties{};
        check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
        std::size_t free_bytes = 0, total_bytes = 0;
        check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
        *facts = {};
        std::snprintf(facts->name, sizeof facts->name, "%.127s", properties.name);
        facts->major = properties.major;
        facts->minor = properties.minor;
        facts->multiprocessors = properties.multiProcessorCount;
        check(cudaDriverGetVersion(&facts->driver), "cudaDriverGetVersion");
        facts->runtime = CUDART_VERSION;
#ifdef FASTFFN_CUDA_EMULATED
        facts->emulated = 1;
#endif
        facts->memory_bytes = static_cast<std::int64_t>(total_bytes);
        facts->free_bytes = static_cast<std::int64_t>(free_bytes);
        facts->l2_bytes = l2_bytes = properties.l2CacheSize;
        check(cudaStreamCreateWithFlags(&the_stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
        *stream = the_stream;
    });
}

#ifdef FASTFFN_CUDA_EMULATED
// Arrays of the emulated plugin's own memory, so that with FASTFFN_CUDA_HIDE=1 host code that touches one ends the program.
struct EmulatedMemory {
    void* (*allocate)(std::size_t) = nullptr;
    void (*release)(void*) = nullptr;
    void (*access)(int) = nullptr;
    EmulatedMemory() {
        const char* setting = std::getenv("FASTFFN_CUDA_PLUGIN");
        Dl_info own{};
        dladdr(reinterpret_cast<const void*>(&fastffn_cuda_bench), &own);
        const std::string file = own.dli_fname ? own.dli_fname : "";
        const std::string beside = file.substr(0, file.find_last_of('/') + 1) + "libfastffn_cuda.so";
        void* const plugin = dlopen(setting ? setting : beside.c_str(), RTLD_NOW | RTLD_NOLOAD);
        if (!plugin) throw std::runtime_error("the emulated plugin is not loaded");
        find_function(plugin, "fastffn_emulated_allocate", &allocate);
        find_function(plugin, "fastffn_emulated_release", &release);
        find_function(plugin, "fastffn_emulated_access", &access);
    }
};
const EmulatedMemory& emulated_memory() {
    static const EmulatedMemory memory;
    return memory;
}
// What this file does to device memory.
struct Access {
    Access() { emulated_memory().access(1); }
    ~Access() { emulated_memory().access(0); }
};
#else
struct Access {
    Access() {}
};
#endif

std::int32_t allocate(std::int64_t bytes, void** data, ModuleError* error) {
    return guarded(error, [&] {
        if (device_malloc(data, bytes) != cudaSuccess) {
            cudaGetLastError();
            throw std::runtime_error("no device memory for " + std::to_string(bytes) + " bytes");
        }
    });
}

void release(void* data) { device_free(data); }

std::int32_t copy(void* to, const void* from, std::int64_t bytes, ModuleError* error) {
    const Access access;
    return guarded(error, [&] {
        check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, the_stream),
              "cudaMemcpyAsync");
        check(cudaStreamSynchronize(the_stream), "cudaStreamSynchronize");
    });
}

std::int32_t fill(void* to, Element element, std::int64_t count, std::uint64_t seed, ModuleError* error) {
    const Access access;
    return guarded(error, [&] {
        switch (element) {
            case Element::f32: fill_with<float>(to, count, seed); break;
            case Element::f16: fill_with<__half>(to, count, seed); break;
            case Element::bf16: fill_with<__nv_bfloat16>(to, count, seed); break;
            case Element::i8: fill_with<signed char>(to, count, seed); break;
            case Element::i32: throw std::runtime_error("fill: no i32");
        }
        check(cudaStreamSynchronize(the_stream), "cudaStreamSynchronize");
    });
}

std::int32_t copy_on_stream(void* to, const void* from, std::int64_t bytes, void* stream, ModuleError* error) {
    const Access access;
    return guarded(error, [&] {
        check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                              static_cast<cudaStream_t>(stream)),
              "cudaMemcpyAsync");
    });
}

// False where the device or something in `calls` cannot be captured.
bool capture(Recording& recording) {
    if (cudaStreamBeginCapture(the_stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    const std::int32_t failed = recording.calls(recording.context, the_stream);
    const cudaError_t status = cudaStreamEndCapture(the_stream, &recording.graph);
    if (failed || status != cudaSuccess || !recording.graph ||
        cudaGraphInstantiate(&recording.executable, recording.graph, 0) != cudaSuccess) {
        cudaGetLastError();
        if (recording.graph) cudaGraphDestroy(recording.graph);
        recording.graph = nullptr;
        recording.executable = nullptr;
        return false;
    }
    return true;
}

std::int32_t record(Calls calls, void* context, void** result, std::int32_t* is_graph, ModuleError* error) {
    return guarded(error, [&] {
        auto recording = std::make_unique<Recording>();
        recording->calls = calls;
        recording->context = context;
        // Once without a graph: modules load, limits are raised, and an error shows as what it is.
        if (calls(context, the_stream) != 0) throw std::runtime_error("");
        check(cudaStreamSynchronize(the_stream), "a call failed on the device");
        *is_graph = capture(*recording);
        *result = recording.release();
    });
}

std::int32_t time_recording(void* data, std::int32_t times, double* seconds, ModuleError* error) {
    auto& recording = *static_cast<Recording*>(data);
    return guarded(error, [&] {
        check(cudaEventRecord(recording.begin.event, the_stream), "cudaEventRecord");
        for (std::int32_t i = 0; i < times; i++) {
            if (recording.executable) check(cudaGraphLaunch(recording.executable, the_stream), "cudaGraphLaunch");
            else if (recording.calls(recording.context, the_stream) != 0) throw std::runtime_error("");
        }
        check(cudaEventRecord(recording.end.event, the_stream), "cudaEventRecord");
        check(cudaEventSynchronize(recording.end.event), "a call failed on the device");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, recording.begin.event, recording.end.event), "cudaEventElapsedTime");
        *seconds = static_cast<double>(milliseconds) * 1e-3;
    });
}

void forget(void* recording) { delete static_cast<Recording*>(recording); }

std::int32_t load(Library library, const char* places, char* text, ModuleError* error) {
    return guarded(error, [&] {
        std::string found;
        if (library == Library::cublaslt) load_cublaslt(places, &found);
        else load_cusparselt(places, &found);
        std::snprintf(text, 512, "%s", found.c_str());
    });
}

std::int32_t plan(Library library, const ProductShape* shape, const void* w, const void* x, void* y, void** product,
                  std::int64_t* weight_bytes, std::int64_t* memory_bytes, ModuleError* error) {
    const Access access;
    return guarded(error, [&] {
        std::unique_ptr<Product> made = library == Library::cublaslt ? cublaslt_product(*shape, w, x, y, the_stream)
                                                                     : cusparselt_product(*shape, w, x, y, the_stream);
        *weight_bytes = made->weight_bytes();
        *memory_bytes = made->memory_bytes();
        *product = made.release();
    });
}

std::int32_t encode(void* product, const void* w, void* to, ModuleError* error) {
    const Access access;
    return guarded(error, [&] { static_cast<Product*>(product)->encode(w, to); });
}

std::int32_t multiply(void* product, const void* encoded, const void* x, void* y, void* stream, ModuleError* error) {
    const Access access;
    return guarded(error,
                   [&] { static_cast<Product*>(product)->multiply(encoded, x, y, static_cast<cudaStream_t>(stream)); });
}

void drop(void* product) { delete static_cast<Product*>(product); }

const Module table = {
    module_abi, sizeof(Module), FASTFFN_VERSION, open, allocate, release, copy,     fill, copy_on_stream,
    record,     time_recording, forget,          load, plan,     encode,  multiply, drop};

}  // namespace

#ifdef FASTFFN_CUDA_EMULATED
cudaError_t device_malloc(void** data, std::int64_t bytes) {
    *data = emulated_memory().allocate(static_cast<std::size_t>(bytes));
    return *data ? cudaSuccess : cudaErrorMemoryAllocation;
}
void device_free(void* data) { emulated_memory().release(data); }
#else
cudaError_t device_malloc(void** data, std::int64_t bytes) { return cudaMalloc(data, static_cast<std::size_t>(bytes)); }
void device_free(void* data) { cudaFree(data); }
#endif

double time_cold(const std::function<void()>& call, cudaStream_t stream) {
    static Scratch* const flush = new Scratch(2 * l2_bytes);  // for the process: algorithms are tried for every row
    Event begin, end;
    std::vector<float> samples;
    for (int i = 0; i < 7; i++) {
        check(cudaMemsetAsync(flush->data(), i, static_cast<std::size_t>(flush->bytes()), stream), "cudaMemsetAsync");
        check(cudaEventRecord(begin.event, stream), "cudaEventRecord");
        call();
        check(cudaEventRecord(end.event, stream), "cudaEventRecord");
        check(cudaEventSynchronize(end.event), "a call failed on the device");
        float milliseconds = 0;
        check(cudaEventElapsedTime(&milliseconds, begin.event, end.event), "cudaEventElapsedTime");
        if (i >= 2) samples.push_back(milliseconds);
    }
    std::sort(samples.begin(), samples.end());
    return static_cast<double>(samples[samples.size() / 2]) * 1e-3;
}

}  // namespace bench::cuda

extern "C" __attribute__((visibility("default"))) const bench::cuda::Module* fastffn_cuda_bench() {
    return &bench::cuda::table;
}
